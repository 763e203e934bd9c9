// Divisive normalization: every element is divided by a power of a weighted sum over the channels
// of its position. The rules of ops.h hold here too.
#pragma once

#include "normcore/context.h"
#include "normcore/tensor.h"

namespace normcore {

struct DivisiveNormOptions {
  double exponent = 2;  // > 0
  double power = 1;     // > 0; the exponent itself: Heeger's form
  int channel_axis = 1;
};
struct GDNOptions {
  bool inverse = false;
  double alpha = 2;  // > 0
  double epsilon = 0.5;
  int channel_axis = 1;
};

// Gradients to be written; dx must be given, absent others are not computed. All lie on the device
// of the call, dalpha and depsilon too.
struct DivisiveGradients {
  Tensor dx, dweights{}, dsigma{}, dgain{};
};
struct GDNGradients {
  Tensor dx, dbeta{}, dgamma{};
  double* dalpha = nullptr;
  double* depsilon = nullptr;
};

// y_j = gain_j sgn(x_j) |x_j|^power / (sigma_j^exponent + sum_k weights_jk |x_k|^exponent)
//                                     ^(power / exponent)
// weights: (C, C); sigma, gain: (C,) or a single value. Weights and sigma are finite and not
// negative: looked at on the CPU alone, since no call waits for a device. Where all that is divided
// and divides is 0, y and its gradient are 0.
NORMCORE_API void divisive_norm(const ConstTensor& x, const ConstTensor& weights,
                                const ConstTensor& sigma, const ConstTensor& gain, const Tensor& y,
                                const DivisiveNormOptions& options = {},
                                const Context& context = {});
NORMCORE_API void divisive_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                         const ConstTensor& weights, const ConstTensor& sigma,
                                         const ConstTensor& gain,
                                         const DivisiveGradients& gradients,
                                         const DivisiveNormOptions& options = {},
                                         const Context& context = {});

// y_i = x_i / (beta_i + sum_j gamma_ij |x_j|^alpha)^epsilon, or times it (inverse).
// beta: (C,), gamma: (C, C), finite and not negative.
NORMCORE_API void gdn(const ConstTensor& x, const ConstTensor& beta, const ConstTensor& gamma,
                      const Tensor& y, const GDNOptions& options = {}, const Context& context = {});
NORMCORE_API void gdn_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& beta,
                               const ConstTensor& gamma, const GDNGradients& gradients,
                               const GDNOptions& options = {}, const Context& context = {});

}  // namespace normcore
