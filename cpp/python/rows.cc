// Functions of the module over rows: layer and RMS norm, and division by a norm. Arguments come by
// position in the order of their signatures (ops/signatures.h).
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
  unlocked(x.tensor().size(), &layer_norm, x.view(), weight.view(), bias.view(), y.tensor, options,
           stats.out, context);
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
  unlocked(x.tensor().size(), &rms_norm, x.view(), weight.view(), y.tensor, options, stats.out,
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
  unlocked(x.tensor().size(), &layer_norm_backward, dy.view(), x.view(), weight.view(),
           {dx.tensor, dweight.tensor, dbias.tensor}, options, dh.view(), pooled.view(), context);
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
  unlocked(x.tensor().size(), &rms_norm_backward, dy.view(), x.view(), weight.view(),
           {dx.tensor, dweight.tensor, {}}, options, dh.view(), pooled.view(), context);
  return py::make_tuple(dx.result.take(), dweight.result.take());
}

// ---- normalize

py::object normalize_(py::handle x_, py::handle ord, py::handle axis, py::handle eps,
                      py::handle out) {
  const Array x(x_, "x");
  const NormalizeOptions options{as_double(ord, "ord"), as_axes(axis, x.tensor().ndim()),
                                 as_double(eps, "eps")};
  Output y(out, x);
  const Context context = call_context(x, {{"out", y.array()}});
  unlocked(x.tensor().size(), &normalize, x.view(), y.tensor, options, context);
  return y.result.take();
}

py::object normalize_backward_(py::handle dy_, py::handle x_, py::handle ord, py::handle axis,
                               py::handle eps, py::handle out) {
  const Array x(x_, "x"), dy(dy_, "dy");
  const NormalizeOptions options{as_double(ord, "ord"), as_axes(axis, x.tensor().ndim()),
                                 as_double(eps, "eps")};
  Output dx(out, x);
  const Context context = call_context(x, {{"dy", dy}, {"out", dx.array()}});
  unlocked(x.tensor().size(), &normalize_backward, dy.view(), x.view(), dx.tensor, options,
           context);
  return dx.result.take();
}

}  // namespace

void register_rows(py::module_& m) {
  m.def("layer_norm", &layer_norm_);
  m.def("layer_norm_backward", &layer_norm_backward_);
  m.def("rms_norm", &rms_norm_);
  m.def("rms_norm_backward", &rms_norm_backward_);
  m.def("normalize", &normalize_);
  m.def("normalize_backward", &normalize_backward_);
}

}  // namespace normcore::python
