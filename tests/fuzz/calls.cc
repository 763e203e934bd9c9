#include "calls.h"

#include <algorithm>
#include <cstdio>
#include <limits>
#include <numeric>
#include <tuple>
#include <type_traits>

#include "ops/signatures.h"

namespace fuzz {
namespace {

// ---- shapes and layouts

// Below and above the vectors of every instruction set, odd, prime, powers of two.
int64_t size(Decoder& in) {
  return in.pick<int64_t>(
      {3, 4, 2, 5, 8, 7, 1, 16, 9, 15, 17, 31, 33, 64, 6, 12, 65, 100, 129, 257});
}

// Up to `limit` elements; zero sizes now and then, or one axis that is much longer than the others.
std::vector<int64_t> shape(Decoder& in, int least_axes, int most_axes, bool may_be_long = true) {
  const int64_t limit = in.one_in(64) ? 100000 : 6000;
  const int n = in.one_in(50) ? most_axes + in.below(29 - most_axes)
                              : least_axes + in.below(most_axes - least_axes + 1);
  std::vector<int64_t> sizes(static_cast<std::size_t>(n), 1);
  int64_t elements = 1;
  const int long_axis = in.one_in(8) && n <= 8 && may_be_long ? in.below(n) : -1;
  if (long_axis >= 0) {
    elements = in.one_in(2) ? 300 + in.below(1200) : 300 + in.below(5000);
    sizes[static_cast<std::size_t>(long_axis)] = elements;
  }
  for (int i = 0; i < n; ++i) {
    if (i == long_axis) continue;
    int64_t s = n > 8 ? in.pick<int64_t>({1, 2}) : size(in);
    if (elements * s > limit) s = 1 + in.below(2);
    if (elements * s > limit) s = 1;
    if (in.one_in(80)) s = 0;
    sizes[static_cast<std::size_t>(i)] = s;
    elements *= std::max<int64_t>(1, s);
  }
  return sizes;
}

int64_t product(const std::vector<int64_t>& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t(1), std::multiplies<>());
}

// Other strides for the same shape: axes in another order in memory, gaps, negative ones; for what
// is only read also the same element again and again.
void lay_out(Operand* t, Decoder& in) {
  const int kind = in.below(8);
  if (kind < 3 || t->shape.empty()) return;  // null strides
  t->null_strides = false;
  const auto n = t->shape.size();
  std::vector<std::size_t> order(n);
  std::iota(order.begin(), order.end(), std::size_t(0));
  if (kind >= 5) {  // a rotation, channels-last among them, or any order
    std::rotate(order.begin(), order.begin() + in.below(static_cast<int>(n)), order.end());
    if (kind == 6)
      std::swap(order[0], order[static_cast<std::size_t>(in.below(static_cast<int>(n)))]);
  }
  int64_t stride = kind == 7 ? 1 + in.below(3) : 1;
  for (std::size_t i = n; i-- > 0;) {
    const std::size_t a = order[i];
    t->strides[a] = stride;
    stride *= std::max<int64_t>(1, t->shape[a]);
    if (kind == 7) stride += in.below(4);
    if (kind == 7 && in.one_in(3)) t->strides[a] = -t->strides[a];
    if (!t->written && in.one_in(20)) t->strides[a] = 0;
  }
  if (stride > 300000) t->make_contiguous();  // gaps between gaps: more memory than there is
}

int32_t dtype(Decoder& in) { return in.below(4); }

// ---- pieces that calls have in common

void with_x(Call* c, std::vector<int64_t> sizes, Decoder& in, const char* name = "x",
            const char* y_name = "y") {
  c->x = c->add(name, sizes, in, in.one_in(6) ? Numbers::kBits : Numbers::kReal);
  c->y = c->add(y_name, std::move(sizes), in);
  c->y->written = true;
  c->y->dtype = c->x->dtype;
  lay_out(c->x, in);
  lay_out(c->y, in);
  c->required = {c->x, c->y};
}

Operand* parameter(Call* c, const char* name, std::vector<int64_t> sizes, Decoder& in,
                   Numbers numbers = Numbers::kReal) {
  Operand* t = c->add(name, std::move(sizes), in, numbers);
  lay_out(t, in);
  return t;
}
Operand* needed(Call* c, const char* name, std::vector<int64_t> sizes, Decoder& in,
                Numbers numbers = Numbers::kReal) {
  Operand* t = parameter(c, name, std::move(sizes), in, numbers);
  c->required.push_back(t);
  return t;
}
Operand* optional(Call* c, const char* name, std::vector<int64_t> sizes, Decoder& in,
                  Numbers numbers = Numbers::kReal) {
  Operand* t = parameter(c, name, std::move(sizes), in, numbers);
  t->given = !in.one_in(4);
  return t;
}

template <class Options>
const Options* options_or_null(const Call* c, const Options* options) {
  return c->null_options ? nullptr : options;
}

// Axes of a call over rows; returns the parameters' shape.
std::vector<int64_t> choose_axes(Call* c, Decoder& in, const int32_t** values, int32_t* count) {
  const auto n = static_cast<int32_t>(c->x->shape.size());
  std::vector<int64_t> sizes;
  c->axis_values = values;
  c->axis_count = count;
  c->null_options = in.one_in(8);
  if (in.one_in(3) || c->null_options) return {c->x->shape.back()};  // the last axis
  for (int32_t a = 0; a < n; ++a) {
    if (a + 1 < n && !in.one_in(3)) continue;
    c->axes.push_back(in.one_in(3) ? a - n : a);
    sizes.push_back(c->x->shape[static_cast<std::size_t>(a)]);
  }
  *values = c->axes.data();
  *count = static_cast<int32_t>(c->axes.size());
  return sizes;
}

// `residual` and `h` of a call over rows.
void add_residual(Call* c, Decoder& in) {
  c->residual = c->add("residual", c->x->shape, in);
  c->h = c->add("h", c->x->shape, in);
  c->h->written = true;
  c->residual->dtype = c->h->dtype = c->x->dtype;
  c->residual->in_options = c->h->in_options = true;
  lay_out(c->residual, in);
  lay_out(c->h, in);
  c->residual->given = c->h->given = in.one_in(3);
}

int32_t choose_channel_axis(Call* c, Decoder& in, int32_t* option) {
  const auto n = static_cast<int32_t>(c->x->shape.size());
  const int32_t axis = c->null_options ? 1 : 1 + in.below(n - 1);
  *option = in.one_in(3) ? axis - n : axis;
  c->numbers.push_back({.name = "channel_axis", .small = option});
  return axis;
}

// ---- the functions of methods over channels, as their signatures say

using normcore::Kind, normcore::Signature;

void choose_groups(Call* c, int64_t channels, Decoder& in) {
  c->count = 1;
  for (int64_t divisor : {2, 3, 5, 4, 8, 16}) {
    if (channels % divisor == 0 && in.one_in(2)) c->count = divisor;
  }
  if (in.one_in(4)) c->count = channels;
  c->numbers.push_back({.name = "num_groups", .whole = &c->count});
}

// The argument of a type: arrays in their order, and the one of any other.
template <class T>
T argument(Call* c, std::vector<Operand*>::const_iterator& next, const normcore_context* context) {
  if constexpr (std::is_same_v<T, const normcore_const_tensor*>) return (*next++)->in();
  if constexpr (std::is_same_v<T, const normcore_tensor*>) return c->y->out();
  if constexpr (std::is_same_v<T, int64_t>) return c->count;
  if constexpr (std::is_same_v<T, double>) return c->p;
  if constexpr (std::is_same_v<T, const normcore_channel_options*>) {
    return options_or_null(c, &c->channel);
  }
  if constexpr (std::is_same_v<T, const normcore_context*>) return context;
}

// Calls in which a channel may have a single value are not known to be valid.
template <class Method, class... A>
void channel_norm(Call* c, Decoder& in, normcore_status (*function)(A...)) {
  with_x(c, shape(in, 2, 5), in);
  c->channel = normcore_channel_defaults();
  c->null_options = in.one_in(8) && !normcore::kAlwaysGiven<Method>;
  const auto axis = static_cast<std::size_t>(choose_channel_axis(c, in, &c->channel.channel_axis));
  const int64_t elements = product(c->x->shape), channels = c->x->shape[axis];
  if (elements == 0 || elements / channels / c->x->shape[0] < 2) c->valid = false;
  if constexpr (requires(typename Signature<Method>::Options o) { o.eps; }) {
    c->channel.eps = in.pick({1e-5, 1e-3, 1e-12, 1.0});
    c->numbers.push_back({.name = "eps", .real = &c->channel.eps, .is_eps = true});
  }
  const bool has_running = normcore::kAlwaysGiven<Method> || in.one_in(2);
  std::vector<Operand*> arrays{c->x}, running;
  normcore::for_each_argument<Method>([&](const auto& a) {
    constexpr Kind kind = std::remove_cvref_t<decltype(a)>::kind;
    if constexpr (kind == Kind::own) {
      const bool logits = a.shape == normcore::OwnShape::logits;
      arrays.push_back(needed(c, a.name, {logits ? 3 : channels}, in));
    }
    if constexpr (kind == Kind::weight || kind == Kind::bias) {
      arrays.push_back(optional(c, a.name, {channels}, in));
    }
    if constexpr (kind == Kind::groups) choose_groups(c, channels, in);
    if constexpr (kind == Kind::buffer) {
      const bool mean = a.follows == normcore::Follows::mean;
      running.push_back(parameter(c, mean ? "running_mean" : "running_spread", {channels}, in,
                                  mean ? Numbers::kReal : Numbers::kPositive));
      running.back()->in_options = true;
      running.back()->given = has_running;
      if (normcore::kAlwaysGiven<Method>) c->required.push_back(running.back());
    }
  });
  c->run = [=](const normcore_context* context) {
    if (running.size() > 0) c->channel.running_mean = running[0]->in();
    if (running.size() > 1) c->channel.running_spread = running[1]->in();
    auto next = arrays.begin();
    return std::apply(function, std::tuple<A...>{argument<A>(c, next, context)...});
  };
}
template <class Method, auto kFunction>
void channels(Call* c, Decoder& in) {
  channel_norm<Method>(c, in, kFunction);
}

void lp_batch_norm(Call* c, Decoder& in) {
  c->p = in.pick({1.0, 2.0, 1.5, 4.0, std::numeric_limits<double>::infinity()});
  channel_norm<normcore::LpBatchNorm>(c, in, normcore_lp_batch_norm);
  c->numbers.push_back({.name = "p", .real = &c->p});
}
void topk_batch_norm(Call* c, Decoder& in) {
  c->count = in.pick<int64_t>({1, 2, 10, 1000000});
  channel_norm<normcore::TopKBatchNorm>(c, in, normcore_topk_batch_norm);
  c->numbers.push_back({.name = "k", .whole = &c->count});
}

// ---- the others

void layer_norm(Call* c, Decoder& in) {
  with_x(c, shape(in, 1, 5), in);
  auto& o = c->layer_norm = normcore_layer_norm_defaults();
  const auto sizes = choose_axes(c, in, &o.axes, &o.n_axes);
  Operand* weight = optional(c, "weight", sizes, in);
  Operand* bias = optional(c, "bias", sizes, in);
  add_residual(c, in);
  c->numbers.push_back({.name = "eps", .real = &o.eps, .is_eps = true});
  c->run = [=](const normcore_context* context) {
    c->layer_norm.residual = c->residual->in();
    c->layer_norm.h = c->h->out();
    return normcore_layer_norm(c->x->in(), weight->in(), bias->in(), c->y->out(),
                               options_or_null(c, &c->layer_norm), context);
  };
}

void rms_norm(Call* c, Decoder& in) {
  with_x(c, shape(in, 1, 5), in);
  auto& o = c->rms_norm = normcore_rms_norm_defaults();
  Operand* weight = optional(c, "weight", choose_axes(c, in, &o.axes, &o.n_axes), in);
  add_residual(c, in);
  c->numbers.push_back({.name = "eps", .real = &o.eps, .is_eps = true});
  c->numbers.push_back({.name = "weight_offset", .real = &o.weight_offset});
  c->run = [=](const normcore_context* context) {
    c->rms_norm.residual = c->residual->in();
    c->rms_norm.h = c->h->out();
    return normcore_rms_norm(c->x->in(), weight->in(), c->y->out(),
                             options_or_null(c, &c->rms_norm), context);
  };
}

void normalize(Call* c, Decoder& in) {
  with_x(c, shape(in, 1, 5), in);
  auto& o = c->normalize = normcore_normalize_defaults();
  choose_axes(c, in, &o.axes, &o.n_axes);
  o.ord = in.pick({2.0, 1.0, std::numeric_limits<double>::infinity()});
  c->numbers.push_back({.name = "eps", .real = &o.eps, .is_eps = true});
  c->numbers.push_back({.name = "ord", .real = &o.ord});
  c->run = [=](const normcore_context* context) {
    return normcore_normalize(c->x->in(), c->y->out(), options_or_null(c, &c->normalize), context);
  };
}

void weight_norm(Call* c, Decoder& in) {
  with_x(c, shape(in, 1, 4), in, "v", "w");
  auto& o = c->weight_norm = normcore_weight_norm_defaults();
  const auto n = static_cast<int32_t>(c->x->shape.size());
  c->null_options = in.one_in(8);
  const int32_t axis = c->null_options ? 0 : in.below(n);
  o.axis = in.one_in(3) ? axis - n : axis;
  o.whole = !c->null_options && in.one_in(4);
  const int64_t channels = o.whole ? 1 : c->x->shape[static_cast<std::size_t>(axis)];
  std::vector<int64_t> sizes{channels};
  if (in.one_in(4)) {
    sizes.assign(static_cast<std::size_t>(n), 1);
    if (!o.whole) sizes[static_cast<std::size_t>(axis)] = channels;
  }
  if (in.one_in(6)) sizes.clear();
  Operand* g = needed(c, "g", sizes, in);
  c->numbers = {{.name = "axis", .small = &o.axis},
                {.name = "eps", .real = &o.eps, .is_eps = true}};
  c->run = [=](const normcore_context* context) {
    return normcore_weight_norm(c->x->in(), g->in(), c->y->out(),
                                options_or_null(c, &c->weight_norm), context);
  };
}

void spectral_norm(Call* c, Decoder& in) {
  with_x(c, shape(in, 1, 4), in, "weight", "w");
  auto& o = c->spectral_norm = normcore_spectral_norm_defaults();
  const auto n = static_cast<int32_t>(c->x->shape.size());
  c->null_options = in.one_in(8);
  const int32_t axis = c->null_options ? 0 : in.below(n);
  o.axis = in.one_in(3) ? axis - n : axis;
  o.n_power_iterations = c->null_options ? 1 : in.below(4);
  o.u_first = !c->null_options && in.one_in(2);
  o.bound = in.one_in(3) ? 1.5 : 0;
  const int64_t rows = c->x->shape[static_cast<std::size_t>(axis)];
  const int64_t elements = product(c->x->shape);
  if (elements == 0) c->valid = false;
  // The one that the first product needs, without iterations both.
  const bool both = o.n_power_iterations == 0 || in.one_in(3);
  Operand* u = parameter(c, "u", {rows}, in);
  Operand* v = parameter(c, "v", {rows ? elements / rows : 0}, in);
  u->given = both || !o.u_first;
  v->given = both || o.u_first;
  const bool wants_sigma = !in.one_in(3);
  c->numbers = {{.name = "axis", .small = &o.axis},
                {.name = "eps", .real = &o.eps, .is_eps = true},
                {.name = "bound", .real = &o.bound},
                {.name = "n_power_iterations", .whole = &o.n_power_iterations, .takes_long = true}};
  c->run = [=](const normcore_context* context) {
    return normcore_spectral_norm(c->x->in(), u->in(), v->in(), c->y->out(),
                                  wants_sigma ? &c->sigma : nullptr,
                                  options_or_null(c, &c->spectral_norm), context);
  };
}

void divisive_norm(Call* c, Decoder& in) {
  with_x(c, shape(in, 2, 4, /*may_be_long=*/false), in);  // a parameter has its square
  auto& o = c->divisive_norm = normcore_divisive_norm_defaults();
  c->null_options = in.one_in(8);
  const auto axis = static_cast<std::size_t>(choose_channel_axis(c, in, &o.channel_axis));
  const int64_t channels = c->x->shape[axis];
  const std::vector<int64_t> one{channels}, each{};
  o.exponent = in.pick({2.0, 1.0, 1.5});
  o.power = in.pick({1.0, 0.5, 2.0});
  Operand* weights = needed(c, "weights", {channels, channels}, in, Numbers::kPositive);
  Operand* sigma = needed(c, "sigma", in.one_in(4) ? each : one, in, Numbers::kPositive);
  Operand* gain = optional(c, "gain", in.one_in(4) ? each : one, in);
  c->numbers.push_back({.name = "exponent", .real = &o.exponent});
  c->numbers.push_back({.name = "power", .real = &o.power});
  c->run = [=](const normcore_context* context) {
    return normcore_divisive_norm(c->x->in(), weights->in(), sigma->in(), gain->in(), c->y->out(),
                                  options_or_null(c, &c->divisive_norm), context);
  };
}

void gdn(Call* c, Decoder& in) {
  with_x(c, shape(in, 2, 4, /*may_be_long=*/false), in);  // a parameter has its square
  auto& o = c->gdn = normcore_gdn_defaults();
  c->null_options = in.one_in(8);
  const auto axis = static_cast<std::size_t>(choose_channel_axis(c, in, &o.channel_axis));
  const int64_t channels = c->x->shape[axis];
  o.inverse = in.one_in(2);
  o.alpha = in.pick({2.0, 1.0, 1.5});
  o.epsilon = in.pick({0.5, 1.0, 0.75});
  Operand* beta = needed(c, "beta", {channels}, in, Numbers::kPositive);
  Operand* gamma = needed(c, "gamma", {channels, channels}, in, Numbers::kPositive);
  c->numbers.push_back({.name = "alpha", .real = &o.alpha});
  c->numbers.push_back({.name = "epsilon", .real = &o.epsilon});
  c->run = [=](const normcore_context* context) {
    return normcore_gdn(c->x->in(), beta->in(), gamma->in(), c->y->out(),
                        options_or_null(c, &c->gdn), context);
  };
}

void local_response_norm(Call* c, Decoder& in) {
  with_x(c, shape(in, 3, 5), in);
  auto& o = c->local_response_norm = normcore_local_response_norm_defaults();
  c->null_options = in.one_in(8);
  choose_channel_axis(c, in, &o.channel_axis);
  o.across_space = in.one_in(2);
  o.even_window_onnx = in.one_in(3);
  o.beta = in.pick({0.75, 0.5, 1.0, 2.0, -0.3});
  c->count = in.pick<int64_t>({3, 5, 2, 1, 4, 7, 10, 33, 101, 1000});
  c->numbers.push_back({.name = "size", .whole = &c->count});
  c->numbers.push_back({.name = "alpha", .real = &o.alpha});
  c->numbers.push_back({.name = "beta", .real = &o.beta});
  c->numbers.push_back({.name = "k", .real = &o.k});
  c->run = [=](const normcore_context* context) {
    return normcore_local_response_norm(c->x->in(), c->count, c->y->out(),
                                        options_or_null(c, &c->local_response_norm), context);
  };
}

void local_divisive_norm(Call* c, Decoder& in) {
  with_x(c, shape(in, 3, 5), in);
  auto& o = c->local_divisive_norm = {};
  const auto axis = static_cast<std::size_t>(choose_channel_axis(c, in, &o.channel_axis));
  const int64_t channels = c->x->shape[axis];
  const std::vector<int64_t> one{channels}, each{};
  for (auto* window : {&c->summation_window, &c->suppression_window}) {
    window->resize(in.one_in(3) ? c->x->shape.size() - 2 : 1);
    for (int64_t& n : *window) n = in.pick<int64_t>({3, 5, 1, 7, 9, 17, 101});
  }
  o.summation_window = c->summation_window.data();
  o.n_summation = static_cast<int32_t>(c->summation_window.size());
  o.suppression_window = c->suppression_window.data();
  o.n_suppression = static_cast<int32_t>(c->suppression_window.size());
  Operand* sigma = needed(c, "sigma", in.one_in(4) ? each : one, in, Numbers::kPositive);
  Operand* weight = optional(c, "weight", {channels}, in);
  Operand* bias = optional(c, "bias", {channels}, in);
  c->numbers.push_back({.name = "summation_window", .whole = &c->summation_window[0]});
  c->numbers.push_back({.name = "suppression_window", .whole = &c->suppression_window[0]});
  c->run = [=](const normcore_context* context) {
    return normcore_local_divisive_norm(c->x->in(), sigma->in(), weight->in(), bias->in(),
                                        c->y->out(), options_or_null(c, &c->local_divisive_norm),
                                        context);
  };
}

struct Function {
  const char* name;
  void (*make)(Call*, Decoder&);
};
const Function kFunctions[] = {
    {"layer_norm", layer_norm},
    {"rms_norm", rms_norm},
    {"normalize", normalize},
    {"batch_norm", channels<normcore::BatchNorm, normcore_batch_norm>},
    {"instance_norm", channels<normcore::InstanceNorm, normcore_instance_norm>},
    {"group_norm", channels<normcore::GroupNorm, normcore_group_norm>},
    {"batch_renorm", channels<normcore::BatchRenorm, normcore_batch_renorm>},
    {"batch_instance_norm", channels<normcore::BatchInstanceNorm, normcore_batch_instance_norm>},
    {"switchable_norm", channels<normcore::SwitchableNorm, normcore_switchable_norm>},
    {"mean_only_batch_norm", channels<normcore::MeanOnlyBatchNorm, normcore_mean_only_batch_norm>},
    {"lp_batch_norm", lp_batch_norm},
    {"topk_batch_norm", topk_batch_norm},
    {"weight_norm", weight_norm},
    {"spectral_norm", spectral_norm},
    {"divisive_norm", divisive_norm},
    {"gdn", gdn},
    {"local_response_norm", local_response_norm},
    {"local_divisive_norm", local_divisive_norm},
};

}  // namespace

int function_count() { return static_cast<int>(std::size(kFunctions)); }
const char* function_name(int i) { return kFunctions[i].name; }

void make_call(int i, Decoder& in, Call* call) {
  call->function = kFunctions[i].name;
  kFunctions[i].make(call, in);
}

Operand* Call::add(const char* name, std::vector<int64_t> shape, Decoder& in, Numbers numbers) {
  Operand& t = operands.emplace_back();
  t.name = name;
  t.numbers = numbers;
  t.set_shape(std::move(shape));
  t.dtype = dtype(in);
  return &t;
}

std::string Call::text() const {
  std::string s = function;
  for (const Operand& t : operands) s += " " + t.text();
  char value[64];
  for (const Number& n : numbers) {
    const double number = n.real ? *n.real : n.whole ? double(*n.whole) : double(*n.small);
    std::snprintf(value, sizeof(value), " %s=%.17g", n.name, number);
    s += value;
  }
  for (std::size_t i = 0; i < axes.size(); ++i) {
    s += (i == 0 ? " axes=" : ",") + std::to_string(axes[i]);
  }
  if (axis_count && *axis_count != static_cast<int32_t>(axes.size())) {
    s += " n_axes=" + std::to_string(*axis_count);
  }
  if (null_options) s += " options=null";
  return s;
}

}  // namespace fuzz
