// Divisive normalization by a mixture of the channels, forward and backward: the loop over tiles of
// pixels, for any parameters. divisive.cc says what these are; the arithmetic is in cpu/mixing.inl.
#pragma once

#include "normcore/context.h"
#include "normcore/tensor.h"

namespace normcore {

// y_i = g_i sgn(x_i) |x_i|^p D_i^(-e), with D_i = b_i^q + sum_j W_ij |x_j|^a over the channels of
// every pixel.
struct MixingCall {
  const char* op;
  const ConstTensor& x;
  int channel_axis;
  const ConstTensor& weights;  // W: (C, C)
  const ConstTensor& offset;   // b: (C,) or a single value
  const ConstTensor& gain;     // g likewise, or absent
  double offset_power;         // q
  double a, p, e;

  Index channels() const { return x.shape(channel_axis); }
};

// Sums over the pixels. Absent ones are null.
struct MixingGradients {
  double* weights;  // dL/dW: [C, C]
  double* offset;   // dL/d(b^q): [C]
  double* gain;     // [C]
  double* a;
  double* e;
};

// x must not be empty.
void mix_forward(const MixingCall& call, const Tensor& y, const Context& context);
void mix_backward(const MixingCall& call, const ConstTensor& dy, const Tensor& dx,
                  const MixingGradients& gradients, const Context& context);

}  // namespace normcore
