// Weight normalization: the pool is a slice of a weight tensor, and g is its channel's weight.
#include "ops/channel_pipeline.h"

namespace normcore {
namespace {

const ConstTensor kAbsent{};

ChannelCall weight_norm_call(const ConstTensor& v, const ConstTensor& g,
                             const WeightNormOptions& o) {
  check_options<WeightNorm>(o);
  check_view("v", v);
  check_view("g", g);
  ChannelCall call{WeightNorm::pools, v, g, kAbsent, -1, false};
  constexpr InputNames names = names_of(Family::weights);
  constexpr Own own = std::get<0>(Signature<WeightNorm>::arguments);
  call.names = {names.x, own.name, names.dy, own.gradient};
  if (o.axis) {
    if (v.ndim() == 0) throw value_error("v has shape (), expected at least one axis");
    call.channel_axis = check_axis("axis", *o.axis, v.ndim());
  }
  const Index channels = call.channels();
  // (C,), or v's axes with C among ones, or a single value.
  bool fits = g.ndim() <= std::max(1, v.ndim());
  int longer = 0;
  for (int a = 0; a < g.ndim(); ++a) {
    if (g.shape(a) == 1) continue;
    ++longer;
    const bool in_place = g.ndim() == v.ndim() && a == call.channel_axis;
    fits = fits && g.shape(a) == channels && (g.ndim() == 1 || in_place);
  }
  if (!fits || longer > 1) {
    throw value_error("g has shape " + shape_text(g) + ", expected () or (" +
                      std::to_string(channels) + ",), also with v's other axes as 1: " +
                      (o.axis ? "v.shape[axis=" + std::to_string(*o.axis) + "]" : "one norm"));
  }
  call.channel_shape.append(channels);
  call.channel_shape.rule = "that of g";
  return call;
}

// f(method, the function that gives its params). Squares of double may leave its own range, which
// WideWeightNorm minds.
template <class F>
void with_method(const WeightNormOptions& o, DType dtype, const Context& context, F&& f) {
  if (dtype == DType::kFloat64 && context.device == Device::kCpu) {
    return f(std::type_identity<WideWeightNorm>{},
             [eps = o.eps](Memory&) { return WideWeightNorm::Params{eps, spread_of_norm(2)}; });
  }
  f(std::type_identity<WeightNorm>{}, [eps = o.eps](Memory&) { return WeightNorm::Params{eps}; });
}

}  // namespace

void weight_norm(const ConstTensor& v, const ConstTensor& g, const Tensor& w,
                 const WeightNormOptions& o, const Context& context) {
  const cpu::RunningCall running(context);
  const ChannelCall call = weight_norm_call(v, g, o);
  with_method(o, v.dtype(), context, [&]<class Method>(std::type_identity<Method>, auto params) {
    channel_forward<Method>(call, params, w, {}, {}, context);
  });
}

void weight_norm_backward(const ConstTensor& dw, const ConstTensor& v, const ConstTensor& g,
                          const Tensor& dv, const Tensor& dg, const WeightNormOptions& o,
                          const Context& context) {
  const cpu::RunningCall running(context);
  const ChannelCall call = weight_norm_call(v, g, o);
  with_method(o, v.dtype(), context, [&]<class Method>(std::type_identity<Method>, auto params) {
    channel_backward<Method>(call, params, dw, {dv, dg, {}}, {}, context);
  });
}

}  // namespace normcore
