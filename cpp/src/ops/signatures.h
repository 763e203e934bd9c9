// What each method takes beside x, said once: the arrays and options of its call, in the order in
// which Python gives them, with the bounds of the numbers. The Python binding and the checks of
// options are made from it, as are the tables of tests and benchmarks, and of the channel family
// also the operations and the C interface; those of rows and weights are written out, and held to
// it by tests/test_signatures.py. It is no public header: users of C++ see the functions and option
// structs of ops.h, which stay plain aggregates, so that `BatchNormOptions{.training = true}` and
// `BatchNormOptions{mean, var}` compile.
#pragma once

#include <array>
#include <cstddef>
#include <limits>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>

#include "normcore/methods.def"
#include "normcore/ops.h"
#include "ops/checks.h"

namespace normcore {

// ---- what an argument may be

enum class Kind {
  own,     // an array of parameters of the method's own, always given
  groups,  // the number of groups of channels
  weight,  // as has the bias: one value per channel, or per element of a row
  bias,
  buffer,    // running statistics, (C,)
  learns,    // whether statistics are taken from x and the buffers move
  option,    // a number or a bool
  axes,      // what is normalized, or what weight norm keeps
  mask,      // what each position counts
  residual,  // added to x before; in backward the gradient that comes by the sum
};

constexpr bool has_gradient(Kind kind) {
  return kind == Kind::own || kind == Kind::weight || kind == Kind::bias;
}
constexpr bool is_array(Kind kind) {
  return has_gradient(kind) || kind == Kind::buffer || kind == Kind::mask || kind == Kind::residual;
}

enum class OwnShape {
  channels,  // (C,)
  logits,    // (3,): a softmax of them weighs instance, layer and batch
  kept,      // weight norm's g: one value for each position of the kept axis, or one for all
};
enum class Follows { mean, variance, deviation };

enum class Needed {
  always,
  training,  // not by inference
  forward,   // nor by backward
};

template <Kind kKind>
struct Argument {
  static constexpr Kind kind = kKind;
  const char* name;
  Needed needed = Needed::always;
};
struct Own : Argument<Kind::own> {
  const char* gradient;
  OwnShape shape;
  constexpr Own(const char* name_, const char* gradient_, OwnShape shape_)
      : Argument{name_}, gradient(gradient_), shape(shape_) {}
};
template <class O>
struct RunningBuffer : Argument<Kind::buffer> {
  Buffer O::* member;
  Follows follows;
  constexpr RunningBuffer(const char* name_, Buffer O::* m, Follows f)
      : Argument{name_}, member(m), follows(f) {}
};
template <class O>
struct Learns : Argument<Kind::learns> {
  bool O::* member;
  constexpr Learns(const char* name_, bool O::* m) : Argument{name_}, member(m) {}
};
template <class O, class T>
struct Option : Argument<Kind::option> {
  T O::* member;
  Bounds bounds;
  constexpr Option(const char* name_, T O::* m, Bounds b = kAny, Needed n = Needed::always)
      : Argument{name_, n}, member(m), bounds(b) {}
};
template <class O, class T>
struct AxesOption : Argument<Kind::axes> {
  T O::* member;
  constexpr AxesOption(const char* name_, T O::* m) : Argument{name_}, member(m) {}
};
template <class O>
struct Mask : Argument<Kind::mask> {
  ConstTensor O::* member;
  explicit constexpr Mask(ConstTensor O::* m) : Argument{"mask"}, member(m) {}
};
template <class O>
struct Residual : Argument<Kind::residual> {
  ConstTensor O::* member;
  explicit constexpr Residual(ConstTensor O::* m) : Argument{"residual"}, member(m) {}
};
inline constexpr Argument<Kind::groups> kNumGroups{"num_groups"};
inline constexpr Argument<Kind::weight> kWeight{"weight"};
inline constexpr Argument<Kind::bias> kBias{"bias"};

// What several methods take, of options that are an O.
template <class O>
constexpr RunningBuffer kRunningMean{"running_mean", &O::running_mean, Follows::mean};
template <class O>
constexpr RunningBuffer kRunningVar{"running_var", &O::running_var, Follows::variance};
template <class O>
constexpr RunningBuffer kRunningScale{"running_scale", &O::running_scale, Follows::deviation};
template <class O>
constexpr Learns kTraining{"training", &O::training};
template <class O>
constexpr Option kMomentum{"momentum", &O::momentum, kFraction, Needed::forward};
template <class O>
constexpr Option kEps{"eps", &O::eps, kNotNegative};
template <class O>
constexpr Option kPositiveEps{"eps", &O::eps, kPositiveInTraining};
template <class O>
constexpr Option kUnbiased{"unbiased_running_var", &O::unbiased_running_var, kAny, Needed::forward};
template <class O>
constexpr Option kChannelAxis{"channel_axis", &O::channel_axis};
template <class O>
constexpr Mask kMaskArgument{&O::mask};
template <class O>
constexpr Residual kResidualArgument{&O::residual};
template <class O>
constexpr AxesOption kAxes{"axis", &O::axes};

// ---- the methods: a Signature<Method> for each line of methods.def

enum class Family { channels, rows, weights };

// What a family calls its input and the gradients.
struct InputNames {
  const char* x;
  const char* dy;
  const char* dx;
};
constexpr InputNames names_of(Family family) {
  return family == Family::weights ? InputNames{"v", "dw", "dv"} : InputNames{"x", "dy", "dx"};
}

// A signature has
//   name            the function's name
//   Options         the struct of ops.h
//   forward, backward   the functions of ops.h
//   family
//   arguments       std::tuple of the kinds above, in the order of the Python call
// and of the channel family also
//   title           how messages call the method
//   params(options, own)    the method's Params; own: its own arrays, in the library's memory
// and may have needs_buffers: where the call uses running statistics, what it says without them.
template <class Method>
struct Signature;

// NORMCORE_CALLS names what stands in ops.h.
#define NORMCORE_CALLS(function, Struct)                 \
  static constexpr const char* name = #function;         \
  static constexpr auto forward = &function;             \
  static constexpr auto backward = &function##_backward; \
  using Options = Struct;
using OwnValues = const double* const*;

template <>
struct Signature<BatchNorm> {
  NORMCORE_CALLS(batch_norm, BatchNormOptions)
  static constexpr Family family = Family::channels;
  static constexpr const char* title = "batch norm";
  static constexpr auto arguments = std::tuple{kWeight,
                                               kBias,
                                               kRunningMean<Options>,
                                               kRunningVar<Options>,
                                               kTraining<Options>,
                                               kMomentum<Options>,
                                               kPositiveEps<Options>,
                                               kUnbiased<Options>,
                                               kChannelAxis<Options>,
                                               kMaskArgument<Options>};
  static BatchNorm::Params params(const Options& o, OwnValues) { return {o.eps}; }
};

template <>
struct Signature<InstanceNorm> {
  NORMCORE_CALLS(instance_norm, InstanceNormOptions)
  static constexpr Family family = Family::channels;
  static constexpr const char* title = "instance norm";
  static constexpr const char* needs_buffers = ": use_input_stats=False takes statistics from it";
  static constexpr auto arguments = std::tuple{kWeight,
                                               kBias,
                                               kRunningMean<Options>,
                                               kRunningVar<Options>,
                                               Learns("use_input_stats", &Options::use_input_stats),
                                               kMomentum<Options>,
                                               kEps<Options>,
                                               kUnbiased<Options>,
                                               kChannelAxis<Options>};
  static InstanceNorm::Params params(const Options& o, OwnValues) { return {o.eps}; }
};

template <>
struct Signature<GroupNorm> {
  NORMCORE_CALLS(group_norm, GroupNormOptions)
  static constexpr Family family = Family::channels;
  static constexpr const char* title = "group norm";
  static constexpr auto arguments =
      std::tuple{kNumGroups, kWeight, kBias, kEps<Options>, kChannelAxis<Options>};
  static GroupNorm::Params params(const Options& o, OwnValues) { return {o.eps}; }
};

template <>
struct Signature<BatchRenorm> {
  NORMCORE_CALLS(batch_renorm, BatchRenormOptions)
  static constexpr Family family = Family::channels;
  static constexpr const char* title = "batch renorm";
  static constexpr const char* needs_buffers = "";
  static constexpr auto arguments =
      std::tuple{kWeight,
                 kBias,
                 kRunningMean<Options>,
                 RunningBuffer("running_std", &Options::running_std, Follows::deviation),
                 kTraining<Options>,
                 kMomentum<Options>,
                 Option("r_max", &Options::r_max, kAtLeastOne, Needed::training),
                 Option("d_max", &Options::d_max, kNotNegative, Needed::training),
                 kPositiveEps<Options>,
                 kChannelAxis<Options>,
                 kMaskArgument<Options>};
  static BatchRenorm::Params params(const Options& o, OwnValues) {
    return {o.eps, o.r_max, o.d_max};
  }
};

template <>
struct Signature<BatchInstanceNorm> {
  NORMCORE_CALLS(batch_instance_norm, BatchInstanceNormOptions)
  static constexpr Family family = Family::channels;
  static constexpr const char* title = "batch-instance norm";
  static constexpr auto arguments = std::tuple{Own("rho", "drho", OwnShape::channels),
                                               kWeight,
                                               kBias,
                                               kRunningMean<Options>,
                                               kRunningVar<Options>,
                                               kTraining<Options>,
                                               kMomentum<Options>,
                                               kEps<Options>,
                                               kUnbiased<Options>,
                                               kChannelAxis<Options>};
  static BatchInstanceNorm::Params params(const Options& o, OwnValues own) {
    return {o.eps, own[0]};
  }
};

template <>
struct Signature<SwitchableNorm> {
  NORMCORE_CALLS(switchable_norm, SwitchableNormOptions)
  static constexpr Family family = Family::channels;
  static constexpr const char* title = "switchable norm";
  static constexpr auto arguments = std::tuple{Own("mean_logits", "dmean_logits", OwnShape::logits),
                                               Own("var_logits", "dvar_logits", OwnShape::logits),
                                               kWeight,
                                               kBias,
                                               kRunningMean<Options>,
                                               kRunningVar<Options>,
                                               kTraining<Options>,
                                               kMomentum<Options>,
                                               kEps<Options>,
                                               kChannelAxis<Options>};
  static SwitchableNorm::Params params(const Options& o, OwnValues own) {
    return {o.eps, own[0], own[1]};
  }
};

template <>
struct Signature<MeanOnlyBatchNorm> {
  NORMCORE_CALLS(mean_only_batch_norm, MeanOnlyBatchNormOptions)
  static constexpr Family family = Family::channels;
  static constexpr const char* title = "mean-only batch norm";
  static constexpr auto arguments = std::tuple{kBias,
                                               kRunningMean<Options>,
                                               kTraining<Options>,
                                               kMomentum<Options>,
                                               kChannelAxis<Options>,
                                               kMaskArgument<Options>};
  static MeanOnlyBatchNorm::Params params(const Options&, OwnValues) { return {}; }
};

template <>
struct Signature<LpBatchNorm> {
  NORMCORE_CALLS(lp_batch_norm, LpBatchNormOptions)
  static constexpr Family family = Family::channels;
  static constexpr const char* title = "Lp batch norm";
  static constexpr auto arguments = std::tuple{kWeight,
                                               kBias,
                                               Option("p", &Options::p, kOrder),
                                               kRunningMean<Options>,
                                               kRunningScale<Options>,
                                               kTraining<Options>,
                                               kMomentum<Options>,
                                               kPositiveEps<Options>,
                                               kChannelAxis<Options>};
  static LpBatchNorm::Params params(const Options& o, OwnValues) {
    // Of an infinite order: the one largest.
    const bool infinite = o.p == std::numeric_limits<double>::infinity();
    return {o.eps, infinite ? SpreadKind{0, 1} : SpreadKind{o.p, 0}};
  }
};

template <>
struct Signature<TopKBatchNorm> {
  NORMCORE_CALLS(topk_batch_norm, TopKBatchNormOptions)
  static constexpr Family family = Family::channels;
  static constexpr const char* title = "top-k batch norm";
  static constexpr auto arguments = std::tuple{kWeight,
                                               kBias,
                                               Option("k", &Options::k, kAtLeastOne),
                                               kRunningMean<Options>,
                                               kRunningScale<Options>,
                                               kTraining<Options>,
                                               kMomentum<Options>,
                                               kPositiveEps<Options>,
                                               kChannelAxis<Options>};
  static TopKBatchNorm::Params params(const Options& o, OwnValues) { return {o.eps, {0, o.k}}; }
};

template <>
struct Signature<LayerNorm> {
  NORMCORE_CALLS(layer_norm, LayerNormOptions)
  static constexpr Family family = Family::rows;
  static constexpr auto arguments =
      std::tuple{kWeight, kBias, kAxes<Options>, kEps<Options>, kResidualArgument<Options>};
};

template <>
struct Signature<RMSNorm> {
  NORMCORE_CALLS(rms_norm, RMSNormOptions)
  static constexpr Family family = Family::rows;
  static constexpr auto arguments =
      std::tuple{kWeight, kAxes<Options>, kEps<Options>,
                 Option("weight_offset", &Options::weight_offset), kResidualArgument<Options>};
};

template <>
struct Signature<Normalize> {
  NORMCORE_CALLS(normalize, NormalizeOptions)
  static constexpr Family family = Family::rows;
  static constexpr auto arguments =
      std::tuple{Option("ord", &Options::ord, kNormOrder), kAxes<Options>, kEps<Options>};
};
// Other orders, and squares that leave the range of double.
template <>
struct Signature<LpNormalize> : Signature<Normalize> {};

template <>
struct Signature<WeightNorm> {
  NORMCORE_CALLS(weight_norm, WeightNormOptions)
  static constexpr Family family = Family::weights;
  static constexpr auto arguments =
      std::tuple{Own("g", "dg", OwnShape::kept), AxesOption("axis", &Options::axis), kEps<Options>};
};
template <>
struct Signature<WideWeightNorm> : Signature<WeightNorm> {};

#undef NORMCORE_CALLS

// ---- what follows from a signature

template <class Method>
inline constexpr std::size_t kArguments = std::tuple_size_v<decltype(Signature<Method>::arguments)>;

// f(argument) for each, in their order.
template <class Method, class F>
constexpr void for_each_argument(F&& f) {
  std::apply([&](const auto&... a) { (f(a), ...); }, Signature<Method>::arguments);
}

template <class Method>
constexpr int count_of(Kind kind) {
  int n = 0;
  for_each_argument<Method>([&](const auto& a) { n += a.kind == kind; });
  return n;
}
template <class Method>
constexpr bool has(Kind kind) {
  return count_of<Method>(kind) > 0;
}
template <class Method>
inline constexpr int kOwnCount = count_of<Method>(Kind::own);
template <class Method>
inline constexpr std::size_t kGradients =
    kOwnCount<Method> + count_of<Method>(Kind::weight) + count_of<Method>(Kind::bias);
template <class Method>
inline constexpr int kBuffers = count_of<Method>(Kind::buffer);

// Where the first argument of a kind stands; behind the last where there is none.
template <class Method>
constexpr std::size_t place_of(Kind kind) {
  std::size_t at = kArguments<Method>, i = 0;
  for_each_argument<Method>([&](const auto& a) {
    if (a.kind == kind && at == kArguments<Method>) at = i;
    ++i;
  });
  return at;
}

// Several methods may stand behind one function: that of its name makes it.
template <class Method>
consteval bool has_function(std::string_view name) {
  return name == Signature<Method>::name;
}

// The arguments of one kind, such as the buffers.
template <class Method, Kind kKind>
constexpr auto arguments_of() {
  return std::apply(
      [](const auto&... a) {
        return std::tuple_cat([]([[maybe_unused]] const auto& one) {
          if constexpr (std::remove_cvref_t<decltype(one)>::kind == kKind) {
            return std::tuple(one);
          } else {
            return std::tuple();
          }
        }(a)...);
      },
      Signature<Method>::arguments);
}

// Whether running statistics stand beside those of x in a training call too.
template <class Method>
inline constexpr bool kAlwaysGiven = Method::pools[0] == Pool::given;

// Whether it keeps a running scale or standard deviation, by which evaluation divides as batch norm
// does by its own.
template <class Method>
constexpr bool keeps_deviation() {
  bool keeps = false;
  for_each_argument<Method>([&](const auto& a) {
    if constexpr (std::remove_cvref_t<decltype(a)>::kind == Kind::buffer) {
      keeps = keeps || a.follows == Follows::deviation;
    }
  });
  return keeps;
}

// Whether a call takes statistics from x, where the batch or a sample's channel has any.
template <class Method>
bool learns(const typename Signature<Method>::Options& o) {
  if constexpr (has<Method>(Kind::learns)) {
    return o.*std::get<0>(arguments_of<Method, Kind::learns>()).member;
  } else {
    return true;
  }
}

// Whether the call uses running statistics beside those of x: backward needs both.
template <class Method>
inline constexpr bool kMaySaveGiven = kPoolCount<Method> > 1 && kBuffers<Method> > 0;
template <class Method>
bool saves_given(const typename Signature<Method>::Options& o) {
  if constexpr (!kMaySaveGiven<Method>) {
    return false;
  } else {
    return kAlwaysGiven<Method> ? learns<Method>(o) : !learns<Method>(o) && o.running_mean;
  }
}

// What the entries of the statistics are: each channel's, each sample's channel or each group's.
template <class Method>
inline constexpr Pool kStatsOf = Method::pools[kPoolCount<Method> - 1];

// What is reported to a reader; of several pools per sample only what backward takes.
template <class Method>
inline constexpr bool kReports = kPoolCount<Method> == 1 || kStatsOf<Method> == Pool::batch;
template <class Method>
inline constexpr bool kReportsMean = kReports<Method> && !Method::raw;
template <class Method>
inline constexpr bool kReportsRstd = kReports<Method> && !ShiftsOnly<Method>;

// Whether forward leaves statistics for backward: whether its function takes a place for them.
template <class... Parameters>
constexpr bool has_place_for_stats(void (*)(Parameters...)) {
  return (std::is_same_v<Parameters, const StatsOut&> || ...);
}
template <class Method>
inline constexpr bool kLeavesStats = has_place_for_stats(Signature<Method>::forward);

// How many arrays forward leaves for backward: pooled, given.
template <class Method>
inline constexpr std::size_t kSaved =
    std::size_t{kLeavesStats<Method>} + std::size_t{kMaySaveGiven<Method>};

// Whether statistics are taken over the batch, and so over processes and ghost batches.
template <class Method>
constexpr bool over_the_batch() {
  bool over = false;
  for (Pool p : Method::pools) over = over || p == Pool::batch;
  return over;
}

// ---- calls of the functions of ops.h, whatever the method takes

// What a call is given beside its options.
struct Inputs {
  const ConstTensor& x;
  const ConstTensor& weight;
  const ConstTensor& bias;
  std::array<const ConstTensor*, 2> own{};
  Index groups = 1;
};

template <bool kTaken, class T>
auto tie_if(const T& argument) {
  if constexpr (kTaken) {
    return std::tie(argument);
  } else {
    return std::tuple();
  }
}
template <class Method, class T>
auto tie_own(const std::array<const T*, 2>& own) {
  return [&]<std::size_t... I>(std::index_sequence<I...>) {
    return std::tie(*own[I]...);
  }(std::make_index_sequence<kOwnCount<Method>>());
}
// x and what follows it.
template <class Method, bool kBias>
auto tie_inputs(const Inputs& a) {
  return std::tuple_cat(std::tie(a.x), tie_if<has<Method>(Kind::groups)>(a.groups),
                        tie_own<Method>(a.own), tie_if<has<Method>(Kind::weight)>(a.weight),
                        tie_if < kBias && has<Method>(Kind::bias) > (a.bias));
}

template <class Method>
void call_forward(const Inputs& a, const Tensor& y, const typename Signature<Method>::Options& o,
                  const StatsOut& stats, const Context& context) {
  std::apply(Signature<Method>::forward,
             std::tuple_cat(tie_inputs<Method, true>(a), std::tie(y, o),
                            tie_if<kLeavesStats<Method>>(stats), std::tie(context)));
}

// `down`: where the gradients of own arrays go. `dh`: of the sum with a residual.
template <class Method>
void call_backward(const ConstTensor& dy, const Inputs& a, const Gradients& gradients,
                   const std::array<const Tensor*, 2>& down,
                   const typename Signature<Method>::Options& o, const ConstTensor& dh,
                   const SavedStats& stats, const Context& context) {
  const auto results = [&] {
    if constexpr (has<Method>(Kind::weight) || has<Method>(Kind::bias)) {
      return std::tie(gradients);
    } else {
      return std::tie(gradients.dx);
    }
  };
  std::apply(
      Signature<Method>::backward,
      std::tuple_cat(std::tie(dy), tie_inputs<Method, false>(a), results(), tie_own<Method>(down),
                     std::tie(o), tie_if<has<Method>(Kind::residual)>(dh),
                     tie_if<kLeavesStats<Method>>(stats), std::tie(context)));
}

}  // namespace normcore
