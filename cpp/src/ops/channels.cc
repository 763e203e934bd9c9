// Batch, instance and group normalization and their adaptive relatives: what each allows, and which
// statistics it takes from where.
#include "ops/channel_call.h"

namespace normcore {
namespace {

template <class Method>
inline constexpr std::type_identity<Method> kMethod{};

const ConstTensor kAbsent{};

// Params that are scalars.
template <class Params>
auto constant(const Params& params) {
  return [params](Memory&) { return params; };
}

// ---- batch norm

ChannelCall batch_norm_call(const ConstTensor& x, const ConstTensor& weight,
                            const ConstTensor& bias, const BatchNormOptions& o) {
  ChannelCall call = ChannelCall::of(kMethod<BatchNorm>, x, weight, bias, o.channel_axis);
  call.buffers(o.running_mean, o.running_var, /*use=*/!o.training);
  check_eps(o.eps, /*positive=*/o.training);
  check_momentum(o.momentum);
  if (o.mask) call.count_by(o.mask);
  return call;
}

// ---- instance norm

ChannelCall instance_norm_call(const ConstTensor& x, const ConstTensor& weight,
                               const ConstTensor& bias, const InstanceNormOptions& o) {
  ChannelCall call = ChannelCall::of(kMethod<InstanceNorm>, x, weight, bias, o.channel_axis);
  if (!o.use_input_stats && !o.running_mean) {
    throw value_error(
        "running_mean is None, expected an array: use_input_stats=False takes statistics from it");
  }
  call.buffers(o.running_mean, o.running_var, /*use=*/!o.use_input_stats);
  check_eps(o.eps, false);
  check_momentum(o.momentum);
  if (o.use_input_stats && x.size() > 0 && call.space() == 1) {
    throw value_error("Expected more than 1 spatial element when training" + input_size(x));
  }
  return call;
}

// ---- group norm

ChannelCall group_norm_call(const ConstTensor& x, Index num_groups, const ConstTensor& weight,
                            const ConstTensor& bias, const GroupNormOptions& o) {
  ChannelCall call = ChannelCall::of(kMethod<GroupNorm>, x, weight, bias, o.channel_axis);
  check_eps(o.eps, false);
  if (num_groups < 1 || call.channels() % num_groups != 0) {
    throw value_error("num_groups is " + std::to_string(num_groups) +
                      ", expected a positive divisor of " + std::to_string(call.channels()) + ": " +
                      call.channel_shape.rule_text());
  }
  call.groups = num_groups;
  if (x.size() > 0 && call.samples() * (call.channels() / num_groups) * call.space() == 1) {
    throw value_error("Expected more than 1 value per channel when training" + input_size(x));
  }
  return call;
}

// Without positions a group is a run of channels, and to a channel's coefficients there would be
// one element: from so many channels on, groups are taken for rows, each with its own parameters.
constexpr Index kGroupRow = 64;

bool groups_are_rows(const ChannelCall& call, const Context& context) {
  return context.device == Device::kCpu && call.space() == 1 && call.x.size() > 0 &&
         call.channels() / call.groups >= kGroupRow;
}
template <bool kConst>
BasicTensor<kConst> from_element(const BasicTensor<kConst>& t, Index offset, int ndim) {
  auto* data = static_cast<std::conditional_t<kConst, const char*, char*>>(t.data());
  return BasicTensor<kConst>(data + offset * Index(size_of(t.dtype())), t.dtype(), ndim);
}
// (N, channels of a group)
template <bool kConst>
BasicTensor<kConst> rows_of_group(const ChannelCall& call, const BasicTensor<kConst>& t,
                                  Index group) {
  const Index n = call.channels() / call.groups, step = t.stride(call.channel_axis);
  BasicTensor<kConst> rows = from_element(t, group * n * step, 2);
  rows.set_dim(0, t.shape(0), t.stride(0));
  rows.set_dim(1, n, step);
  return rows;
}
// The channels of a group; of statistics (N, G) or (N, G, 2) its column.
template <bool kConst>
BasicTensor<kConst> part_of_group(const BasicTensor<kConst>& t, int axis, Index group, Index n) {
  if (!t) return t;
  BasicTensor<kConst> part = from_element(t, group * n * t.stride(axis), t.ndim());
  for (int a = 0; a < t.ndim(); ++a) part.set_dim(a, a == axis ? n : t.shape(a), t.stride(a));
  return part;
}

// ---- batch renorm

// In evaluation it is batch norm with the running standard deviation.
template <class Method>
ChannelCall batch_renorm_call(const ConstTensor& x, const ConstTensor& weight,
                              const ConstTensor& bias, const BatchRenormOptions& o) {
  ChannelCall call = ChannelCall::of(kMethod<Method>, x, weight, bias, o.channel_axis);
  if (!o.running_mean) throw value_error("running_mean is None, expected an array");
  call.var_name = "running_std";
  call.buffers(o.running_mean, o.running_std, /*use=*/true);
  call.given_std = true;
  check_eps(o.eps, /*positive=*/o.training);
  check_momentum(o.momentum);
  check_at_least("r_max", o.r_max, 1.0);
  check_at_least("d_max", o.d_max, 0.0);
  if (o.mask) call.count_by(o.mask);
  return call;
}
BatchRenorm::Params params_of(const BatchRenormOptions& o) { return {o.eps, o.r_max, o.d_max}; }

// ---- batch-instance norm

ChannelCall batch_instance_norm_call(const ConstTensor& x, const ConstTensor& rho,
                                     const ConstTensor& weight, const ConstTensor& bias,
                                     const BatchInstanceNormOptions& o) {
  ChannelCall call = ChannelCall::of(kMethod<BatchInstanceNorm>, x, weight, bias, o.channel_axis);
  if (!rho) throw type_error("rho is None, expected an array");
  check_shape("rho", rho, call.channel_shape);
  call.buffers(o.running_mean, o.running_var, /*use=*/!o.training);
  check_eps(o.eps, false);
  check_momentum(o.momentum);
  return call;
}
auto batch_instance_params(const ChannelCall& call, const ConstTensor& rho, double eps) {
  return [&call, &rho, eps](Memory& memory) {
    return BatchInstanceNorm::Params{eps, call.load_channels(rho, memory)};
  };
}

// ---- switchable norm

ChannelCall switchable_norm_call(const ConstTensor& x, const ConstTensor& mean_logits,
                                 const ConstTensor& var_logits, const ConstTensor& weight,
                                 const ConstTensor& bias, const SwitchableNormOptions& o) {
  ChannelCall call = ChannelCall::of(kMethod<SwitchableNorm>, x, weight, bias, o.channel_axis);
  ExpectedShape three;
  three.append(3);
  three.rule = "instance, layer, batch";
  if (!mean_logits) throw type_error("mean_logits is None, expected an array");
  if (!var_logits) throw type_error("var_logits is None, expected an array");
  check_shape("mean_logits", mean_logits, three);
  check_shape("var_logits", var_logits, three);
  call.buffers(o.running_mean, o.running_var, /*use=*/!o.training);
  check_eps(o.eps, false);
  check_momentum(o.momentum);
  return call;
}
auto switchable_params(const ConstTensor& mean_logits, const ConstTensor& var_logits, double eps) {
  return [&mean_logits, &var_logits, eps](Memory& memory) {
    auto weights = [&](const ConstTensor& logits) {
      double* w = memory.take<double>(3);
      memory.mixture_weights(memory.load<double>(logits, vector_walk(logits)), w);
      return w;
    };
    return SwitchableNorm::Params{eps, weights(mean_logits), weights(var_logits)};
  };
}

// ---- mean-only batch norm

ChannelCall mean_only_call(const ConstTensor& x, const ConstTensor& bias,
                           const MeanOnlyBatchNormOptions& o) {
  ChannelCall call = ChannelCall::of(kMethod<MeanOnlyBatchNorm>, x, kAbsent, bias, o.channel_axis);
  if (o.running_mean) check_shape("running_mean", o.running_mean, call.channel_shape);
  if (!o.training) call.given_mean = o.running_mean;
  check_momentum(o.momentum);
  if (o.mask) call.count_by(o.mask);
  return call;
}

// ---- batch norm with other scales

// In evaluation it is batch norm with the running scale for a standard deviation.
template <class Method, class Options>
ChannelCall scaled_call(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                        const Options& o) {
  ChannelCall call = ChannelCall::of(kMethod<Method>, x, weight, bias, o.channel_axis);
  call.var_name = "running_scale";
  call.buffers(o.running_mean, o.running_scale, /*use=*/!o.training);
  call.given_std = true;
  check_eps(o.eps, /*positive=*/o.training);
  check_momentum(o.momentum);
  return call;
}
void check_one_process(const Context& context) {
  if (!context.exchange) return;
  throw value_error("context.exchange is given, expected none: spreads are not merged");
}
LpBatchNorm::Params params_of(const LpBatchNormOptions& o) {
  if (!(o.p >= 1)) {
    throw value_error("p is " + std::to_string(o.p) + ", expected a number >= 1 or infinity");
  }
  return {o.eps, std::isinf(o.p) ? SpreadKind{0, 1} : SpreadKind{o.p, 0}};
}
TopKBatchNorm::Params params_of(const TopKBatchNormOptions& o) {
  check_at_least("k", o.k, Index(1));
  return {o.eps, {0, o.k}};
}

template <class Method, class Options>
void scaled_forward(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                    const Tensor& y, const Options& o, const StatsOut& stats,
                    const Context& context) {
  const typename Method::Params params = params_of(o);
  if (o.running_mean && !o.training) {
    channel_forward<BatchNorm>(scaled_call<BatchNorm>(x, weight, bias, o),
                               constant(BatchNorm::Params{0}), y, {}, stats, context);
    return;
  }
  check_one_process(context);
  const BufferUpdate updates[] = {
      {"running_mean", o.running_mean, BufferUpdate::kMean, o.momentum},
      {"running_scale", o.running_scale, BufferUpdate::kStandardDeviation, o.momentum}};
  channel_forward<Method>(scaled_call<Method>(x, weight, bias, o), constant(params), y,
                          moving(updates, static_cast<bool>(o.running_mean)), stats, context);
}

template <class Method, class Options>
void scaled_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& weight,
                     const Gradients& gradients, const Options& o, const SavedStats& stats,
                     const Context& context) {
  const typename Method::Params params = params_of(o);
  if (o.running_mean && !o.training) {
    channel_backward<BatchNorm>(scaled_call<BatchNorm>(x, weight, kAbsent, o),
                                constant(BatchNorm::Params{0}), dy, gradients, stats, context);
    return;
  }
  check_one_process(context);
  channel_backward<Method>(scaled_call<Method>(x, weight, kAbsent, o), constant(params), dy,
                           gradients, stats, context);
}

}  // namespace

void batch_norm(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                const Tensor& y, const BatchNormOptions& o, const StatsOut& stats,
                const Context& context) {
  const cpu::RunningCall running(context);
  const BufferUpdate updates[] = {
      {"running_mean", o.running_mean, BufferUpdate::kMean, o.momentum},
      {"running_var", o.running_var, BufferUpdate::kVariance, o.momentum, o.unbiased_running_var}};
  channel_forward<BatchNorm>(batch_norm_call(x, weight, bias, o),
                             constant(BatchNorm::Params{o.eps}), y,
                             moving(updates, o.training && o.running_mean), stats, context);
}

void batch_norm_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& weight,
                         const Gradients& gradients, const BatchNormOptions& o,
                         const SavedStats& stats, const Context& context) {
  const cpu::RunningCall running(context);
  channel_backward<BatchNorm>(batch_norm_call(x, weight, kAbsent, o),
                              constant(BatchNorm::Params{o.eps}), dy, gradients, stats, context);
}

void instance_norm(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                   const Tensor& y, const InstanceNormOptions& o, const StatsOut& stats,
                   const Context& context) {
  const cpu::RunningCall running(context);
  const BufferUpdate updates[] = {
      {"running_mean", o.running_mean, BufferUpdate::kMean, o.momentum},
      {"running_var", o.running_var, BufferUpdate::kVariance, o.momentum, o.unbiased_running_var}};
  channel_forward<InstanceNorm>(
      instance_norm_call(x, weight, bias, o), constant(InstanceNorm::Params{o.eps}), y,
      moving(updates, o.use_input_stats && o.running_mean), stats, context);
}

void instance_norm_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& weight,
                            const Gradients& gradients, const InstanceNormOptions& o,
                            const SavedStats& stats, const Context& context) {
  const cpu::RunningCall running(context);
  channel_backward<InstanceNorm>(instance_norm_call(x, weight, kAbsent, o),
                                 constant(InstanceNorm::Params{o.eps}), dy, gradients, stats,
                                 context);
}

void group_norm(const ConstTensor& x, Index num_groups, const ConstTensor& weight,
                const ConstTensor& bias, const Tensor& y, const GroupNormOptions& o,
                const StatsOut& stats, const Context& context) {
  const cpu::RunningCall running(context);
  const ChannelCall call = group_norm_call(x, num_groups, weight, bias, o);
  if (!groups_are_rows(call, context)) {
    channel_forward<GroupNorm>(call, constant(GroupNorm::Params{o.eps}), y, {}, stats, context);
    return;
  }
  check_channel_forward(call, y, {}, stats, context, {});
  const Index n = call.channels() / num_groups;
  LayerNormOptions rows;
  rows.axes = Axes{1};
  rows.eps = o.eps;
  for (Index g = 0; g < num_groups; ++g) {
    const StatsOut of_group{part_of_group(stats.mean, 1, g, 1),
                            part_of_group(stats.rstd, 1, g, 1),
                            part_of_group(stats.pooled, 1, g, 1),
                            {}};
    layer_norm(rows_of_group(call, x, g), part_of_group(weight, 0, g, n),
               part_of_group(bias, 0, g, n), rows_of_group(call, y, g), rows, of_group, context);
  }
}

void group_norm_backward(const ConstTensor& dy, const ConstTensor& x, Index num_groups,
                         const ConstTensor& weight, const Gradients& gradients,
                         const GroupNormOptions& o, const SavedStats& stats,
                         const Context& context) {
  const cpu::RunningCall running(context);
  const ChannelCall call = group_norm_call(x, num_groups, weight, kAbsent, o);
  if (!groups_are_rows(call, context)) {
    channel_backward<GroupNorm>(call, constant(GroupNorm::Params{o.eps}), dy, gradients, stats,
                                context);
    return;
  }
  check_channel_backward(call, dy, gradients, stats, context, {});
  const Index n = call.channels() / num_groups;
  LayerNormOptions rows;
  rows.axes = Axes{1};
  rows.eps = o.eps;
  for (Index g = 0; g < num_groups; ++g) {
    const Gradients of_group{rows_of_group(call, gradients.dx, g),
                             part_of_group(gradients.dweight, 0, g, n),
                             part_of_group(gradients.dbias, 0, g, n)};
    layer_norm_backward(rows_of_group(call, dy, g), rows_of_group(call, x, g),
                        part_of_group(weight, 0, g, n), of_group, rows, {},
                        part_of_group(stats.pooled, 1, g, 1), context);
  }
}

void batch_renorm(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                  const Tensor& y, const BatchRenormOptions& o, const StatsOut& stats,
                  const Context& context) {
  const cpu::RunningCall running(context);
  if (!o.training) {
    channel_forward<BatchNorm>(batch_renorm_call<BatchNorm>(x, weight, bias, o),
                               constant(BatchNorm::Params{0}), y, {}, stats, context);
    return;
  }
  const BufferUpdate updates[] = {
      {"running_mean", o.running_mean, BufferUpdate::kMean, o.momentum},
      {"running_std", o.running_std, BufferUpdate::kStandardDeviation, o.momentum}};
  channel_forward<BatchRenorm>(batch_renorm_call<BatchRenorm>(x, weight, bias, o),
                               constant(params_of(o)), y, updates, stats, context);
}

void batch_renorm_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& weight,
                           const Gradients& gradients, const BatchRenormOptions& o,
                           const SavedStats& stats, const Context& context) {
  const cpu::RunningCall running(context);
  if (!o.training) {
    channel_backward<BatchNorm>(batch_renorm_call<BatchNorm>(x, weight, kAbsent, o),
                                constant(BatchNorm::Params{0}), dy, gradients, stats, context);
    return;
  }
  if (!stats.pooled || !stats.given) {
    throw value_error(
        "stats is None, expected what the forward call returned: in training the running buffers "
        "have moved on");
  }
  channel_backward<BatchRenorm>(batch_renorm_call<BatchRenorm>(x, weight, kAbsent, o),
                                constant(params_of(o)), dy, gradients, stats, context);
}

void batch_instance_norm(const ConstTensor& x, const ConstTensor& rho, const ConstTensor& weight,
                         const ConstTensor& bias, const Tensor& y,
                         const BatchInstanceNormOptions& o, const StatsOut& stats,
                         const Context& context) {
  const cpu::RunningCall running(context);
  const BufferUpdate updates[] = {
      {"running_mean", o.running_mean, BufferUpdate::kMean, o.momentum},
      {"running_var", o.running_var, BufferUpdate::kVariance, o.momentum, o.unbiased_running_var}};
  const OwnParameter own[] = {{"rho", rho}};
  const ChannelCall call = batch_instance_norm_call(x, rho, weight, bias, o);
  channel_forward<BatchInstanceNorm>(call, batch_instance_params(call, rho, o.eps), y,
                                     moving(updates, o.training && o.running_mean), stats, context,
                                     own);
}

void batch_instance_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                  const ConstTensor& rho, const ConstTensor& weight,
                                  const Gradients& gradients, const Tensor& drho,
                                  const BatchInstanceNormOptions& o, const SavedStats& stats,
                                  const Context& context) {
  const cpu::RunningCall running(context);
  const ChannelCall call = batch_instance_norm_call(x, rho, weight, kAbsent, o);
  if (drho) check_shape("drho", drho, call.channel_shape);
  const OwnParameter own[] = {{"rho", rho, "drho", &drho}};
  channel_backward<BatchInstanceNorm>(call, batch_instance_params(call, rho, o.eps), dy, gradients,
                                      stats, context, OwnGradients{own, static_cast<bool>(drho)},
                                      [&](const double* by_channel, Memory& memory) {
                                        memory.store(by_channel, drho, vector_walk(drho));
                                      });
}

void switchable_norm(const ConstTensor& x, const ConstTensor& mean_logits,
                     const ConstTensor& var_logits, const ConstTensor& weight,
                     const ConstTensor& bias, const Tensor& y, const SwitchableNormOptions& o,
                     const StatsOut& stats, const Context& context) {
  const cpu::RunningCall running(context);
  const BufferUpdate updates[] = {
      {"running_mean", o.running_mean, BufferUpdate::kMean, o.momentum},
      {"running_var", o.running_var, BufferUpdate::kVariance, o.momentum, false}};
  const OwnParameter own[] = {{"mean_logits", mean_logits}, {"var_logits", var_logits}};
  channel_forward<SwitchableNorm>(switchable_norm_call(x, mean_logits, var_logits, weight, bias, o),
                                  switchable_params(mean_logits, var_logits, o.eps), y,
                                  moving(updates, o.training && o.running_mean), stats, context,
                                  own);
}

void switchable_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                              const ConstTensor& mean_logits, const ConstTensor& var_logits,
                              const ConstTensor& weight, const Gradients& gradients,
                              const Tensor& dmean_logits, const Tensor& dvar_logits,
                              const SwitchableNormOptions& o, const SavedStats& stats,
                              const Context& context) {
  const cpu::RunningCall running(context);
  const ChannelCall call = switchable_norm_call(x, mean_logits, var_logits, weight, kAbsent, o);
  const Tensor* outs[] = {&dmean_logits, &dvar_logits};
  const char* names[] = {"dmean_logits", "dvar_logits"};
  ExpectedShape three;
  three.append(3);
  three.rule = "that of the logits";
  for (int i = 0; i < 2; ++i) {
    if (*outs[i]) check_shape(names[i], *outs[i], three);
  }
  const OwnParameter own[] = {{"mean_logits", mean_logits, names[0], outs[0]},
                              {"var_logits", var_logits, names[1], outs[1]}};
  channel_backward<SwitchableNorm>(
      call, switchable_params(mean_logits, var_logits, o.eps), dy, gradients, stats, context,
      OwnGradients{own, dmean_logits || dvar_logits},
      [&](const double* by_channel, Memory& memory) {
        const Index channels = call.channels();
        for (int v = 0; v < 2; ++v) {
          if (!*outs[v]) continue;
          double* sums = memory.take<double>(3);
          memory.sum_each(by_channel + v * 3 * channels, 3, channels, sums);
          memory.store(sums, *outs[v], vector_walk(*outs[v]));
        }
      });
}

void mean_only_batch_norm(const ConstTensor& x, const ConstTensor& bias, const Tensor& y,
                          const MeanOnlyBatchNormOptions& o, const StatsOut& stats,
                          const Context& context) {
  const cpu::RunningCall running(context);
  const BufferUpdate updates[] = {
      {"running_mean", o.running_mean, BufferUpdate::kMean, o.momentum}};
  channel_forward<MeanOnlyBatchNorm>(mean_only_call(x, bias, o),
                                     constant(MeanOnlyBatchNorm::Params{}), y,
                                     moving(updates, o.training && o.running_mean), stats, context);
}

void mean_only_batch_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                   const Gradients& gradients, const MeanOnlyBatchNormOptions& o,
                                   const SavedStats& stats, const Context& context) {
  const cpu::RunningCall running(context);
  channel_backward<MeanOnlyBatchNorm>(mean_only_call(x, kAbsent, o),
                                      constant(MeanOnlyBatchNorm::Params{}), dy, gradients, stats,
                                      context);
}

void lp_batch_norm(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                   const Tensor& y, const LpBatchNormOptions& o, const StatsOut& stats,
                   const Context& context) {
  const cpu::RunningCall running(context);
  scaled_forward<LpBatchNorm>(x, weight, bias, y, o, stats, context);
}

void lp_batch_norm_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& weight,
                            const Gradients& gradients, const LpBatchNormOptions& o,
                            const SavedStats& stats, const Context& context) {
  const cpu::RunningCall running(context);
  scaled_backward<LpBatchNorm>(dy, x, weight, gradients, o, stats, context);
}

void topk_batch_norm(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                     const Tensor& y, const TopKBatchNormOptions& o, const StatsOut& stats,
                     const Context& context) {
  const cpu::RunningCall running(context);
  scaled_forward<TopKBatchNorm>(x, weight, bias, y, o, stats, context);
}

void topk_batch_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                              const ConstTensor& weight, const Gradients& gradients,
                              const TopKBatchNormOptions& o, const SavedStats& stats,
                              const Context& context) {
  const cpu::RunningCall running(context);
  scaled_backward<TopKBatchNorm>(dy, x, weight, gradients, o, stats, context);
}

}  // namespace normcore
