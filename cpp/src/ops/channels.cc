// Batch, instance and group normalization and their adaptive relatives: calls as their signatures
// say (ops/signatures.h), from which their functions are written too.
#include <array>
#include <string>
#include <string_view>

#include "ops/channel_pipeline.h"
#include "ops/groups_as_rows.h"
#include "ops/signatures.h"

namespace normcore {
namespace {

const ConstTensor kAbsent{};

template <class Method>
using OptionsOf = typename Signature<Method>::Options;

// ---- the arguments of a call, checked

ExpectedShape three(const char* rule) {
  ExpectedShape shape;
  shape.append(3);
  shape.rule = rule;
  return shape;
}

void check_own(const Own& argument, const ConstTensor& given, const ChannelCall& call) {
  if (!given) throw type_error(std::string(argument.name) + " is None, expected an array");
  const bool logits = argument.shape == OwnShape::logits;
  check_shape(argument.name, given, logits ? three("instance, layer, batch") : call.channel_shape);
}
void check_own_gradient(const Own& argument, const Tensor& given, const ChannelCall& call) {
  if (!given) return;
  const bool logits = argument.shape == OwnShape::logits;
  check_shape(argument.gradient, given, logits ? three("that of the logits") : call.channel_shape);
}

// Both or neither; `use` takes the statistics from them.
template <class Method>
void give_buffers(const OptionsOf<Method>& o, bool use, ChannelCall& call) {
  if constexpr (kBuffers<Method> == 1) {
    if (o.running_mean) check_shape("running_mean", o.running_mean, call.channel_shape);
    if (use) call.given.mean = o.running_mean;
  } else {
    constexpr auto spread = std::get<1>(arguments_of<Method, Kind::buffer>());
    check_buffers(o.running_mean, o.*spread.member, spread.name, call.channel_shape);
    if (!use) return;
    call.given = {o.running_mean, o.*spread.member, spread.follows == Follows::deviation,
                  spread.name};
  }
}

// What is too little to have statistics of, as torch has it; of a batch see check_samples.
template <class Method>
void check_pools(const ChannelCall& call, bool training) {
  if (kPoolCount<Method> > 1 || call.x.size() == 0) return;
  if (Method::pools[0] == Pool::instance && training && call.space() == 1) {
    throw value_error("Expected more than 1 spatial element when training" + input_size(call.x));
  }
  const Index channels = call.channels() / call.groups;
  if (Method::pools[0] == Pool::group && call.samples() * channels * call.space() == 1) {
    throw value_error("Expected more than 1 value per channel when training" + input_size(call.x));
  }
}

// The call of a method, with the statistics of `Acting`.
template <class Method, class Acting = Method>
ChannelCall call_of(const Inputs& a, const OptionsOf<Method>& o) {
  ChannelCall call =
      ChannelCall::of(std::type_identity<Acting>(), a.x, a.weight, a.bias, o.channel_axis);
  const bool training = learns<Method>(o);
  if constexpr (requires { Signature<Method>::needs_buffers; }) {
    if (!o.running_mean && (kAlwaysGiven<Method> || !training)) {
      throw value_error(std::string("running_mean is None, expected an array") +
                        Signature<Method>::needs_buffers);
    }
  }
  if constexpr (kBuffers<Method> > 0) {
    give_buffers<Method>(o, /*use=*/kAlwaysGiven<Method> || !training, call);
  }
  int own = 0;
  for_each_argument<Method>([&](const auto& argument) {
    using A = std::remove_cvref_t<decltype(argument)>;
    if constexpr (A::kind == Kind::own) check_own(argument, *a.own[own++], call);
    if constexpr (A::kind == Kind::option) check_option(argument, o, training);
    if constexpr (A::kind == Kind::groups) {
      if (a.groups < 1 || call.channels() % a.groups != 0) {
        throw value_error(std::string(argument.name) + " is " + std::to_string(a.groups) +
                          ", expected a positive divisor of " + std::to_string(call.channels()) +
                          ": " + call.channel_shape.rule_text());
      }
      call.groups = a.groups;
    }
    if constexpr (A::kind == Kind::mask) {
      if (o.*argument.member) count_by(o.*argument.member, call);
    }
  });
  check_pools<Method>(call, training);
  return call;
}

// ---- what it hands to the pipeline

template <class Method>
constexpr bool has_option(std::string_view name) {
  bool found = false;
  for_each_argument<Method>([&](const auto& a) { found = found || a.name == name; });
  return found;
}

template <class Method>
auto updates_of(const OptionsOf<Method>& o) {
  return std::apply(
      [&](const auto&... buffer) {
        bool unbiased = false;
        if constexpr (has_option<Method>("unbiased_running_var")) unbiased = o.unbiased_running_var;
        return std::array<BufferUpdate, sizeof...(buffer)>{
            BufferUpdate{buffer.name, o.*buffer.member, buffer.follows, o.momentum,
                         unbiased && buffer.follows == Follows::variance}...};
      },
      arguments_of<Method, Kind::buffer>());
}

// `down`: their gradients, in backward.
template <class Method>
auto own_parameters(const Inputs& a, const std::array<const Tensor*, 2>& down = {}) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    [[maybe_unused]] constexpr auto own = arguments_of<Method, Kind::own>();
    return std::array<OwnParameter, sizeof...(I)>{
        OwnParameter{std::get<I>(own).name, *a.own[I], std::get<I>(own).gradient, down[I]}...};
  }(std::make_index_sequence<kOwnCount<Method>>());
}

// Params that are scalars.
template <class Params>
auto constant(const Params& params) {
  return [params](Memory&) { return params; };
}

// What makes the method's Params, with arrays in the memory of the call.
template <class Method>
auto params_of(const ChannelCall& call, const Inputs& a, const OptionsOf<Method>& o) {
  if constexpr (kOwnCount<Method> == 0) {
    return constant(Signature<Method>::params(o, nullptr));
  } else {
    return [&](Memory& memory) {
      const double* own[kOwnCount<Method>];
      int i = 0;
      for_each_argument<Method>([&](const auto& argument) {
        if constexpr (std::remove_cvref_t<decltype(argument)>::kind == Kind::own) {
          const ConstTensor& given = *a.own[i];
          own[i++] = argument.shape == OwnShape::channels
                         ? call.load_channels(given, memory)
                         : memory.load<double>(given, vector_walk(given));
        }
      });
      return Signature<Method>::params(o, own);
    };
  }
}

// Brings gradients by channel, a row for each number of ParamsGrad, to where the caller has them.
template <class Method>
void store_own(const double* by_channel, const std::array<const Tensor*, 2>& down, Index channels,
               Memory& memory) {
  int i = 0;
  for_each_argument<Method>([&](const auto& argument) {
    if constexpr (std::remove_cvref_t<decltype(argument)>::kind == Kind::own) {
      const Tensor& out = *down[i++];
      const Index rows = argument.shape == OwnShape::logits ? 3 : 1;
      const double* values = by_channel;
      by_channel += rows * channels;
      if (!out) return;
      if (argument.shape == OwnShape::logits) {
        double* sums = memory.take<double>(rows);
        memory.sum_each(values, rows, channels, sums);
        values = sums;
      }
      memory.store(values, out, vector_walk(out));
    }
  });
}

// In evaluation a method that keeps a running deviation is batch norm with it.
template <class Method>
bool divides_by_buffer(const OptionsOf<Method>& o) {
  if constexpr (keeps_deviation<Method>()) return o.running_mean && !learns<Method>(o);
  return false;
}
const BatchNorm::Params kBufferAlone{0};

void check_one_process(const Context& context) {
  if (!context.exchange) return;
  throw value_error("context.exchange is given, expected none: spreads are not merged");
}

// ---- every method

template <class Method>
void forward(const Inputs& a, const Tensor& y, const OptionsOf<Method>& o, const StatsOut& stats,
             const Context& context) {
  const cpu::RunningCall running(context);
  if (divides_by_buffer<Method>(o)) {
    return channel_forward<BatchNorm>(call_of<Method, BatchNorm>(a, o), constant(kBufferAlone), y,
                                      {}, stats, context);
  }
  if (MeasuresSpread<Method>) check_one_process(context);
  const ChannelCall call = call_of<Method>(a, o);
  if constexpr (has<Method>(Kind::groups)) {
    if (groups_are_rows(call, context)) return forward_by_rows(call, o.eps, y, stats, context);
  }
  const auto own = own_parameters<Method>(a);
  if constexpr (kBuffers<Method> > 0) {
    const auto updates = updates_of<Method>(o);
    channel_forward<Method>(call, params_of<Method>(call, a, o), y,
                            moving(updates, o.running_mean && learns<Method>(o)), stats, context,
                            own);
  } else {
    channel_forward<Method>(call, params_of<Method>(call, a, o), y, {}, stats, context, own);
  }
}

template <class Method>
void backward(const ConstTensor& dy, const Inputs& a, const Gradients& gradients,
              const OptionsOf<Method>& o, const SavedStats& stats, const Context& context,
              const std::array<const Tensor*, 2>& down = {}) {
  const cpu::RunningCall running(context);
  if (divides_by_buffer<Method>(o)) {
    return channel_backward<BatchNorm>(call_of<Method, BatchNorm>(a, o), constant(kBufferAlone), dy,
                                       gradients, stats, context);
  }
  if (MeasuresSpread<Method>) check_one_process(context);
  const ChannelCall call = call_of<Method>(a, o);
  if (kAlwaysGiven<Method> && (!stats.pooled || !stats.given)) {
    throw value_error(
        "stats is None, expected what the forward call returned: in training the running buffers "
        "have moved on");
  }
  if constexpr (has<Method>(Kind::groups)) {
    if (groups_are_rows(call, context)) {
      return backward_by_rows(call, o.eps, dy, gradients, stats, context);
    }
  }
  const auto params = params_of<Method>(call, a, o);
  if constexpr (kOwnCount<Method> == 0) {
    channel_backward<Method>(call, params, dy, gradients, stats, context);
  } else {
    bool wanted = false;
    std::size_t i = 0;
    for_each_argument<Method>([&](const auto& argument) {
      if constexpr (std::remove_cvref_t<decltype(argument)>::kind == Kind::own) {
        check_own_gradient(argument, *down[i], call);
        wanted = wanted || *down[i++];
      }
    });
    const auto own = own_parameters<Method>(a, down);
    channel_backward<Method>(call, params, dy, gradients, stats, context, OwnGradients{own, wanted},
                             [&](const double* by_channel, Memory& memory) {
                               store_own<Method>(by_channel, down, call.channels(), memory);
                             });
  }
}

}  // namespace

#include "ops/channels.inc"

}  // namespace normcore
