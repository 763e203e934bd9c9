// Small arrays between the caller's memory and the pipeline's tables: parameters, running buffers,
// statistics and parameter gradients, of any dtype and strides.
#pragma once

#include <type_traits>

#include "cpu/dispatch.h"
#include "cpu/workspace.h"
#include "normcore/tensor.h"
#include "plan/round_to_odd.h"
#include "plan/walk.h"

namespace normcore {

template <class F>
decltype(auto) with_storage(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(std::type_identity<std::uint64_t>{});
    case DType::kFloat32:
      return f(std::type_identity<std::uint32_t>{});
    default:
      return f(std::type_identity<std::uint16_t>{});
  }
}

// The elements of t along w, as a contiguous array of C.
template <class C>
void read_array(const ConstTensor& t, const Walk& w, cpu::Workspace::Scope& scope, C* out) {
  const Index n = w.count();
  const void* source = t.data();
  if (!w.contiguous()) {
    source = with_storage(t.dtype(), [&]<class E>(std::type_identity<E>) -> const void* {
      E* packed = scope.take<E>(n);
      Index i = 0;
      w.each([&](Index at) { packed[i++] = static_cast<const E*>(t.data())[at]; });
      return packed;
    });
  }
  if (t.dtype() == DType::kFloat64) {
    for (Index i = 0; i < n; ++i) out[i] = C(static_cast<const double*>(source)[i]);
  } else if constexpr (std::is_same_v<C, float>) {
    cpu::kernel_set<float>(cpu::kernels(), t.dtype()).load(source, out, n);
  } else {
    const float* narrow = static_cast<const float*>(source);
    if (t.dtype() != DType::kFloat32) {
      float* wide = scope.take<float>(n);
      cpu::kernel_set<float>(cpu::kernels(), t.dtype()).load(source, wide, n);
      narrow = wide;
    }
    for (Index i = 0; i < n; ++i) out[i] = C(narrow[i]);
  }
}

// Writes n doubles to the elements of t along w, as if rounded once.
inline void store_array(const double* values, const Tensor& t, const Walk& w,
                        cpu::Workspace::Scope& scope) {
  const Index n = w.count();
  const void* source = values;
  if (t.dtype() != DType::kFloat64) {
    float* narrow = scope.take<float>(n);
    const bool goes_on = t.dtype() != DType::kFloat32;
    for (Index i = 0; i < n; ++i) narrow[i] = goes_on ? round_to_odd(values[i]) : float(values[i]);
    source = narrow;
    if (goes_on) {
      auto* half = scope.take<std::uint16_t>(n);
      cpu::kernel_set<float>(cpu::kernels(), t.dtype()).store(narrow, half, n);
      source = half;
    }
  }
  with_storage(t.dtype(), [&]<class E>(std::type_identity<E>) {
    const E* from = static_cast<const E*>(source);
    E* to = static_cast<E*>(t.data());
    if (Index step; w.even(&step)) {
      for (Index i = 0; i < n; ++i) to[i * step] = from[i];
    } else {
      w.each([&](Index at) { to[at] = *from++; });
    }
  });
}

// The same value for all of a tensor, if there is one.
inline void fill_array(double value, const Tensor& t) {
  if (!t) return;
  cpu::Workspace::Scope scope(cpu::Workspace::local());
  const Walk w = whole_walk(t);
  store_array(scope.take_filled<double>(w.count(), value), t, w, scope);
}

}  // namespace normcore
