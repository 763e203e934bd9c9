// As methods.cc, for what has no signature: divisive and local normalization, and spectral norm.
// The bits of `arrays` are of the optional arrays, those of `wanted` of all that have a gradient.
#include "../shapes.h"
#include "register.h"

namespace normcore::python::jax {
namespace {

bool bit(const Call& call, std::string_view name, int at) {
  return call.number<Index>(name) >> at & 1;
}
ConstTensor optional(Call& call, int at, const char* name) {
  return bit(call, "arrays", at) ? ConstTensor(call.argument(name)) : ConstTensor();
}
Tensor wanted(Call& call, int at, const char* name) {
  return bit(call, "wanted", at) ? call.result(name) : Tensor();
}

// ---- divisive norm

struct Divisive {
  ConstTensor x, weights, sigma, gain;
  DivisiveNormOptions options;
  explicit Divisive(Call& c)
      : x(c.argument("x")),
        weights(c.argument("weights")),
        sigma(c.argument("sigma")),
        gain(optional(c, 0, "gain")) {
    options.exponent = c.number<double>("exponent");
    options.power = c.number<double>("power");
    options.channel_axis = axis_of(c.number<Index>("channel_axis"));
  }
};

void divisive_forward(Call& call) {
  const Divisive c(call);
  divisive_norm(c.x, c.weights, c.sigma, c.gain, call.result("y"), c.options, call.context());
}
void divisive_backward(Call& call) {
  const Tensor dy = call.argument("dy");
  const Divisive c(call);
  const Tensor dx = call.result("dx"), dweights = wanted(call, 0, "dweights"),
               dsigma = wanted(call, 1, "dsigma"), dgain = wanted(call, 2, "dgain");
  divisive_norm_backward(dy, c.x, c.weights, c.sigma, c.gain, {dx, dweights, dsigma, dgain},
                         c.options, call.context());
}

// ---- GDN

struct Gdn {
  ConstTensor x, beta, gamma;
  GDNOptions options;
  explicit Gdn(Call& c) : x(c.argument("x")), beta(c.argument("beta")), gamma(c.argument("gamma")) {
    options.inverse = c.number<bool>("inverse");
    options.alpha = c.number<double>("alpha");
    options.epsilon = c.number<double>("epsilon");
    options.channel_axis = axis_of(c.number<Index>("channel_axis"));
  }
};

void gdn_forward(Call& call) {
  const Gdn c(call);
  gdn(c.x, c.beta, c.gamma, call.result("y"), c.options, call.context());
}
void gdn_backward_(Call& call) {
  const Tensor dy = call.argument("dy");
  const Gdn c(call);
  const Tensor dx = call.result("dx"), dbeta = wanted(call, 0, "dbeta"),
               dgamma = wanted(call, 1, "dgamma");
  gdn_backward(dy, c.x, c.beta, c.gamma, {dx, dbeta, dgamma}, c.options, call.context());
}

// ---- local response norm

LocalResponseNormOptions response_options(const Call& c) {
  LocalResponseNormOptions options;
  options.alpha = c.number<double>("alpha");
  options.beta = c.number<double>("beta");
  options.k = c.number<double>("k");
  options.across = c.number<bool>("across_space") ? Across::kSpace : Across::kChannels;
  options.even_window = c.number<bool>("onnx_window") ? EvenWindow::kOnnx : EvenWindow::kTorch;
  options.channel_axis = axis_of(c.number<Index>("channel_axis"));
  return options;
}

void response_forward(Call& call) {
  const Tensor x = call.argument("x");
  local_response_norm(x, call.number<Index>("size"), call.result("y"), response_options(call),
                      call.context());
}
void response_backward(Call& call) {
  const Tensor dy = call.argument("dy"), x = call.argument("x");
  local_response_norm_backward(dy, x, call.number<Index>("size"), call.result("dx"),
                               response_options(call), call.context());
}

// ---- local divisive norm

struct LocalDivisive {
  ConstTensor x, sigma, weight, bias;
  LocalDivisiveNormOptions options;
  explicit LocalDivisive(Call& c)
      : x(c.argument("x")),
        sigma(c.argument("sigma")),
        weight(optional(c, 0, "weight")),
        bias(optional(c, 1, "bias")),
        options{window_of(c.integers("summation_window"), "summation_window"),
                window_of(c.integers("suppression_window"), "suppression_window"),
                axis_of(c.number<Index>("channel_axis"))} {}
};

void local_divisive_forward(Call& call) {
  const LocalDivisive c(call);
  local_divisive_norm(c.x, c.sigma, c.weight, c.bias, call.result("y"), c.options, call.context());
}
void local_divisive_backward(Call& call) {
  const Tensor dy = call.argument("dy");
  const LocalDivisive c(call);
  const Tensor dx = call.result("dx"), dsigma = wanted(call, 0, "dsigma"),
               dweight = wanted(call, 1, "dweight"), dbias = wanted(call, 2, "dbias");
  local_divisive_norm_backward(dy, c.x, c.sigma, c.weight, {dx, dsigma, dweight, dbias}, c.options,
                               call.context());
}

// ---- spectral norm

SpectralNormOptions spectral_options(const Call& call) {
  SpectralNormOptions options;
  options.axis = axis_of(call.number<Index>("axis"));
  if (call.has("bound")) options.bound = call.number<double>("bound");
  return options;
}

void spectral_forward(Call& call) {
  SpectralNormOptions options = spectral_options(call);
  options.n_power_iterations = call.number<Index>("n_power_iterations");
  options.eps = call.number<double>("eps");
  const Tensor weight = call.argument("weight");
  const ConstTensor u = optional(call, 0, "u"), v = optional(call, 1, "v");
  SpectralNormOut out;
  out.weight = call.result("weight");
  out.sigma = call.result("sigma");
  out.u = call.result("u");
  out.v = call.result("v");
  spectral_norm(weight, {u, v}, out, options, call.context());
}
void spectral_backward(Call& call) {
  const Tensor dw = call.argument("dw"), w = call.argument("weight"),
               sigma = call.argument("sigma"), u = call.argument("u"), v = call.argument("v");
  spectral_norm_backward(dw, w, ConstTensor(sigma), u, v, call.result("dweight"),
                         spectral_options(call), call.context());
}

}  // namespace

void define_special(Handlers& handlers) {
  handlers.define<&divisive_forward>("divisive_norm");
  handlers.define<&divisive_backward>("divisive_norm_backward");
  handlers.define<&gdn_forward>("gdn");
  handlers.define<&gdn_backward_>("gdn_backward");
  handlers.define<&response_forward>("local_response_norm");
  handlers.define<&response_backward>("local_response_norm_backward");
  handlers.define<&local_divisive_forward>("local_divisive_norm");
  handlers.define<&local_divisive_backward>("local_divisive_norm_backward");
  handlers.define<&spectral_forward>("spectral_norm");
  handlers.define<&spectral_backward>("spectral_norm_backward");
}

}  // namespace normcore::python::jax
