// Divisive norm and GDN: checks, and what their parameters are to the mixing of channels.
#include "normcore/divisive.h"

#include <cmath>
#include <string>

#include "cpu/arrays.h"
#include "cpu/running_call.h"
#include "cuda/special.h"
#include "normcore/errors.h"
#include "ops/checks.h"
#include "special/mixing.h"

namespace normcore {
namespace {

void check_positive(const char* name, double value) {
  if (value > 0 && std::isfinite(value)) return;
  throw value_error(std::string(name) + " is " + std::to_string(value) +
                    ", expected a finite number > 0");
}

// Finite and not negative: no denominator can become negative. What is on a device is not looked
// at: the call would wait for it.
void check_not_negative(const char* name, const ConstTensor& t, const Context& context) {
  if (context.device == Device::kCuda) return;
  cpu::Workspace::Scope scope(cpu::Workspace::local());
  double* values = scope.take<double>(t.size());
  read_array(t, whole_walk(t), scope, values);
  for (Index i = 0; i < t.size(); ++i) {
    if (values[i] >= 0 && std::isfinite(values[i])) continue;
    throw value_error(std::string(name) + " holds " + std::to_string(values[i]) +
                      ", expected finite numbers >= 0");
  }
}

ExpectedShape channel_shape(const ConstTensor& x, int axis, int given_axis, int ndim) {
  ExpectedShape shape;
  for (int i = 0; i < ndim; ++i) shape.append(x.shape(axis));
  shape.rule = "x.shape[channel_axis=";
  shape.has_axis = true;
  shape.given_axis = given_axis;
  return shape;
}
// A value for each channel, or a single one for all.
void check_per_channel(const char* name, const ConstTensor& t, const ExpectedShape& shape) {
  if (t.ndim() == 0) return check_view(name, t);
  check_shape(name, t, shape);
}

void check_gradients(const ConstTensor& dy, const ConstTensor& x, const Tensor& dx,
                     Operands& operands) {
  check_like("dy", dy, x);
  check_output("out", dx, x);
  operands.reads("dy", dy);
  operands.writes("out", dx, {&x, &dy});
}

// A parameter's gradient may be of another dtype.
void check_gradient(const char* name, const Tensor& gradient, const ConstTensor& parameter) {
  if (!gradient) return;
  if (!same_shape(gradient, parameter)) check_like(name, gradient, parameter);
  check_view(name, gradient);
}

// Sums over the channels to a parameter's gradient, which may be of a single value.
void store_gradient(double* sums, Index channels, const Tensor& to, cpu::Workspace::Scope& scope) {
  if (!to) return;
  if (to.size() == 1) {
    for (Index i = 1; i < channels; ++i) sums[0] += sums[i];
  }
  store_array(sums, to, whole_walk(to), scope);
}

struct DivisiveArguments {
  MixingCall call;

  DivisiveArguments(const ConstTensor& x, const ConstTensor& weights, const ConstTensor& sigma,
                    const ConstTensor& gain, const DivisiveNormOptions& o, const Context& context)
      : call{"divisive_norm", x, 0, weights, sigma, gain, o.exponent, o.exponent, o.power, 0} {
    check_device(context);
    check_view("x", x);
    check_positive("exponent", o.exponent);
    check_positive("power", o.power);
    call.e = o.power / o.exponent;
    call.channel_axis = check_axis("channel_axis", o.channel_axis, x.ndim());
    const ExpectedShape one = channel_shape(x, call.channel_axis, o.channel_axis, 1);
    check_shape("weights", weights, channel_shape(x, call.channel_axis, o.channel_axis, 2));
    check_per_channel("sigma", sigma, one);
    if (gain) check_per_channel("gain", gain, one);
    check_not_negative("weights", weights, context);
    check_not_negative("sigma", sigma, context);
  }
  void declare(Operands& operands) const {
    operands.reads("x", call.x);
    operands.reads("weights", call.weights);
    operands.reads("sigma", call.offset);
    operands.reads("gain", call.gain);
  }
};

struct GDNArguments {
  MixingCall call;

  GDNArguments(const ConstTensor& x, const ConstTensor& beta, const ConstTensor& gamma,
               const GDNOptions& o, const Context& context)
      : call{"gdn", x, 0, gamma, beta, absent, 1, o.alpha, 1, o.inverse ? -o.epsilon : o.epsilon} {
    check_device(context);
    check_view("x", x);
    check_positive("alpha", o.alpha);
    check_finite("epsilon", o.epsilon);
    call.channel_axis = check_axis("channel_axis", o.channel_axis, x.ndim());
    check_shape("beta", beta, channel_shape(x, call.channel_axis, o.channel_axis, 1));
    check_shape("gamma", gamma, channel_shape(x, call.channel_axis, o.channel_axis, 2));
    check_not_negative("beta", beta, context);
    check_not_negative("gamma", gamma, context);
  }
  void declare(Operands& operands) const {
    operands.reads("x", call.x);
    operands.reads("beta", call.offset);
    operands.reads("gamma", call.weights);
  }

 private:
  static inline const ConstTensor absent{};
};

}  // namespace

void divisive_norm(const ConstTensor& x, const ConstTensor& weights, const ConstTensor& sigma,
                   const ConstTensor& gain, const Tensor& y, const DivisiveNormOptions& o,
                   const Context& context) {
  const cpu::RunningCall running(context);
  const DivisiveArguments arguments(x, weights, sigma, gain, o, context);
  check_output("out", y, x);
  Operands operands;
  arguments.declare(operands);
  operands.writes("out", y, {&x});
  operands.check();
  if (x.size() > 0) mix_forward(arguments.call, y, context);
}

void divisive_norm_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& weights,
                            const ConstTensor& sigma, const ConstTensor& gain,
                            const DivisiveGradients& g, const DivisiveNormOptions& o,
                            const Context& context) {
  const cpu::RunningCall running(context);
  const DivisiveArguments arguments(x, weights, sigma, gain, o, context);
  Operands operands;
  arguments.declare(operands);
  check_gradients(dy, x, g.dx, operands);
  check_gradient("dweights", g.dweights, weights);
  check_gradient("dsigma", g.dsigma, sigma);
  check_gradient("dgain", g.dgain, gain);
  operands.writes("dweights", g.dweights);
  operands.writes("dsigma", g.dsigma);
  operands.writes("dgain", g.dgain);
  operands.check();
  if (context.device == Device::kCuda) {
    const cuda::MixingTensors gradients{g.dweights, g.dsigma, g.dgain, {}, {}};
    return cuda::mix_backward(arguments.call, dy, g.dx, gradients, context);
  }
  const Index n = arguments.call.channels();
  cpu::Workspace::Scope scope(cpu::Workspace::local());
  auto take = [&](const Tensor& t, Index size) {
    return t ? scope.take_filled<double>(size, 0.0) : nullptr;
  };
  const MixingGradients sums{take(g.dweights, n * n), take(g.dsigma, n), take(g.dgain, n), nullptr,
                             nullptr};
  if (x.size() > 0) mix_backward(arguments.call, dy, g.dx, sums, context);
  if (g.dsigma) {
    // Through sigma^exponent.
    double* values = scope.take<double>(sigma.size());
    read_array(sigma, whole_walk(sigma), scope, values);
    for (Index i = 0; i < n; ++i) {
      const double s = values[sigma.size() == 1 ? 0 : i];
      const double slope = s == 0 && o.exponent < 1 ? 0 : std::pow(s, o.exponent - 1);
      sums.offset[i] *= o.exponent * slope;
    }
  }
  if (g.dweights) store_array(sums.weights, g.dweights, whole_walk(g.dweights), scope);
  store_gradient(sums.offset, n, g.dsigma, scope);
  store_gradient(sums.gain, n, g.dgain, scope);
}

void gdn(const ConstTensor& x, const ConstTensor& beta, const ConstTensor& gamma, const Tensor& y,
         const GDNOptions& o, const Context& context) {
  const cpu::RunningCall running(context);
  const GDNArguments arguments(x, beta, gamma, o, context);
  check_output("out", y, x);
  Operands operands;
  arguments.declare(operands);
  operands.writes("out", y, {&x});
  operands.check();
  if (x.size() > 0) mix_forward(arguments.call, y, context);
}

void gdn_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& beta,
                  const ConstTensor& gamma, const GDNGradients& g, const GDNOptions& o,
                  const Context& context) {
  const cpu::RunningCall running(context);
  const GDNArguments arguments(x, beta, gamma, o, context);
  Operands operands;
  arguments.declare(operands);
  check_gradients(dy, x, g.dx, operands);
  check_gradient("dbeta", g.dbeta, beta);
  check_gradient("dgamma", g.dgamma, gamma);
  auto scalar = [](double* p) { return p ? Tensor(p, {}) : Tensor(); };
  const Tensor dalpha = scalar(g.dalpha), depsilon = scalar(g.depsilon);
  operands.writes("dbeta", g.dbeta);
  operands.writes("dgamma", g.dgamma);
  operands.writes("dalpha", dalpha);
  operands.writes("depsilon", depsilon);
  operands.check();
  if (context.device == Device::kCuda) {
    const cuda::MixingTensors gradients{g.dgamma, g.dbeta,  {},
                                        dalpha,   depsilon, o.inverse ? -1.0 : 1.0};
    return cuda::mix_backward(arguments.call, dy, g.dx, gradients, context);
  }
  const Index n = arguments.call.channels();
  cpu::Workspace::Scope scope(cpu::Workspace::local());
  auto take = [&](bool wanted, Index size) {
    return wanted ? scope.take_filled<double>(size, 0.0) : nullptr;
  };
  const MixingGradients sums{take(bool(g.dgamma), n * n), take(bool(g.dbeta), n), nullptr,
                             take(g.dalpha, 1), take(g.depsilon, 1)};
  if (x.size() > 0) mix_backward(arguments.call, dy, g.dx, sums, context);
  if (g.dgamma) store_array(sums.weights, g.dgamma, whole_walk(g.dgamma), scope);
  if (g.dbeta) store_array(sums.offset, g.dbeta, whole_walk(g.dbeta), scope);
  if (g.dalpha) *g.dalpha = *sums.a;
  if (g.depsilon) *g.depsilon = o.inverse ? -*sums.e : *sums.e;
}

}  // namespace normcore
