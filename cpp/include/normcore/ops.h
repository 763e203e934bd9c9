// The operations. Every function writes into memory of the caller; an argument that is not given is
// a default-constructed tensor (weight 1, bias 0). Errors (errors.h) are thrown before anything is
// written. x and the outputs may have any strides; y may be x itself.
#pragma once

#include <array>
#include <initializer_list>
#include <optional>

#include "normcore/context.h"
#include "normcore/errors.h"
#include "normcore/tensor.h"

namespace normcore {

// Axes of x, negative ones from the end.
struct Axes {
  std::array<int, kMaxDims> values{};  // copied whole
  int count;

  Axes(std::initializer_list<int> axes) : count(static_cast<int>(axes.size())) {
    if (axes.size() > values.size()) throw value_error("axis names too many axes");
    int i = 0;
    for (int a : axes) values[i++] = a;
  }
};

// Where a forward call leaves its statistics. Shapes of mean and rstd: layer and rms norm as x with
// 1 along the axes; batch norm and renorm (C,); instance norm (N, C); group norm (N, num_groups).
// `pooled` and `given` are what the backward call takes: float64 pairs of mean and biased variance.
// `pooled` has the shape of `mean` with a last axis of 2 (for rms_norm 0 and the mean square, for
// Lp and top-k batch norm the mean and the spread before eps and factors); for batch-instance and
// switchable norm (N, C, 2), and they have no mean and rstd. `given`, (C, 2), are running
// statistics that were used beside statistics of x.
struct StatsOut {
  Tensor mean{}, rstd{}, pooled{}, given{};
};
struct SavedStats {
  ConstTensor pooled, given;
  SavedStats(const ConstTensor& p = {}, const ConstTensor& g = {}) : pooled(p), given(g) {}
  SavedStats(const Tensor& p) : pooled(p) {}
};

// Gradients to be written; dx must be given, absent others are not computed.
struct Gradients {
  Tensor dx, dweight, dbias;
};

struct LayerNormOptions {
  Axes axes{-1};
  double eps = 1e-5;
  // With a residual, h = x + residual is written to `h`, which must be given too, and normalized.
  // It may be x itself or the residual itself.
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
// Running buffers, both or neither, are moved in place by a training call, and read by any other:
// those may then be const.
struct BatchNormOptions {
  Buffer running_mean{}, running_var{};
  bool training = false;
  double momentum = 0.1;
  double eps = 1e-5;
  bool unbiased_running_var = true;
  int channel_axis = 1;
  // What each position counts in the statistics: numbers >= 0, float32 (float64 for float64 x), of
  // x's shape without the channel axis; zero strides repeat. CPU only. With weights w an unbiased
  // variance has the divisor c - sum(w^2) / c, c = sum(w): n - 1 where they are 0 and 1.
  ConstTensor mask{};
};
struct InstanceNormOptions {
  Buffer running_mean{}, running_var{};
  bool use_input_stats = true;
  double momentum = 0.1;
  double eps = 1e-5;
  int channel_axis = 1;
  bool unbiased_running_var = true;
};
struct GroupNormOptions {
  double eps = 1e-5;
  int channel_axis = 1;
};
// The running standard deviation, not the variance.
struct BatchRenormOptions {
  Buffer running_mean{}, running_std{};
  bool training = false;
  double momentum = 0.01;
  double r_max = 3, d_max = 5;
  double eps = 1e-5;
  int channel_axis = 1;
  ConstTensor mask{};  // as in BatchNormOptions
};
struct BatchInstanceNormOptions {
  Buffer running_mean{}, running_var{};
  bool training = false;
  double momentum = 0.1;
  double eps = 1e-5;
  int channel_axis = 1;
  bool unbiased_running_var = true;  // switchable norm's is biased whatever this says
};
using SwitchableNormOptions = BatchInstanceNormOptions;
struct MeanOnlyBatchNormOptions {
  Buffer running_mean{};
  bool training = false;
  double momentum = 0.1;
  int channel_axis = 1;
  ConstTensor mask{};  // as in BatchNormOptions
};
// The running scale holds s itself: y = (x - running_mean) / running_scale. p >= 1, also infinite.
struct LpBatchNormOptions {
  double p = 1;
  Buffer running_mean{}, running_scale{};
  bool training = false;
  double momentum = 0.1;
  double eps = 1e-5;
  int channel_axis = 1;
};
struct TopKBatchNormOptions {
  Index k = 10;
  Buffer running_mean{}, running_scale{};
  bool training = false;
  double momentum = 0.1;
  double eps = 1e-5;
  int channel_axis = 1;
};
struct NormalizeOptions {
  double ord = 2;  // 1, 2 or infinite
  Axes axes{-1};
  double eps = 1e-12;
};
// Over no axes named: over all of them.
struct NormOptions {
  double ord = 2;  // 1, 2 or infinite
  std::optional<Axes> axes{};
};
struct MomentsOptions {
  std::optional<Axes> axes{};
  // What each element counts, as in BatchNormOptions; of x's shape. On a device too, where values
  // are not checked: what is not above 0 does not count.
  ConstTensor mask{};
};
// Each of x's shape with 1 along the axes and of any dtype, float64 to merge them, or absent.
struct MomentsOut {
  Tensor count{}, mean{}, m2{};
};
struct WeightNormOptions {
  std::optional<int> axis = 0;  // kept; none: one norm of everything
  double eps = 0;
};

// y = weight * (x - mean) / sqrt(var + eps) + bias, with the mean and the biased variance of x over
// the axes; weight and bias have x's sizes along them (Ba, Kiros and Hinton 2016).
NORMCORE_API void layer_norm(const ConstTensor& x, const ConstTensor& weight,
                             const ConstTensor& bias, const Tensor& y,
                             const LayerNormOptions& options = {}, const StatsOut& stats = {},
                             const Context& context = {});
// y = (weight + weight_offset) * x / sqrt(mean of x^2 over the axes + eps) (Zhang and Sennrich
// 2019).
NORMCORE_API void rms_norm(const ConstTensor& x, const ConstTensor& weight, const Tensor& y,
                           const RMSNormOptions& options = {}, const StatsOut& stats = {},
                           const Context& context = {});
// y = weight * (x - mean) / sqrt(var + eps) + bias per channel, with statistics of the batch and
// all positions, or the running ones; weight and bias: (C,) (Ioffe and Szegedy 2015).
NORMCORE_API void batch_norm(const ConstTensor& x, const ConstTensor& weight,
                             const ConstTensor& bias, const Tensor& y,
                             const BatchNormOptions& options = {}, const StatsOut& stats = {},
                             const Context& context = {});
// As batch norm, with statistics of each sample's channel (Ulyanov, Vedaldi and Lempitsky 2016).
NORMCORE_API void instance_norm(const ConstTensor& x, const ConstTensor& weight,
                                const ConstTensor& bias, const Tensor& y,
                                const InstanceNormOptions& options = {}, const StatsOut& stats = {},
                                const Context& context = {});
// The same with statistics of a sample's group of channels; num_groups divides C (Wu and He 2018).
NORMCORE_API void group_norm(const ConstTensor& x, Index num_groups, const ConstTensor& weight,
                             const ConstTensor& bias, const Tensor& y,
                             const GroupNormOptions& options = {}, const StatsOut& stats = {},
                             const Context& context = {});

// In training y = weight * ((x - mean) / s * r + d) + bias with s = sqrt(var + eps),
// r = s / running_std and d = (mean - running_mean) / running_std, which are clipped to
// [1 / r_max, r_max] and [-d_max, d_max] and have no gradient; else batch norm with the running
// statistics (Ioffe 2017).
NORMCORE_API void batch_renorm(const ConstTensor& x, const ConstTensor& weight,
                               const ConstTensor& bias, const Tensor& y,
                               const BatchRenormOptions& options, const StatsOut& stats = {},
                               const Context& context = {});
// y = weight * (rho * batch norm + (1 - rho) * instance norm) + bias, both without weight and bias;
// rho: (C,), used as given (Nam and Kim 2018).
NORMCORE_API void batch_instance_norm(const ConstTensor& x, const ConstTensor& rho,
                                      const ConstTensor& weight, const ConstTensor& bias,
                                      const Tensor& y, const BatchInstanceNormOptions& options = {},
                                      const StatsOut& stats = {}, const Context& context = {});
// y = weight * (x - mean) / sqrt(var + eps) + bias, where mean and variance are sums of those of
// instance, layer and batch, weighted by the softmax of the logits: (3,), in this order (Luo et al.
// 2019).
NORMCORE_API void switchable_norm(const ConstTensor& x, const ConstTensor& mean_logits,
                                  const ConstTensor& var_logits, const ConstTensor& weight,
                                  const ConstTensor& bias, const Tensor& y,
                                  const SwitchableNormOptions& options = {},
                                  const StatsOut& stats = {}, const Context& context = {});
// y = x - mean + bias per channel (Salimans and Kingma 2016).
NORMCORE_API void mean_only_batch_norm(const ConstTensor& x, const ConstTensor& bias,
                                       const Tensor& y,
                                       const MeanOnlyBatchNormOptions& options = {},
                                       const StatsOut& stats = {}, const Context& context = {});
// y = weight * (x - mean) / s + bias per channel, with s = sqrt(pi / 2) * mean |x - mean| + eps for
// p = 1, max |x - mean| + eps for an infinite p, else (mean |x - mean|^p + eps)^(1 / p) (Hoffer et
// al. 2018).
NORMCORE_API void lp_batch_norm(const ConstTensor& x, const ConstTensor& weight,
                                const ConstTensor& bias, const Tensor& y,
                                const LpBatchNormOptions& options = {}, const StatsOut& stats = {},
                                const Context& context = {});
// The same with s = c * mean of the k largest |x - mean| + eps, where c makes it the standard
// deviation of normal values.
NORMCORE_API void topk_batch_norm(const ConstTensor& x, const ConstTensor& weight,
                                  const ConstTensor& bias, const Tensor& y,
                                  const TopKBatchNormOptions& options = {},
                                  const StatsOut& stats = {}, const Context& context = {});
// y = x / max(norm, eps) over the axes.
NORMCORE_API void normalize(const ConstTensor& x, const Tensor& y,
                            const NormalizeOptions& options = {}, const Context& context = {});
// w = g * v / |v|, the norm being over all axes but the kept one. g: one value for each position of
// the kept axis, with or without axes of 1 beside it, or a single one.
NORMCORE_API void weight_norm(const ConstTensor& v, const ConstTensor& g, const Tensor& w,
                              const WeightNormOptions& options = {}, const Context& context = {});

// The norm over the axes; y: x's shape with 1 along them, of any dtype. No square overflows.
NORMCORE_API void norm(const ConstTensor& x, const Tensor& y, const NormOptions& options = {},
                       const Context& context = {});
// Number (or sum of the mask), mean, and sum of squared deviations from the mean over the axes; of
// nothing zeros.
NORMCORE_API void moments(const ConstTensor& x, const MomentsOut& out,
                          const MomentsOptions& options = {}, const Context& context = {});

// Backward: x is what was normalized (h where there was a residual), `stats` what the forward call
// wrote, or absent, which computes it again. `dh` is the gradient of h from elsewhere, added to dx.
NORMCORE_API void layer_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                      const ConstTensor& weight, const Gradients& gradients,
                                      const LayerNormOptions& options = {},
                                      const ConstTensor& dh = {}, const SavedStats& stats = {},
                                      const Context& context = {});
NORMCORE_API void rms_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                    const ConstTensor& weight, const Gradients& gradients,
                                    const RMSNormOptions& options = {}, const ConstTensor& dh = {},
                                    const SavedStats& stats = {}, const Context& context = {});
NORMCORE_API void batch_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                      const ConstTensor& weight, const Gradients& gradients,
                                      const BatchNormOptions& options = {},
                                      const SavedStats& stats = {}, const Context& context = {});
NORMCORE_API void instance_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                         const ConstTensor& weight, const Gradients& gradients,
                                         const InstanceNormOptions& options = {},
                                         const SavedStats& stats = {}, const Context& context = {});
NORMCORE_API void group_norm_backward(const ConstTensor& dy, const ConstTensor& x, Index num_groups,
                                      const ConstTensor& weight, const Gradients& gradients,
                                      const GroupNormOptions& options = {},
                                      const SavedStats& stats = {}, const Context& context = {});
// In training `stats` must be given: the buffers have moved on.
NORMCORE_API void batch_renorm_backward(const ConstTensor& dy, const ConstTensor& x,
                                        const ConstTensor& weight, const Gradients& gradients,
                                        const BatchRenormOptions& options,
                                        const SavedStats& stats = {}, const Context& context = {});
// drho: (C,) or absent.
NORMCORE_API void batch_instance_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                               const ConstTensor& rho, const ConstTensor& weight,
                                               const Gradients& gradients, const Tensor& drho,
                                               const BatchInstanceNormOptions& options = {},
                                               const SavedStats& stats = {},
                                               const Context& context = {});
// dmean_logits, dvar_logits: (3,), both or neither.
NORMCORE_API void switchable_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                           const ConstTensor& mean_logits,
                                           const ConstTensor& var_logits, const ConstTensor& weight,
                                           const Gradients& gradients, const Tensor& dmean_logits,
                                           const Tensor& dvar_logits,
                                           const SwitchableNormOptions& options = {},
                                           const SavedStats& stats = {},
                                           const Context& context = {});
NORMCORE_API void mean_only_batch_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                                const Gradients& gradients,
                                                const MeanOnlyBatchNormOptions& options = {},
                                                const SavedStats& stats = {},
                                                const Context& context = {});
NORMCORE_API void lp_batch_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                         const ConstTensor& weight, const Gradients& gradients,
                                         const LpBatchNormOptions& options = {},
                                         const SavedStats& stats = {}, const Context& context = {});
NORMCORE_API void topk_batch_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                           const ConstTensor& weight, const Gradients& gradients,
                                           const TopKBatchNormOptions& options = {},
                                           const SavedStats& stats = {},
                                           const Context& context = {});
NORMCORE_API void normalize_backward(const ConstTensor& dy, const ConstTensor& x, const Tensor& dx,
                                     const NormalizeOptions& options = {},
                                     const Context& context = {});
// dg: as g, or absent.
NORMCORE_API void weight_norm_backward(const ConstTensor& dw, const ConstTensor& v,
                                       const ConstTensor& g, const Tensor& dv, const Tensor& dg,
                                       const WeightNormOptions& options = {},
                                       const Context& context = {});

}  // namespace normcore
