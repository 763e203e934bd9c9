// As functions.cc, for divisive norm and GDN.
#include "results.h"

namespace normcore::python {
namespace {

// ---- divisive norm

DivisiveNormOptions divisive_options(py::handle exponent, py::handle power,
                                     py::handle channel_axis) {
  return {as_double(exponent, "exponent"), as_double(power, "power"),
          as_axis(channel_axis, "channel_axis")};
}

struct DivisiveArrays {
  Array x, weights, sigma, gain;
  DivisiveArrays(py::handle x_, py::handle weights_, py::handle sigma_, py::handle gain_)
      : x(x_, "x"),
        weights(weights_, "weights"),
        sigma(sigma_, "sigma"),
        gain(Array::optional(gain_, "gain")) {}
};

py::object divisive_norm_(py::handle x_, py::handle weights_, py::handle sigma_, py::handle gain_,
                          py::handle exponent, py::handle power, py::handle channel_axis,
                          py::handle out) {
  const DivisiveArrays a(x_, weights_, sigma_, gain_);
  const DivisiveNormOptions options = divisive_options(exponent, power, channel_axis);
  Output y(out, a.x);
  const Context context = call_context(
      a.x, {{"weights", a.weights}, {"sigma", a.sigma}, {"gain", a.gain}, {"out", y.array()}});
  unlocked(a.x.tensor().size(), &divisive_norm, a.x.tensor(), a.weights.tensor(), a.sigma.tensor(),
           a.gain.tensor(), y.tensor, options, context);
  return y.result.take();
}

// The gradient of an array, or a Python float for that of a number.
struct NumberOrArrayGradient {
  ParameterGradient array;
  bool number;
  NumberOrArrayGradient(const Array& parameter, py::handle given)
      : array(parameter), number(PyFloat_Check(given.ptr()) || PyLong_Check(given.ptr())) {}
  py::object take() {
    py::object gradient = array.result.take();
    return number ? gradient.attr("item")() : gradient;
  }
};

py::object divisive_norm_backward_(py::handle dy_, py::handle x_, py::handle weights_,
                                   py::handle sigma_, py::handle gain_, py::handle exponent,
                                   py::handle power, py::handle channel_axis, py::handle out) {
  const DivisiveArrays a(x_, weights_, sigma_, gain_);
  const Array dy(dy_, "dy");
  const DivisiveNormOptions options = divisive_options(exponent, power, channel_axis);
  Output dx(out, a.x);
  ParameterGradient dweights(a.weights);
  NumberOrArrayGradient dsigma(a.sigma, sigma_), dgain(a.gain, gain_);
  const Context context = call_context(a.x, {{"dy", dy},
                                             {"weights", a.weights},
                                             {"sigma", a.sigma},
                                             {"gain", a.gain},
                                             {"out", dx.array()}});
  unlocked(a.x.tensor().size(), &divisive_norm_backward, dy.tensor(), a.x.tensor(),
           a.weights.tensor(), a.sigma.tensor(), a.gain.tensor(),
           {dx.tensor, dweights.tensor, dsigma.array.tensor, dgain.array.tensor}, options, context);
  return py::make_tuple(dx.result.take(), dweights.result.take(), dsigma.take(), dgain.take());
}

// ---- GDN

GDNOptions gdn_options(py::handle inverse, py::handle alpha, py::handle epsilon,
                       py::handle channel_axis) {
  return {as_bool(inverse, "inverse"), as_double(alpha, "alpha"), as_double(epsilon, "epsilon"),
          as_axis(channel_axis, "channel_axis")};
}

py::object gdn_(py::handle x_, py::handle beta_, py::handle gamma_, py::handle inverse,
                py::handle alpha, py::handle epsilon, py::handle channel_axis, py::handle out) {
  const Array x(x_, "x"), beta(beta_, "beta"), gamma(gamma_, "gamma");
  const GDNOptions options = gdn_options(inverse, alpha, epsilon, channel_axis);
  Output y(out, x);
  const Context context = call_context(x, {{"beta", beta}, {"gamma", gamma}, {"out", y.array()}});
  unlocked(x.tensor().size(), &gdn, x.tensor(), beta.tensor(), gamma.tensor(), y.tensor, options,
           context);
  return y.result.take();
}

// The gradient of an option: a Python float or, as the host does not wait for a device, an array of
// no axes there.
struct ScalarGradient {
  double value = 0;
  double* data = &value;
  Result result;

  explicit ScalarGradient(const Array& x) {
    if (x.where().device != Device::kCuda) return;
    Tensor one;
    result = x.new_contiguous(Tensor(nullptr, DType::kFloat64, 0), DType::kFloat64, &one);
    data = static_cast<double*>(one.data());
  }
  ScalarGradient(const ScalarGradient&) = delete;
  ScalarGradient& operator=(const ScalarGradient&) = delete;
  py::object take() { return data == &value ? py::float_(value) : result.take(); }
};

py::object gdn_backward_(py::handle dy_, py::handle x_, py::handle beta_, py::handle gamma_,
                         py::handle inverse, py::handle alpha, py::handle epsilon,
                         py::handle channel_axis, py::handle out) {
  const Array x(x_, "x"), dy(dy_, "dy"), beta(beta_, "beta"), gamma(gamma_, "gamma");
  const GDNOptions options = gdn_options(inverse, alpha, epsilon, channel_axis);
  Output dx(out, x);
  ParameterGradient dbeta(beta), dgamma(gamma);
  ScalarGradient dalpha(x), depsilon(x);
  const Context context =
      call_context(x, {{"dy", dy}, {"beta", beta}, {"gamma", gamma}, {"out", dx.array()}});
  unlocked(x.tensor().size(), &gdn_backward, dy.tensor(), x.tensor(), beta.tensor(), gamma.tensor(),
           {dx.tensor, dbeta.tensor, dgamma.tensor, dalpha.data, depsilon.data}, options, context);
  return py::make_tuple(dx.result.take(), dbeta.result.take(), dgamma.result.take(), dalpha.take(),
                        depsilon.take());
}

}  // namespace

void register_divisive_functions(py::module_& m) {
  m.def("divisive_norm", &divisive_norm_);
  m.def("divisive_norm_backward", &divisive_norm_backward_);
  m.def("gdn", &gdn_);
  m.def("gdn_backward", &gdn_backward_);
}

}  // namespace normcore::python
