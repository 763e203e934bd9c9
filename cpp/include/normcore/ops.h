// The operations. Every function writes into memory of the caller; an argument that is not given is
// a default-constructed tensor (weight 1, bias 0). Errors (errors.h) are thrown before anything is
// written. x and the outputs may have any strides; y may be x itself.
#pragma once

#include <array>
#include <initializer_list>

#include "normcore/context.h"
#include "normcore/errors.h"
#include "normcore/tensor.h"

namespace normcore {

// Axes of x, negative ones from the end.
struct Axes {
  std::array<int, kMaxDims> values;
  int count;

  Axes(std::initializer_list<int> axes) : count(static_cast<int>(axes.size())) {
    if (axes.size() > values.size()) throw value_error("axis names too many axes");
    int i = 0;
    for (int a : axes) values[i++] = a;
  }
};

// Where a forward call leaves its statistics. `pooled` is what the backward call takes: float64,
// the shape of `mean` with a last axis of 2 (mean, biased variance; for rms_norm 0 and the mean
// square). Shapes of mean and rstd: layer and rms norm as x with 1 along the axes; batch norm (C,);
// instance norm (N, C); group norm (N, num_groups).
struct StatsOut {
  Tensor mean, rstd, pooled;
};

// Gradients to be written; dx must be given, absent others are not computed.
struct Gradients {
  Tensor dx, dweight, dbias;
};

struct LayerNormOptions {
  Axes axes{-1};
  double eps = 1e-5;
  // With a residual, h = x + residual is written to `h`, which must be given too, and normalized.
  ConstTensor residual{};
  Tensor h{};
};
struct RMSNormOptions {
  Axes axes{-1};
  double eps = 1e-6;
  double weight_offset = 0;
  ConstTensor residual{};
  Tensor h{};
};
// Running buffers, both or neither, are moved in place by a training call and read by another one.
struct BatchNormOptions {
  Tensor running_mean{}, running_var{};
  bool training = false;
  double momentum = 0.1;
  double eps = 1e-5;
  bool unbiased_running_var = true;
  int channel_axis = 1;
};
struct InstanceNormOptions {
  Tensor running_mean{}, running_var{};
  bool use_input_stats = true;
  double momentum = 0.1;
  double eps = 1e-5;
  int channel_axis = 1;
};
struct GroupNormOptions {
  double eps = 1e-5;
  int channel_axis = 1;
};

NORMCORE_API void layer_norm(const ConstTensor& x, const ConstTensor& weight,
                             const ConstTensor& bias, const Tensor& y,
                             const LayerNormOptions& options = {}, const StatsOut& stats = {},
                             const Context& context = {});
NORMCORE_API void rms_norm(const ConstTensor& x, const ConstTensor& weight, const Tensor& y,
                           const RMSNormOptions& options = {}, const StatsOut& stats = {},
                           const Context& context = {});
NORMCORE_API void batch_norm(const ConstTensor& x, const ConstTensor& weight,
                             const ConstTensor& bias, const Tensor& y,
                             const BatchNormOptions& options = {}, const StatsOut& stats = {},
                             const Context& context = {});
NORMCORE_API void instance_norm(const ConstTensor& x, const ConstTensor& weight,
                                const ConstTensor& bias, const Tensor& y,
                                const InstanceNormOptions& options = {}, const StatsOut& stats = {},
                                const Context& context = {});
NORMCORE_API void group_norm(const ConstTensor& x, Index num_groups, const ConstTensor& weight,
                             const ConstTensor& bias, const Tensor& y,
                             const GroupNormOptions& options = {}, const StatsOut& stats = {},
                             const Context& context = {});

// Backward: x is what was normalized (h where there was a residual), `pooled` what the forward call
// wrote, or absent, which computes it again. `dh` is the gradient of h from elsewhere, added to dx.
NORMCORE_API void layer_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                      const ConstTensor& weight, const Gradients& gradients,
                                      const LayerNormOptions& options = {},
                                      const ConstTensor& dh = {}, const ConstTensor& pooled = {},
                                      const Context& context = {});
NORMCORE_API void rms_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                    const ConstTensor& weight, const Gradients& gradients,
                                    const RMSNormOptions& options = {}, const ConstTensor& dh = {},
                                    const ConstTensor& pooled = {}, const Context& context = {});
NORMCORE_API void batch_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                      const ConstTensor& weight, const Gradients& gradients,
                                      const BatchNormOptions& options = {},
                                      const ConstTensor& pooled = {}, const Context& context = {});
NORMCORE_API void instance_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                         const ConstTensor& weight, const Gradients& gradients,
                                         const InstanceNormOptions& options = {},
                                         const ConstTensor& pooled = {},
                                         const Context& context = {});
NORMCORE_API void group_norm_backward(const ConstTensor& dy, const ConstTensor& x, Index num_groups,
                                      const ConstTensor& weight, const Gradients& gradients,
                                      const GroupNormOptions& options = {},
                                      const ConstTensor& pooled = {}, const Context& context = {});

}  // namespace normcore
