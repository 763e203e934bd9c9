// Which elements of an array are taken, and in which order.
#pragma once

#include "normcore/tensor.h"

namespace normcore {

// Sizes and strides, outermost first.
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
  // Whether element i lies at i * step.
  bool even(Index* step) const {
    Index expected = 0;
    bool known = false;
    *step = 1;
    for (int i = ndim - 1; i >= 0; --i) {
      if (size[i] == 1) continue;
      if (!known) *step = expected = stride[i];
      known = true;
      if (stride[i] != expected) return false;
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
