// Normalization over windows of neighbours as functions of the module.
#include "results.h"

namespace normcore::python {
namespace {

LocalResponseNormOptions response_options(py::handle alpha, py::handle beta, py::handle k,
                                          py::handle across, py::handle even_window,
                                          py::handle channel_axis) {
  return {as_double(alpha, "alpha"),
          as_double(beta, "beta"),
          as_double(k, "k"),
          as_one_of(across, "across", "channels", "space") ? Across::kSpace : Across::kChannels,
          as_one_of(even_window, "even_window", "torch", "onnx") ? EvenWindow::kOnnx
                                                                 : EvenWindow::kTorch,
          as_axis(channel_axis, "channel_axis")};
}

py::object local_response_norm_(py::handle x_, py::handle size_, py::handle alpha, py::handle beta,
                                py::handle k, py::handle across, py::handle even_window,
                                py::handle channel_axis, py::handle out) {
  const Array x(x_, "x");
  const Index size = as_index(size_, "size");
  const auto options = response_options(alpha, beta, k, across, even_window, channel_axis);
  Output y(out, x);
  const Context context = call_context(x, {{"out", y.array()}});
  unlocked(x.tensor().size(), &local_response_norm, x.tensor(), size, y.tensor, options, context);
  return y.result.take();
}

py::object local_response_norm_backward_(py::handle dy_, py::handle x_, py::handle size_,
                                         py::handle alpha, py::handle beta, py::handle k,
                                         py::handle across, py::handle even_window,
                                         py::handle channel_axis, py::handle out) {
  const Array x(x_, "x"), dy(dy_, "dy");
  const Index size = as_index(size_, "size");
  const auto options = response_options(alpha, beta, k, across, even_window, channel_axis);
  Output dx(out, x);
  const Context context = call_context(x, {{"dy", dy}, {"out", dx.array()}});
  unlocked(x.tensor().size(), &local_response_norm_backward, dy.tensor(), x.tensor(), size,
           dx.tensor, options, context);
  return dx.result.take();
}

LocalDivisiveNormOptions divisive_options(py::handle summation, py::handle suppression,
                                          py::handle channel_axis) {
  return {as_window(summation, "summation_window"), as_window(suppression, "suppression_window"),
          as_axis(channel_axis, "channel_axis")};
}

py::object local_divisive_norm_(py::handle x_, py::handle sigma_, py::handle weight_,
                                py::handle bias_, py::handle summation, py::handle suppression,
                                py::handle channel_axis, py::handle out) {
  const Array x(x_, "x"), sigma(sigma_, "sigma");
  const Array weight = Array::optional(weight_, "weight"), bias = Array::optional(bias_, "bias");
  const auto options = divisive_options(summation, suppression, channel_axis);
  Output y(out, x);
  const Context context =
      call_context(x, {{"sigma", sigma}, {"weight", weight}, {"bias", bias}, {"out", y.array()}});
  unlocked(x.tensor().size(), &local_divisive_norm, x.tensor(), sigma.tensor(), weight.tensor(),
           bias.tensor(), y.tensor, options, context);
  return y.result.take();
}

py::object local_divisive_norm_backward_(py::handle dy_, py::handle x_, py::handle sigma_,
                                         py::handle weight_, py::handle bias_, py::handle summation,
                                         py::handle suppression, py::handle channel_axis,
                                         py::handle out) {
  const Array x(x_, "x"), dy(dy_, "dy"), sigma(sigma_, "sigma");
  const Array weight = Array::optional(weight_, "weight"), bias = Array::optional(bias_, "bias");
  const auto options = divisive_options(summation, suppression, channel_axis);
  Output dx(out, x);
  ParameterGradient dsigma(sigma), dweight(weight), dbias(bias);
  const Context context = call_context(
      x, {{"dy", dy}, {"sigma", sigma}, {"weight", weight}, {"bias", bias}, {"out", dx.array()}});
  unlocked(x.tensor().size(), &local_divisive_norm_backward, dy.tensor(), x.tensor(),
           sigma.tensor(), weight.tensor(),
           {dx.tensor, dsigma.tensor, dweight.tensor, dbias.tensor}, options, context);
  return py::make_tuple(dx.result.take(), dsigma.result.take(), dweight.result.take(),
                        dbias.result.take());
}

}  // namespace

void register_local_functions(py::module_& m) {
  m.def("local_response_norm", &local_response_norm_);
  m.def("local_response_norm_backward", &local_response_norm_backward_);
  m.def("local_divisive_norm", &local_divisive_norm_);
  m.def("local_divisive_norm_backward", &local_divisive_norm_backward_);
}

}  // namespace normcore::python
