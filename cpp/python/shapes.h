// What the bindings make of axes and sizes alike: shapes of statistics, and axes and windows from
// lists. What is wrong with them is for the operations to refuse.
#pragma once

#include <algorithm>
#include <climits>
#include <span>
#include <string>

#include "normcore/local.h"
#include "normcore/ops.h"

namespace normcore::python {

inline ConstTensor kept_shape(const ConstTensor& x, const Axes& axes) {
  ConstTensor shape(nullptr, x.dtype(), x.ndim());
  for (int i = 0; i < x.ndim(); ++i) shape.set_dim(i, x.shape(i), 0);
  for (int i = 0; i < axes.count; ++i) {
    const int a = axes.values[i] < 0 ? axes.values[i] + x.ndim() : axes.values[i];
    if (a >= 0 && a < x.ndim()) shape.set_dim(a, 1, 0);
  }
  return shape;
}

// (C,), (N, C) or (N, groups). Wrong arguments ask for no more memory than right ones.
inline ConstTensor channel_shape(const ConstTensor& x, int channel_axis, bool per_sample,
                                 Index groups) {
  const int axis = channel_axis < 0 ? channel_axis + x.ndim() : channel_axis;
  const Index channels = axis >= 0 && axis < x.ndim() ? x.shape(axis) : 0;
  ConstTensor shape(nullptr, x.dtype(), per_sample ? 2 : 1);
  if (per_sample) shape.set_dim(0, x.ndim() > 0 ? x.shape(0) : 0, 0);
  const bool divides = groups > 0 && channels % groups == 0;
  shape.set_dim(per_sample ? 1 : 0, divides ? groups : channels, 0);
  return shape;
}

// Of pairs of mean and variance; `shape` is that of one value of each.
inline ConstTensor pairs_of(const ConstTensor& shape) {
  ConstTensor pairs(nullptr, DType::kFloat64, shape.ndim() + 1);
  for (int i = 0; i < shape.ndim(); ++i) pairs.set_dim(i, shape.shape(i), 0);
  pairs.set_dim(shape.ndim(), 2, 0);
  return pairs;
}

// Of spectral norm's u and v.
inline Index length_of(const ConstTensor& weight, int axis) {
  const int a = axis < 0 ? axis + weight.ndim() : axis;
  return a >= 0 && a < weight.ndim() ? weight.shape(a) : 0;
}
inline Index length_of_rest(const ConstTensor& weight, int axis) {
  Index n = 1;
  for (int a = 0; a < weight.ndim(); ++a) {
    n *= a == axis || a == axis + weight.ndim() ? 1 : weight.shape(a);
  }
  return n;
}

// Of an axis 32 bits say more than any array has.
inline int axis_of(Index axis) {
  constexpr Index kMost = INT_MAX;
  return static_cast<int>(std::clamp(axis, -kMost, kMost));
}
inline Axes axes_of(std::span<const Index> list) {
  Axes axes{};
  if (list.size() > axes.values.size()) throw value_error("axis names too many axes");
  for (Index a : list) axes.values[axes.count++] = axis_of(a);
  return axes;
}
inline WindowSizes window_of(std::span<const Index> list, const char* name) {
  WindowSizes window{};
  if (list.size() > window.values.size()) {
    throw value_error(std::string(name) + " has more sizes than an array has axes");
  }
  for (Index n : list) window.values[window.count++] = n;
  return window;
}

}  // namespace normcore::python
