// Small arrays between the caller's memory and the pipeline's tables: parameters, running buffers,
// statistics and parameter gradients, of any dtype and strides.
#pragma once

#include <type_traits>

#include "cpu/dispatch.h"
#include "cpu/workspace.h"
#include "normcore/tensor.h"

namespace normcore {

// Which elements of a tensor, in which order: sizes and strides, outermost first.
struct Walk {
  int ndim = 0;
  Index size[kMaxDims];
  Index stride[kMaxDims];

  void append(Index n, Index step) {
    size[ndim] = n;
    stride[ndim++] = step;
  }
  Index count() const {
    Index n = 1;
    for (int i = 0; i < ndim; ++i) n *= size[i];
    return n;
  }
  bool contiguous() const {
    Index expected = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (size[i] != 1 && stride[i] != expected) return false;
      expected *= size[i];
    }
    return true;
  }
  // Calls f(offset) for every element.
  template <class F>
  void each(F&& f) const {
    walk(0, 0, f);
  }

 private:
  template <class F>
  void walk(int d, Index offset, F& f) const {
    if (d == ndim) return f(offset);
    for (Index i = 0; i < size[d]; ++i) walk(d + 1, offset + i * stride[d], f);
  }
};

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

// Writes n doubles to the elements of t along w, rounded once for float64 and float32.
inline void store_array(const double* values, const Tensor& t, const Walk& w,
                        cpu::Workspace::Scope& scope) {
  const Index n = w.count();
  const void* source = values;
  if (t.dtype() != DType::kFloat64) {
    float* narrow = scope.take<float>(n);
    for (Index i = 0; i < n; ++i) narrow[i] = float(values[i]);
    source = narrow;
    if (t.dtype() != DType::kFloat32) {
      auto* half = scope.take<std::uint16_t>(n);
      cpu::kernel_set<float>(cpu::kernels(), t.dtype()).store(narrow, half, n);
      source = half;
    }
  }
  with_storage(t.dtype(), [&]<class E>(std::type_identity<E>) {
    Index i = 0;
    w.each([&](Index at) { static_cast<E*>(t.data())[at] = static_cast<const E*>(source)[i++]; });
  });
}

// All of a tensor.
template <bool kConst>
Walk whole_walk(const BasicTensor<kConst>& t) {
  Walk w;
  for (int i = 0; i < t.ndim(); ++i) w.append(t.shape(i), t.stride(i));
  return w;
}

// A one-dimensional tensor.
template <bool kConst>
Walk vector_walk(const BasicTensor<kConst>& t) {
  Walk w;
  w.append(t.shape(0), t.stride(0));
  return w;
}

}  // namespace normcore
