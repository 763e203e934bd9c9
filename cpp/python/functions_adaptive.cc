// As functions.cc, for the adaptive methods and for weights.
#include "results.h"

namespace normcore::python {
namespace {

// ---- batch renorm

BatchRenormOptions renorm_options(const Buffers& buffers, bool training, py::handle r_max,
                                  py::handle d_max, py::handle eps, py::handle channel_axis) {
  BatchRenormOptions options{buffers.mean.tensor(), buffers.var.tensor(), training};
  options.r_max = as_double(r_max, "r_max");
  options.d_max = as_double(d_max, "d_max");
  options.eps = as_double(eps, "eps");
  options.channel_axis = as_axis(channel_axis, "channel_axis");
  return options;
}

py::object batch_renorm_(py::handle x_, py::handle weight_, py::handle bias_,
                         py::handle running_mean, py::handle running_std, py::handle training_,
                         py::handle momentum, py::handle r_max, py::handle d_max, py::handle eps,
                         py::handle channel_axis, py::handle mask_, py::handle out,
                         py::handle return_stats_) {
  const bool return_stats = as_bool(return_stats_, "return_stats");
  const bool training = as_bool(training_, "training");
  const MaskedArguments a(x_, weight_, bias_, mask_, channel_axis);
  const Buffers buffers(running_mean, running_std, training, "running_std");
  BatchRenormOptions options = renorm_options(buffers, training, r_max, d_max, eps, channel_axis);
  options.momentum = as_double(momentum, "momentum");
  options.mask = a.mask.tensor();
  Output y(out, a.x);
  const ConstTensor shape = channel_shape(a.x, options.channel_axis, false, 0);
  Statistics stats(return_stats, a.x, shape);
  if (training) stats.add_given(a.x, shape);
  const Context context = call_context(a.x, {{"weight", a.weight},
                                             {"bias", a.bias},
                                             {"running_mean", buffers.mean},
                                             {"running_std", buffers.var},
                                             {"mask", a.mask},
                                             {"out", y.array()}});
  unlocked(a.x.tensor().size(), &batch_renorm, a.x.tensor(), a.weight.tensor(), a.bias.tensor(),
           y.tensor, options, stats.out, context);
  return results(y, stats, return_stats);
}

py::object batch_renorm_backward_(py::handle dy_, py::handle x_, py::handle weight_,
                                  py::handle bias_, py::handle running_mean, py::handle running_std,
                                  py::handle training, py::handle r_max, py::handle d_max,
                                  py::handle eps, py::handle channel_axis, py::handle mask_,
                                  py::handle pooled, py::handle given, py::handle out) {
  const MaskedArguments a(x_, weight_, bias_, mask_, channel_axis);
  const Buffers buffers(running_mean, running_std, false, "running_std");
  BatchRenormOptions options =
      renorm_options(buffers, as_bool(training, "training"), r_max, d_max, eps, channel_axis);
  options.mask = a.mask.tensor();
  ChannelGradient g(dy_, a, pooled, given, out);
  const Context context = call_context(a.x, {{"dy", g.dy},
                                             {"weight", a.weight},
                                             {"bias", a.bias},
                                             {"running_mean", buffers.mean},
                                             {"running_std", buffers.var},
                                             {"mask", a.mask},
                                             {"stats.pooled", g.pooled},
                                             {"stats.given", g.given},
                                             {"out", g.dx.array()}});
  unlocked(a.x.tensor().size(), &batch_renorm_backward, g.dy.tensor(), a.x.tensor(),
           a.weight.tensor(), g.gradients(), options, g.stats(), context);
  return g.tuple();
}

// ---- batch-instance and switchable norm

BatchInstanceNormOptions mixed_options(const Buffers& buffers, bool training, py::handle eps,
                                       py::handle channel_axis) {
  BatchInstanceNormOptions options{buffers.mean.tensor(), buffers.var.tensor(), training};
  options.eps = as_double(eps, "eps");
  options.channel_axis = as_axis(channel_axis, "channel_axis");
  return options;
}

// Statistics of every sample and channel, and the buffers where they served.
struct MixedStatistics : Statistics {
  MixedStatistics(bool wanted, const Array& x, const BatchInstanceNormOptions& options)
      : Statistics(wanted, x, channel_shape(x, options.channel_axis, true, 0), kPooled) {
    if (options.running_mean && !options.training) {
      add_given(x, channel_shape(x, options.channel_axis, false, 0));
    }
  }
};

py::object batch_instance_norm_(py::handle x_, py::handle rho_, py::handle weight_,
                                py::handle bias_, py::handle running_mean, py::handle running_var,
                                py::handle training_, py::handle momentum, py::handle eps,
                                py::handle unbiased, py::handle channel_axis, py::handle out,
                                py::handle return_stats_) {
  const bool return_stats = as_bool(return_stats_, "return_stats");
  const bool training = as_bool(training_, "training");
  const ChannelArguments a(x_, weight_, bias_);
  const Array rho(rho_, "rho");
  const Buffers buffers(running_mean, running_var, training);
  BatchInstanceNormOptions options = mixed_options(buffers, training, eps, channel_axis);
  options.momentum = as_double(momentum, "momentum");
  options.unbiased_running_var = as_bool(unbiased, "unbiased_running_var");
  Output y(out, a.x);
  MixedStatistics stats(return_stats, a.x, options);
  const Context context = call_context(a.x, {{"rho", rho},
                                             {"weight", a.weight},
                                             {"bias", a.bias},
                                             {"running_mean", buffers.mean},
                                             {"running_var", buffers.var},
                                             {"out", y.array()}});
  unlocked(a.x.tensor().size(), &batch_instance_norm, a.x.tensor(), rho.tensor(), a.weight.tensor(),
           a.bias.tensor(), y.tensor, options, stats.out, context);
  return results(y, stats, return_stats);
}

py::object batch_instance_norm_backward_(py::handle dy_, py::handle x_, py::handle rho_,
                                         py::handle weight_, py::handle bias_,
                                         py::handle running_mean, py::handle running_var,
                                         py::handle training, py::handle eps,
                                         py::handle channel_axis, py::handle pooled,
                                         py::handle given, py::handle out) {
  const ChannelArguments a(x_, weight_, bias_);
  const Array rho(rho_, "rho");
  const Buffers buffers(running_mean, running_var, false);
  const BatchInstanceNormOptions options =
      mixed_options(buffers, as_bool(training, "training"), eps, channel_axis);
  ChannelGradient g(dy_, a, pooled, given, out);
  ParameterGradient drho(rho);
  const Context context = call_context(a.x, {{"dy", g.dy},
                                             {"rho", rho},
                                             {"weight", a.weight},
                                             {"bias", a.bias},
                                             {"running_mean", buffers.mean},
                                             {"running_var", buffers.var},
                                             {"stats.pooled", g.pooled},
                                             {"stats.given", g.given},
                                             {"out", g.dx.array()}});
  unlocked(a.x.tensor().size(), &batch_instance_norm_backward, g.dy.tensor(), a.x.tensor(),
           rho.tensor(), a.weight.tensor(), g.gradients(), drho.tensor, options, g.stats(),
           context);
  return py::make_tuple(g.dx.result.take(), drho.result.take(), g.dweight.result.take(),
                        g.dbias.result.take());
}

py::object switchable_norm_(py::handle x_, py::handle mean_logits_, py::handle var_logits_,
                            py::handle weight_, py::handle bias_, py::handle running_mean,
                            py::handle running_var, py::handle training_, py::handle momentum,
                            py::handle eps, py::handle channel_axis, py::handle out,
                            py::handle return_stats_) {
  const bool return_stats = as_bool(return_stats_, "return_stats");
  const bool training = as_bool(training_, "training");
  const ChannelArguments a(x_, weight_, bias_);
  const Array mean_logits(mean_logits_, "mean_logits"), var_logits(var_logits_, "var_logits");
  const Buffers buffers(running_mean, running_var, training);
  SwitchableNormOptions options = mixed_options(buffers, training, eps, channel_axis);
  options.momentum = as_double(momentum, "momentum");
  Output y(out, a.x);
  MixedStatistics stats(return_stats, a.x, options);
  const Context context = call_context(a.x, {{"mean_logits", mean_logits},
                                             {"var_logits", var_logits},
                                             {"weight", a.weight},
                                             {"bias", a.bias},
                                             {"running_mean", buffers.mean},
                                             {"running_var", buffers.var},
                                             {"out", y.array()}});
  unlocked(a.x.tensor().size(), &switchable_norm, a.x.tensor(), mean_logits.tensor(),
           var_logits.tensor(), a.weight.tensor(), a.bias.tensor(), y.tensor, options, stats.out,
           context);
  return results(y, stats, return_stats);
}

py::object switchable_norm_backward_(py::handle dy_, py::handle x_, py::handle mean_logits_,
                                     py::handle var_logits_, py::handle weight_, py::handle bias_,
                                     py::handle running_mean, py::handle running_var,
                                     py::handle training, py::handle eps, py::handle channel_axis,
                                     py::handle pooled, py::handle given, py::handle out) {
  const ChannelArguments a(x_, weight_, bias_);
  const Array mean_logits(mean_logits_, "mean_logits"), var_logits(var_logits_, "var_logits");
  const Buffers buffers(running_mean, running_var, false);
  const SwitchableNormOptions options =
      mixed_options(buffers, as_bool(training, "training"), eps, channel_axis);
  ChannelGradient g(dy_, a, pooled, given, out);
  ParameterGradient dmean_logits(mean_logits), dvar_logits(var_logits);
  const Context context = call_context(a.x, {{"dy", g.dy},
                                             {"mean_logits", mean_logits},
                                             {"var_logits", var_logits},
                                             {"weight", a.weight},
                                             {"bias", a.bias},
                                             {"running_mean", buffers.mean},
                                             {"running_var", buffers.var},
                                             {"stats.pooled", g.pooled},
                                             {"stats.given", g.given},
                                             {"out", g.dx.array()}});
  unlocked(a.x.tensor().size(), &switchable_norm_backward, g.dy.tensor(), a.x.tensor(),
           mean_logits.tensor(), var_logits.tensor(), a.weight.tensor(), g.gradients(),
           dmean_logits.tensor, dvar_logits.tensor, options, g.stats(), context);
  return py::make_tuple(g.dx.result.take(), dmean_logits.result.take(), dvar_logits.result.take(),
                        g.dweight.result.take(), g.dbias.result.take());
}

// ---- mean-only batch norm

py::object mean_only_batch_norm_(py::handle x_, py::handle bias_, py::handle running_mean_,
                                 py::handle training_, py::handle momentum, py::handle channel_axis,
                                 py::handle mask_, py::handle out, py::handle return_stats_) {
  const bool return_stats = as_bool(return_stats_, "return_stats");
  const bool training = as_bool(training_, "training");
  const MaskedArguments a(x_, py::none(), bias_, mask_, channel_axis);
  const Array running_mean = training ? Array::writable(running_mean_, "running_mean")
                                      : Array::optional(running_mean_, "running_mean");
  const MeanOnlyBatchNormOptions options{running_mean.tensor(), training,
                                         as_double(momentum, "momentum"), a.channel_axis,
                                         a.mask.tensor()};
  Output y(out, a.x);
  Statistics stats(return_stats, a.x, channel_shape(a.x, options.channel_axis, false, 0),
                   Statistics::kMean | Statistics::kPooled);
  const Context context = call_context(
      a.x,
      {{"bias", a.bias}, {"running_mean", running_mean}, {"mask", a.mask}, {"out", y.array()}});
  unlocked(a.x.tensor().size(), &mean_only_batch_norm, a.x.tensor(), a.bias.tensor(), y.tensor,
           options, stats.out, context);
  return results(y, stats, return_stats);
}

py::object mean_only_batch_norm_backward_(py::handle dy_, py::handle x_, py::handle bias_,
                                          py::handle running_mean_, py::handle training,
                                          py::handle channel_axis, py::handle mask_,
                                          py::handle pooled, py::handle out) {
  const MaskedArguments a(x_, py::none(), bias_, mask_, channel_axis);
  const Array running_mean = Array::optional(running_mean_, "running_mean");
  MeanOnlyBatchNormOptions options{running_mean.tensor(), as_bool(training, "training")};
  options.channel_axis = a.channel_axis;
  options.mask = a.mask.tensor();
  ChannelGradient g(dy_, a, pooled, py::none(), out);
  const Context context = call_context(a.x, {{"dy", g.dy},
                                             {"bias", a.bias},
                                             {"running_mean", running_mean},
                                             {"mask", a.mask},
                                             {"stats.pooled", g.pooled},
                                             {"out", g.dx.array()}});
  unlocked(a.x.tensor().size(), &mean_only_batch_norm_backward, g.dy.tensor(), a.x.tensor(),
           g.gradients(), options, g.stats(), context);
  return py::make_tuple(g.dx.result.take(), g.dbias.result.take());
}

// ---- Lp and top-k batch norm

// The forward and backward functions of one of them.
struct LpFunctions {
  using Options = LpBatchNormOptions;
  static constexpr auto forward = &lp_batch_norm;
  static constexpr auto backward = &lp_batch_norm_backward;
  static void set(Options& o, py::handle p) { o.p = as_double(p, "p"); }
};
struct TopKFunctions {
  using Options = TopKBatchNormOptions;
  static constexpr auto forward = &topk_batch_norm;
  static constexpr auto backward = &topk_batch_norm_backward;
  static void set(Options& o, py::handle k) { o.k = as_index(k, "k"); }
};

template <class Functions>
typename Functions::Options scaled_options(py::handle parameter, const Buffers& buffers,
                                           bool training, py::handle eps, py::handle channel_axis) {
  typename Functions::Options options;
  Functions::set(options, parameter);
  options.running_mean = buffers.mean.tensor();
  options.running_scale = buffers.var.tensor();
  options.training = training;
  options.eps = as_double(eps, "eps");
  options.channel_axis = as_axis(channel_axis, "channel_axis");
  return options;
}

template <class Functions>
py::object scaled_(py::handle x_, py::handle weight_, py::handle bias_, py::handle parameter,
                   py::handle running_mean, py::handle running_scale, py::handle training_,
                   py::handle momentum, py::handle eps, py::handle channel_axis, py::handle out,
                   py::handle return_stats_) {
  const bool return_stats = as_bool(return_stats_, "return_stats");
  const bool training = as_bool(training_, "training");
  const ChannelArguments a(x_, weight_, bias_);
  const Buffers buffers(running_mean, running_scale, training, "running_scale");
  auto options = scaled_options<Functions>(parameter, buffers, training, eps, channel_axis);
  options.momentum = as_double(momentum, "momentum");
  Output y(out, a.x);
  Statistics stats(return_stats, a.x, channel_shape(a.x, options.channel_axis, false, 0));
  const Context context = call_context(a.x, {{"weight", a.weight},
                                             {"bias", a.bias},
                                             {"running_mean", buffers.mean},
                                             {"running_scale", buffers.var},
                                             {"out", y.array()}});
  unlocked(a.x.tensor().size(), Functions::forward, a.x.tensor(), a.weight.tensor(),
           a.bias.tensor(), y.tensor, options, stats.out, context);
  return results(y, stats, return_stats);
}

template <class Functions>
py::object scaled_backward_(py::handle dy_, py::handle x_, py::handle weight_, py::handle bias_,
                            py::handle parameter, py::handle running_mean, py::handle running_scale,
                            py::handle training, py::handle eps, py::handle channel_axis,
                            py::handle pooled, py::handle out) {
  const ChannelArguments a(x_, weight_, bias_);
  const Buffers buffers(running_mean, running_scale, false, "running_scale");
  const auto options = scaled_options<Functions>(parameter, buffers, as_bool(training, "training"),
                                                 eps, channel_axis);
  ChannelGradient g(dy_, a, pooled, py::none(), out);
  const Context context = call_context(a.x, {{"dy", g.dy},
                                             {"weight", a.weight},
                                             {"bias", a.bias},
                                             {"running_mean", buffers.mean},
                                             {"running_scale", buffers.var},
                                             {"stats.pooled", g.pooled},
                                             {"out", g.dx.array()}});
  unlocked(a.x.tensor().size(), Functions::backward, g.dy.tensor(), a.x.tensor(), a.weight.tensor(),
           g.gradients(), options, g.stats(), context);
  return g.tuple();
}

// ---- normalize

py::object normalize_(py::handle x_, py::handle ord, py::handle axis, py::handle eps,
                      py::handle out) {
  const Array x(x_, "x");
  const NormalizeOptions options{as_double(ord, "ord"), as_axes(axis, x.tensor().ndim()),
                                 as_double(eps, "eps")};
  Output y(out, x);
  const Context context = call_context(x, {{"out", y.array()}});
  unlocked(x.tensor().size(), &normalize, x.tensor(), y.tensor, options, context);
  return y.result.take();
}

py::object normalize_backward_(py::handle dy_, py::handle x_, py::handle ord, py::handle axis,
                               py::handle eps, py::handle out) {
  const Array x(x_, "x"), dy(dy_, "dy");
  const NormalizeOptions options{as_double(ord, "ord"), as_axes(axis, x.tensor().ndim()),
                                 as_double(eps, "eps")};
  Output dx(out, x);
  const Context context = call_context(x, {{"dy", dy}, {"out", dx.array()}});
  unlocked(x.tensor().size(), &normalize_backward, dy.tensor(), x.tensor(), dx.tensor, options,
           context);
  return dx.result.take();
}

// ---- weight norm

WeightNormOptions weight_norm_options(py::handle axis, py::handle eps) {
  WeightNormOptions options;
  options.axis = std::nullopt;
  if (!axis.is_none()) options.axis = as_axis(axis, "axis");
  options.eps = as_double(eps, "eps");
  return options;
}

py::object weight_norm_(py::handle v_, py::handle g_, py::handle axis, py::handle eps,
                        py::handle out) {
  const Array v(v_, "v"), g(g_, "g");
  const WeightNormOptions options = weight_norm_options(axis, eps);
  Output w(out, v);
  const Context context = call_context(v, {{"g", g}, {"out", w.array()}});
  unlocked(v.tensor().size(), &weight_norm, v.tensor(), g.tensor(), w.tensor, options, context);
  return w.result.take();
}

py::object weight_norm_backward_(py::handle dw_, py::handle v_, py::handle g_, py::handle axis,
                                 py::handle eps, py::handle out) {
  const Array v(v_, "v"), g(g_, "g"), dw(dw_, "dw");
  const WeightNormOptions options = weight_norm_options(axis, eps);
  Output dv(out, v);
  ParameterGradient dg(g);
  const Context context = call_context(v, {{"dw", dw}, {"g", g}, {"out", dv.array()}});
  unlocked(v.tensor().size(), &weight_norm_backward, dw.tensor(), v.tensor(), g.tensor(), dv.tensor,
           dg.tensor, options, context);
  return py::make_tuple(dv.result.take(), dg.result.take());
}

}  // namespace

void register_adaptive_functions(py::module_& m) {
  m.def("batch_renorm", &batch_renorm_);
  m.def("batch_renorm_backward", &batch_renorm_backward_);
  m.def("batch_instance_norm", &batch_instance_norm_);
  m.def("batch_instance_norm_backward", &batch_instance_norm_backward_);
  m.def("switchable_norm", &switchable_norm_);
  m.def("switchable_norm_backward", &switchable_norm_backward_);
  m.def("mean_only_batch_norm", &mean_only_batch_norm_);
  m.def("mean_only_batch_norm_backward", &mean_only_batch_norm_backward_);
  m.def("lp_batch_norm", &scaled_<LpFunctions>);
  m.def("lp_batch_norm_backward", &scaled_backward_<LpFunctions>);
  m.def("topk_batch_norm", &scaled_<TopKFunctions>);
  m.def("topk_batch_norm_backward", &scaled_backward_<TopKFunctions>);
  m.def("normalize", &normalize_);
  m.def("normalize_backward", &normalize_backward_);
  m.def("weight_norm", &weight_norm_);
  m.def("weight_norm_backward", &weight_norm_backward_);
}

}  // namespace normcore::python
