// The operations as functions of the module: read the arguments, make the results, call ops.h.
// Arguments come by position in the order of the functions of normcore.methods, which document
// them. Here: layer, RMS, batch, instance and group norm.
#include "results.h"

namespace normcore::python {
namespace {

// ---- layer and rms norm

template <class Options>
struct ResidualArguments {
  Array residual;
  Result h;

  ResidualArguments(py::handle object, const Array& x, Options* options) {
    residual = Array::optional(object, "residual");
    options->residual = residual.tensor();
    if (residual) h = x.new_like(&options->h);
  }
  py::object results(Output& y, Statistics& stats, bool return_stats) {
    if (!residual) return normcore::python::results(y, stats, return_stats);
    if (!return_stats) return py::make_tuple(y.result.take(), h.take());
    return py::make_tuple(y.result.take(), h.take(), stats.tuple());
  }
};

py::object layer_norm_(py::handle x_, py::handle weight_, py::handle bias_, py::handle axis,
                       py::handle eps, py::handle residual_, py::handle out,
                       py::handle return_stats_) {
  const bool return_stats = as_bool(return_stats_, "return_stats");
  const Array x(x_, "x");
  const Array weight = Array::optional(weight_, "weight"), bias = Array::optional(bias_, "bias");
  LayerNormOptions options{as_axes(axis, x.tensor().ndim()), as_double(eps, "eps")};
  ResidualArguments<LayerNormOptions> residual(residual_, x, &options);
  Output y(out, x);
  Statistics stats(return_stats, x, kept_shape(x, options.axes));
  const Context context = call_context(
      x, {{"weight", weight}, {"bias", bias}, {"residual", residual.residual}, {"out", y.array()}});
  unlocked(x.tensor().size(), &layer_norm, x.tensor(), weight.tensor(), bias.tensor(), y.tensor,
           options, stats.out, context);
  return residual.results(y, stats, return_stats);
}

py::object rms_norm_(py::handle x_, py::handle weight_, py::handle axis, py::handle eps,
                     py::handle weight_offset, py::handle residual_, py::handle out,
                     py::handle return_stats_) {
  const bool return_stats = as_bool(return_stats_, "return_stats");
  const Array x(x_, "x");
  const Array weight = Array::optional(weight_, "weight");
  RMSNormOptions options{as_axes(axis, x.tensor().ndim()), as_double(eps, "eps"),
                         as_double(weight_offset, "weight_offset")};
  ResidualArguments<RMSNormOptions> residual(residual_, x, &options);
  Output y(out, x);
  Statistics stats(return_stats, x, kept_shape(x, options.axes),
                   Statistics::kRstd | Statistics::kPooled);
  const Context context =
      call_context(x, {{"weight", weight}, {"residual", residual.residual}, {"out", y.array()}});
  unlocked(x.tensor().size(), &rms_norm, x.tensor(), weight.tensor(), y.tensor, options, stats.out,
           context);
  return residual.results(y, stats, return_stats);
}

py::object layer_norm_backward_(py::handle dy_, py::handle x_, py::handle weight_, py::handle bias_,
                                py::handle axis, py::handle eps, py::handle dh_, py::handle pooled_,
                                py::handle out) {
  const Array x(x_, "x"), dy(dy_, "dy");
  const Array weight = Array::optional(weight_, "weight"), bias = Array::optional(bias_, "bias");
  const Array dh = Array::optional(dh_, "dh"), pooled = Array::optional(pooled_, "stats.pooled");
  const LayerNormOptions options{as_axes(axis, x.tensor().ndim()), as_double(eps, "eps")};
  Output dx(out, x);
  ParameterGradient dweight(weight), dbias(bias);
  const Context context = call_context(x, {{"dy", dy},
                                           {"weight", weight},
                                           {"bias", bias},
                                           {"dh", dh},
                                           {"stats.pooled", pooled},
                                           {"out", dx.array()}});
  unlocked(x.tensor().size(), &layer_norm_backward, dy.tensor(), x.tensor(), weight.tensor(),
           {dx.tensor, dweight.tensor, dbias.tensor}, options, dh.tensor(), pooled.tensor(),
           context);
  return py::make_tuple(dx.result.take(), dweight.result.take(), dbias.result.take());
}

py::object rms_norm_backward_(py::handle dy_, py::handle x_, py::handle weight_, py::handle axis,
                              py::handle eps, py::handle weight_offset, py::handle dh_,
                              py::handle pooled_, py::handle out) {
  const Array x(x_, "x"), dy(dy_, "dy");
  const Array weight = Array::optional(weight_, "weight");
  const Array dh = Array::optional(dh_, "dh"), pooled = Array::optional(pooled_, "stats.pooled");
  const RMSNormOptions options{as_axes(axis, x.tensor().ndim()), as_double(eps, "eps"),
                               as_double(weight_offset, "weight_offset")};
  Output dx(out, x);
  ParameterGradient dweight(weight);
  const Context context = call_context(
      x,
      {{"dy", dy}, {"weight", weight}, {"dh", dh}, {"stats.pooled", pooled}, {"out", dx.array()}});
  unlocked(x.tensor().size(), &rms_norm_backward, dy.tensor(), x.tensor(), weight.tensor(),
           {dx.tensor, dweight.tensor, {}}, options, dh.tensor(), pooled.tensor(), context);
  return py::make_tuple(dx.result.take(), dweight.result.take());
}

// ---- batch, instance and group norm

py::object batch_norm_(py::handle x_, py::handle weight_, py::handle bias_, py::handle running_mean,
                       py::handle running_var, py::handle training_, py::handle momentum,
                       py::handle eps, py::handle unbiased, py::handle channel_axis,
                       py::handle mask_, py::handle out, py::handle return_stats_) {
  const bool return_stats = as_bool(return_stats_, "return_stats");
  const bool training = as_bool(training_, "training");
  const MaskedArguments a(x_, weight_, bias_, mask_, channel_axis);
  const Buffers buffers(running_mean, running_var, training);
  const BatchNormOptions options{buffers.mean.tensor(),
                                 buffers.var.tensor(),
                                 training,
                                 as_double(momentum, "momentum"),
                                 as_double(eps, "eps"),
                                 as_bool(unbiased, "unbiased_running_var"),
                                 a.channel_axis,
                                 a.mask.tensor()};
  Output y(out, a.x);
  Statistics stats(return_stats, a.x, channel_shape(a.x, options.channel_axis, false, 0));
  const Context context = call_context(a.x, {{"weight", a.weight},
                                             {"bias", a.bias},
                                             {"running_mean", buffers.mean},
                                             {"running_var", buffers.var},
                                             {"mask", a.mask},
                                             {"out", y.array()}});
  unlocked(a.x.tensor().size(), &batch_norm, a.x.tensor(), a.weight.tensor(), a.bias.tensor(),
           y.tensor, options, stats.out, context);
  return results(y, stats, return_stats);
}

py::object batch_norm_backward_(py::handle dy_, py::handle x_, py::handle weight_, py::handle bias_,
                                py::handle running_mean, py::handle running_var,
                                py::handle training, py::handle eps, py::handle channel_axis,
                                py::handle mask_, py::handle pooled, py::handle out) {
  const MaskedArguments a(x_, weight_, bias_, mask_, channel_axis);
  const Buffers buffers(running_mean, running_var, false);
  BatchNormOptions options{buffers.mean.tensor(), buffers.var.tensor(),
                           as_bool(training, "training")};
  options.eps = as_double(eps, "eps");
  options.channel_axis = a.channel_axis;
  options.mask = a.mask.tensor();
  ChannelGradient g(dy_, a, pooled, py::none(), out);
  const Context context = call_context(a.x, {{"dy", g.dy},
                                             {"weight", a.weight},
                                             {"bias", a.bias},
                                             {"running_mean", buffers.mean},
                                             {"running_var", buffers.var},
                                             {"mask", a.mask},
                                             {"stats.pooled", g.pooled},
                                             {"out", g.dx.array()}});
  unlocked(a.x.tensor().size(), &batch_norm_backward, g.dy.tensor(), a.x.tensor(),
           a.weight.tensor(), g.gradients(), options, g.stats(), context);
  return g.tuple();
}

py::object instance_norm_(py::handle x_, py::handle weight_, py::handle bias_,
                          py::handle running_mean, py::handle running_var,
                          py::handle use_input_stats_, py::handle momentum, py::handle eps,
                          py::handle unbiased, py::handle channel_axis, py::handle out,
                          py::handle return_stats_) {
  const bool return_stats = as_bool(return_stats_, "return_stats");
  const bool use_input_stats = as_bool(use_input_stats_, "use_input_stats");
  const ChannelArguments a(x_, weight_, bias_);
  const Buffers buffers(running_mean, running_var, use_input_stats);
  const InstanceNormOptions options{buffers.mean.tensor(),
                                    buffers.var.tensor(),
                                    use_input_stats,
                                    as_double(momentum, "momentum"),
                                    as_double(eps, "eps"),
                                    as_axis(channel_axis, "channel_axis"),
                                    as_bool(unbiased, "unbiased_running_var")};
  Output y(out, a.x);
  Statistics stats(return_stats, a.x, channel_shape(a.x, options.channel_axis, true, 0));
  const Context context = call_context(a.x, {{"weight", a.weight},
                                             {"bias", a.bias},
                                             {"running_mean", buffers.mean},
                                             {"running_var", buffers.var},
                                             {"out", y.array()}});
  unlocked(a.x.tensor().size(), &instance_norm, a.x.tensor(), a.weight.tensor(), a.bias.tensor(),
           y.tensor, options, stats.out, context);
  return results(y, stats, return_stats);
}

py::object instance_norm_backward_(py::handle dy_, py::handle x_, py::handle weight_,
                                   py::handle bias_, py::handle running_mean,
                                   py::handle running_var, py::handle use_input_stats,
                                   py::handle eps, py::handle channel_axis, py::handle pooled,
                                   py::handle out) {
  const ChannelArguments a(x_, weight_, bias_);
  const Buffers buffers(running_mean, running_var, false);
  InstanceNormOptions options{buffers.mean.tensor(), buffers.var.tensor(),
                              as_bool(use_input_stats, "use_input_stats")};
  options.eps = as_double(eps, "eps");
  options.channel_axis = as_axis(channel_axis, "channel_axis");
  ChannelGradient g(dy_, a, pooled, py::none(), out);
  const Context context = call_context(a.x, {{"dy", g.dy},
                                             {"weight", a.weight},
                                             {"bias", a.bias},
                                             {"running_mean", buffers.mean},
                                             {"running_var", buffers.var},
                                             {"stats.pooled", g.pooled},
                                             {"out", g.dx.array()}});
  unlocked(a.x.tensor().size(), &instance_norm_backward, g.dy.tensor(), a.x.tensor(),
           a.weight.tensor(), g.gradients(), options, g.stats(), context);
  return g.tuple();
}

py::object group_norm_(py::handle x_, py::handle num_groups_, py::handle weight_, py::handle bias_,
                       py::handle eps, py::handle channel_axis, py::handle out,
                       py::handle return_stats_) {
  const bool return_stats = as_bool(return_stats_, "return_stats");
  const ChannelArguments a(x_, weight_, bias_);
  const Index num_groups = as_index(num_groups_, "num_groups");
  const GroupNormOptions options{as_double(eps, "eps"), as_axis(channel_axis, "channel_axis")};
  Output y(out, a.x);
  Statistics stats(return_stats, a.x, channel_shape(a.x, options.channel_axis, true, num_groups));
  const Context context =
      call_context(a.x, {{"weight", a.weight}, {"bias", a.bias}, {"out", y.array()}});
  unlocked(a.x.tensor().size(), &group_norm, a.x.tensor(), num_groups, a.weight.tensor(),
           a.bias.tensor(), y.tensor, options, stats.out, context);
  return results(y, stats, return_stats);
}

py::object group_norm_backward_(py::handle dy_, py::handle x_, py::handle num_groups_,
                                py::handle weight_, py::handle bias_, py::handle eps,
                                py::handle channel_axis, py::handle pooled, py::handle out) {
  const ChannelArguments a(x_, weight_, bias_);
  const Index num_groups = as_index(num_groups_, "num_groups");
  const GroupNormOptions options{as_double(eps, "eps"), as_axis(channel_axis, "channel_axis")};
  ChannelGradient g(dy_, a, pooled, py::none(), out);
  const Context context = call_context(a.x, {{"dy", g.dy},
                                             {"weight", a.weight},
                                             {"bias", a.bias},
                                             {"stats.pooled", g.pooled},
                                             {"out", g.dx.array()}});
  unlocked(a.x.tensor().size(), &group_norm_backward, g.dy.tensor(), a.x.tensor(), num_groups,
           a.weight.tensor(), g.gradients(), options, g.stats(), context);
  return g.tuple();
}

}  // namespace

void register_functions(py::module_& m) {
  py::class_<Buffer>(m, "Buffer", py::module_local(),
                     "Memory of a result, for another library to take over.")
      .def(
          "__dlpack__",
          [](const Buffer& b, py::handle stream, const py::kwargs&) {
            return b.to_capsule(stream);
          },
          py::kw_only(), py::arg("stream") = py::none())
      .def("__dlpack_device__", &Buffer::device)
      .def_property_readonly("stream", &Buffer::stream);
  m.def("to_numpy", &Array::to_numpy);
  m.def("layer_norm", &layer_norm_);
  m.def("layer_norm_backward", &layer_norm_backward_);
  m.def("rms_norm", &rms_norm_);
  m.def("rms_norm_backward", &rms_norm_backward_);
  m.def("batch_norm", &batch_norm_);
  m.def("batch_norm_backward", &batch_norm_backward_);
  m.def("instance_norm", &instance_norm_);
  m.def("instance_norm_backward", &instance_norm_backward_);
  m.def("group_norm", &group_norm_);
  m.def("group_norm_backward", &group_norm_backward_);
}

}  // namespace normcore::python
