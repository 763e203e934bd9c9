// Spectral normalization and the power method as functions of the module.
#include "results.h"

namespace normcore::python {
namespace {

// A new vector of x's library, as exact as statistics.
struct NewVector {
  Result result;
  Tensor tensor;
  NewVector(const Array& x, Index n) {
    const DType dtype = statistics_dtype(x.tensor().dtype());
    ConstTensor shape(nullptr, dtype, 1);
    shape.set_dim(0, n, 0);
    result = x.new_contiguous(shape, dtype, &tensor);
  }
};

// A number of a call: of one on a device an array of x's library, since nothing waits for it.
struct Number {
  Result result;
  Tensor tensor;
  Number(const Array& x, const Context& context) {
    if (context.device == Device::kCpu) return;
    const DType dtype = statistics_dtype(x.tensor().dtype());
    result = x.new_contiguous(ConstTensor(nullptr, dtype, 0), dtype, &tensor);
  }
  template <class T>
  py::object take(T value) {
    return tensor ? result.take() : py::cast(value);
  }
};

std::optional<double> as_bound(py::handle bound) {
  if (bound.is_none()) return {};
  return as_double(bound, "bound");
}

// Elements that a call goes over: iterations on a small matrix may take long, too.
Index swept(const Array& matrix, Index iterations) {
  const Index n = matrix.tensor().size();
  return n > 4096 ? n : n * std::clamp<Index>(iterations, 1, 4097);
}

// (weight, sigma, u, v)
py::object spectral_norm_(py::handle weight_, py::handle u_, py::handle v_, py::handle n,
                          py::handle axis, py::handle eps, py::handle bound, py::handle u_first,
                          py::handle out) {
  const Array weight(weight_, "weight");
  const Array u = Array::optional(u_, "u"), v = Array::optional(v_, "v");
  SpectralNormOptions options;
  options.n_power_iterations = as_index(n, "n_power_iterations");
  options.axis = as_axis(axis, "axis");
  options.eps = as_double(eps, "eps");
  options.bound = as_bound(bound);
  options.u_first = as_bool(u_first, "u_first");
  Output w(out, weight);
  NewVector new_u(weight, length_of(weight.tensor(), options.axis));
  NewVector new_v(weight, length_of_rest(weight.tensor(), options.axis));
  const Context context = call_context(weight, {{"u", u}, {"v", v}, {"out", w.array()}});
  Number new_sigma(weight, context);
  const double sigma =
      unlocked(swept(weight, options.n_power_iterations), &spectral_norm, weight.tensor(),
               {u.tensor(), v.tensor()}, {w.tensor, new_u.tensor, new_v.tensor, new_sigma.tensor},
               options, context);
  return py::make_tuple(w.result.take(), new_sigma.take(sigma), new_u.result.take(),
                        new_v.result.take());
}

void gradient(const ConstTensor& dw, const ConstTensor& w, const ConstTensor& sigma, double number,
              const ConstTensor& u, const ConstTensor& v, const Tensor& dweight,
              const SpectralNormOptions& options, const Context& context) {
  if (sigma) return spectral_norm_backward(dw, w, sigma, u, v, dweight, options, context);
  spectral_norm_backward(dw, w, number, u, v, dweight, options, context);
}

py::object spectral_norm_backward_(py::handle dw_, py::handle w_, py::handle sigma_, py::handle u_,
                                   py::handle v_, py::handle axis, py::handle bound,
                                   py::handle out) {
  const Array w(w_, "result.weight"), dw(dw_, "dw");
  const Array u(u_, "result.u"), v(v_, "result.v");
  // Of a call on a device an array, of which nobody but the device need know more.
  const bool is_array = !PyFloat_Check(sigma_.ptr()) && py::hasattr(sigma_, "shape");
  const Array sigma = is_array ? Array(sigma_, "result.sigma") : Array();
  const double number = is_array ? 0 : as_double(sigma_, "result.sigma");
  SpectralNormOptions options;
  options.axis = as_axis(axis, "axis");
  options.bound = as_bound(bound);
  Output dweight(out, w);
  const Context context = call_context(w, {{"dw", dw},
                                           {"result.sigma", sigma},
                                           {"result.u", u},
                                           {"result.v", v},
                                           {"out", dweight.array()}});
  unlocked(w.tensor().size(), &gradient, dw.tensor(), w.tensor(), sigma.tensor(), number,
           u.tensor(), v.tensor(), dweight.tensor, options, context);
  return dweight.result.take();
}

// (sigma, u, v, n_iterations, converged)
py::object power_method_(py::handle a_, py::handle start_, py::handle n, py::handle tol,
                         py::handle max_iterations) {
  const Array a(a_, "a"), start = Array::optional(start_, "u");
  PowerMethodOptions options;
  if (!n.is_none()) options.n_iterations = as_index(n, "n_iterations");
  options.tol = as_double(tol, "tol");
  options.max_iterations = as_index(max_iterations, "max_iterations");
  NewVector u(a, length_of(a.tensor(), 0)), v(a, length_of_rest(a.tensor(), 0));
  const Context context = call_context(a, {{"u", start}});
  Number sigma(a, context), n_iterations(a, context), converged(a, context);
  const PowerMethodResult r =
      unlocked(swept(a, options.n_iterations.value_or(options.max_iterations)), &power_method,
               a.tensor(), start.tensor(), u.tensor, v.tensor, options, context,
               {sigma.tensor, n_iterations.tensor, converged.tensor});
  return py::make_tuple(sigma.take(r.sigma), u.result.take(), v.result.take(),
                        n_iterations.take(r.n_iterations), converged.take(r.converged));
}

}  // namespace

void register_spectral_functions(py::module_& m) {
  m.def("spectral_norm", &spectral_norm_);
  m.def("spectral_norm_backward", &spectral_norm_backward_);
  m.def("power_method", &power_method_);
}

}  // namespace normcore::python
