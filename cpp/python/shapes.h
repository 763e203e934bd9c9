// Shapes of a call's statistics.
#pragma once

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

// (C,), (N, C) or (N, groups); wrong arguments are for the operation to refuse, and ask for no more
// memory than right ones.
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

}  // namespace normcore::python
