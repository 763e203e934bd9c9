// What every view must be before anything is read or written through it, wherever it comes from:
// NumPy, DLPack, the CUDA array interface, the C interface, a C++ program.
#pragma once

#include <cmath>
#include <cstdint>

#include "normcore/tensor.h"

namespace normcore {

// No address space is larger than 2^57 bytes, and no element smaller than two.
inline constexpr double kMaxElements = 0x1p56;

// How messages call a view, and what joins its name and that of its parts.
struct ViewName {
  const char* name;
  const char* dot = ".";
  ViewName(const char* n) : name(n) {}
  ViewName(const char* n, const char* d) : name(n), dot(d) {}
};

// Says what is wrong with a view that is not sound.
[[noreturn]] NORMCORE_API void refuse_view(ViewName name, const ConstTensor& t);
// Of what cannot even become a view.
[[noreturn]] NORMCORE_API void refuse_ndim(ViewName name, Index ndim);
[[noreturn]] NORMCORE_API void refuse_shape(ViewName name);
[[noreturn]] NORMCORE_API void refuse_alignment(ViewName name, DType dtype);

inline bool aligned(const void* data, DType dtype) {
  return (reinterpret_cast<std::uintptr_t>(data) & (size_of(dtype) - 1)) == 0;
}

// Whether sizes and strides describe memory that can exist, and the address can be it. In double,
// which no product overflows; the bounds need no last digit.
template <bool kConst>
inline bool is_sound(const BasicTensor<kConst>& t) {
  double size = 1, below = 0, above = 0;
  bool fits = t.ndim() >= 0, empty = false;
  for (int i = 0; i < t.ndim(); ++i) {
    const Index n = t.shape(i);
    const double stride = double(t.stride(i));
    fits = fits && n >= 0 && std::fabs(stride) <= kMaxElements;
    empty = empty || n == 0;
    if (n <= 1) continue;
    size *= double(n);
    const double reach = double(n - 1) * stride;
    (reach < 0 ? below : above) += reach;
  }
  if (!fits || !(size <= kMaxElements)) return false;
  if (empty) return true;
  const double bytes = double(size_of(t.dtype()));
  const double address = double(reinterpret_cast<std::uintptr_t>(t.data()));
  return t.data() && aligned(t.data(), t.dtype()) && address + below * bytes >= 0 &&
         address + above * bytes < 0x1p63;
}

template <bool kConst>
inline void check_view(ViewName name, const BasicTensor<kConst>& t) {
  if (!is_sound(t)) [[unlikely]]
    refuse_view(name, t);
}

// The view that others describe: without strides C-contiguous; with `in_bytes` strides of bytes.
template <class View, class Size>
View make_view(ViewName name, typename View::Pointer data, DType dtype, Index ndim,
               const Size* shape, const Size* strides, bool in_bytes = false) {
  if (ndim < 0 || ndim >= kMaxDims) refuse_ndim(name, ndim);
  if (!shape && ndim > 0) refuse_shape(name);
  View view(data, dtype, static_cast<int>(ndim));
  const Index unit = in_bytes ? static_cast<Index>(size_of(dtype)) : 1;
  const int shift = unit == 8 ? 3 : unit == 4 ? 2 : unit == 2 ? 1 : 0;
  Index odd = 0;
  for (int i = 0; i < view.ndim(); ++i) {
    const Index stride = strides ? Index{strides[i]} : 0;
    if (shape[i] > 1) odd |= stride & (unit - 1);
    view.set_dim(i, shape[i], stride >> shift);
  }
  check_view(name, view);
  if (odd != 0 && view.size() > 0) refuse_alignment(name, dtype);
  if (!strides) {
    // Now that no product of sizes can overflow.
    view.set_contiguous();
    check_view(name, view);
  }
  return view;
}

}  // namespace normcore
