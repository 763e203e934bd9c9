// Normalization by what is near: an element over a function of its window of neighbours, along the
// channels or over space. The rules are those of ops.h.
#pragma once

#include <array>
#include <initializer_list>

#include "normcore/context.h"
#include "normcore/errors.h"
#include "normcore/tensor.h"

namespace normcore {

enum class Across { kChannels, kSpace };
// Where the longer side of a window of even size n is: below its element, [c - n/2, c + n/2 - 1],
// or above it, [c - n/2 + 1, c + n/2].
enum class EvenWindow { kTorch, kOnnx };

struct LocalResponseNormOptions {
  double alpha = 1e-4;
  double beta = 0.75;
  double k = 1;
  Across across = Across::kChannels;
  EvenWindow even_window = EvenWindow::kTorch;
  int channel_axis = 1;
};

// y = x * (k + alpha / n * sum of x^2 over the window)^-beta. n is size, or over space size to the
// number of spatial axes: also at the edges, where there is less in the window.
NORMCORE_API void local_response_norm(const ConstTensor& x, Index size, const Tensor& y,
                                      const LocalResponseNormOptions& options = {},
                                      const Context& context = {});
NORMCORE_API void local_response_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                               Index size, const Tensor& dx,
                                               const LocalResponseNormOptions& options = {},
                                               const Context& context = {});

// Sizes of a window over space: one for all spatial axes, or one for each.
struct WindowSizes {
  std::array<Index, kMaxDims> values;
  int count;

  WindowSizes(std::initializer_list<Index> sizes) : count(static_cast<int>(sizes.size())) {
    if (sizes.size() > values.size()) throw value_error("a window has more sizes than kMaxDims");
    int i = 0;
    for (Index n : sizes) values[i++] = n;
  }
};

struct LocalDivisiveNormOptions {
  WindowSizes summation_window;    // A; odd sizes
  WindowSizes suppression_window;  // B
  int channel_axis = 1;
};
// dx must be given, absent others are not computed.
struct LocalDivisiveGradients {
  Tensor dx, dsigma, dweight, dbias;
};

// v = x - mean_A(x), y = weight * v / sqrt(sigma^2 + mean_B(v^2)) + bias: means over all channels
// and over what of the window lies inside. sigma: () or (C,); weight, bias: (C,).
NORMCORE_API void local_divisive_norm(const ConstTensor& x, const ConstTensor& sigma,
                                      const ConstTensor& weight, const ConstTensor& bias,
                                      const Tensor& y, const LocalDivisiveNormOptions& options,
                                      const Context& context = {});
NORMCORE_API void local_divisive_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                               const ConstTensor& sigma, const ConstTensor& weight,
                                               const LocalDivisiveGradients& gradients,
                                               const LocalDivisiveNormOptions& options,
                                               const Context& context = {});

}  // namespace normcore
