// The methods as functions of the module, made from their signatures (ops/signatures.h): read the
// arguments, make the results, call ops.h. Arguments come by position: x, or dy and x, the
// signature's, and then of forward `out` and `return_stats`, of backward the saved statistics and
// `out`; a method that leaves no statistics has neither.
#include <algorithm>
#include <string_view>

#include "ops/signatures.h"
#include "results.h"

namespace normcore::python {
namespace {

// How many of the arguments are arrays, and which these are. Those that have a gradient come first.
template <class Method>
constexpr std::size_t kArrays = [] {
  std::size_t n = 0;
  for_each_argument<Method>([&](const auto& a) { n += is_array(a.kind); });
  return n;
}();
template <class Method>
constexpr auto kArrayArguments = [] {
  std::array<std::size_t, kArrays<Method>> of{};
  std::size_t i = 0, n = 0;
  for_each_argument<Method>([&](const auto& a) {
    if (is_array(a.kind)) of[n++] = i;
    ++i;
  });
  return of;
}();
template <class Method, std::size_t kArray>
constexpr const auto& kArgumentOf =
    std::get<kArrayArguments<Method>[kArray]>(Signature<Method>::arguments);
// In place of a residual backward takes the gradient of the sum, from elsewhere.
template <class Method, bool kForward, std::size_t kArray>
constexpr const char* kArrayName = kArgumentOf<Method, kArray>.kind == Kind::residual && !kForward
                                       ? "dh"
                                       : kArgumentOf<Method, kArray>.name;

// Where the array of a kind stands among the arrays; after the last where there is none.
template <class Method>
constexpr std::size_t array_of(Kind kind) {
  std::size_t at = kArrays<Method>, n = 0;
  for_each_argument<Method>([&](const auto& a) {
    if (a.kind == kind && at == kArrays<Method>) at = n;
    n += is_array(a.kind);
  });
  return at;
}

// How many arguments of the signature a direction takes, and where in its call each one stands.
template <class Method, bool kForward>
constexpr int kTaken = [] {
  int n = 0;
  for_each_argument<Method>([&](const auto& a) { n += kForward || a.needed != Needed::forward; });
  return n;
}();
template <class Method, bool kForward>
constexpr auto kPositions = [] {
  std::array<int, kArguments<Method>> at{};
  int i = 0, n = 0;
  for_each_argument<Method>([&](const auto& a) {
    at[i++] = n;
    n += kForward || a.needed != Needed::forward;
  });
  return at;
}();

template <class T>
T number(py::handle value, const char* name) {
  if constexpr (std::is_same_v<T, bool>) return as_bool(value, name);
  if constexpr (std::is_same_v<T, double>) return as_double(value, name);
  if constexpr (std::is_same_v<T, Index>) return as_index(value, name);
  if constexpr (std::is_same_v<T, int>) return as_axis(value, name);
}

// What is normalized of x; or what is kept, where it is something.
void read_axes(py::handle value, const Array& x, Axes* axes) {
  *axes = as_axes(value, x.tensor().ndim());
}
void read_axes(py::handle value, const Array&, std::optional<int>* kept) {
  kept->reset();
  if (!value.is_none()) *kept = as_axis(value, "axis");
}

// What both directions take: x and what follows it.
template <class Method, bool kForward>
class Call {
 public:
  typename Signature<Method>::Options options;
  Array x;
  std::array<Array, kArrays<Method>> arrays;

  explicit Call(const py::handle* arguments)
      : Call(Source(arguments), arguments + 1, std::make_index_sequence<kArrays<Method>>(),
             std::make_index_sequence<kGradients<Method>>()) {}
  Call(const Call&) = delete;  // its parts refer to each other

  Index size() const { return x.tensor().size(); }
  const Inputs& inputs() const { return inputs_; }
  // Of the statistics of such pools.
  ConstTensor shape(Pool pool) const {
    if constexpr (Signature<Method>::family == Family::rows) {
      return kept_shape(x.tensor(), options.axes);
    } else {
      return channel_shape(x.tensor(), options.channel_axis, pool != Pool::batch,
                           pool == Pool::group ? inputs_.groups : 0);
    }
  }
  // Where the call runs, with the arrays that it takes beside those of the signature.
  template <class... Others>
  Context context(const Others&... others) const {
    return [&]<std::size_t... I>(std::index_sequence<I...>) {
      return call_context(x, {Named{kArrayName<Method, kForward, I>, arrays[I]}..., others...});
    }(std::make_index_sequence<kArrays<Method>>());
  }

 private:
  static constexpr bool kMasked = has<Method>(Kind::mask);
  // Where the first argument of a kind, or of a name, stands.
  template <class Is>
  static constexpr int position_of(Is is) {
    int at = -1, i = 0;
    for_each_argument<Method>([&](const auto& a) {
      if (at < 0 && is(a)) at = kPositions<Method, kForward>[i];
      ++i;
    });
    return at;
  }
  static constexpr int kMaskAt = position_of([](const auto& a) { return a.kind == Kind::mask; });
  static constexpr int kAxisAt =
      position_of([](const auto& a) { return std::string_view(a.name) == "channel_axis"; });
  static constexpr int kLearnsAt =
      position_of([](const auto& a) { return a.kind == Kind::learns; });

  // x and the mask, which a masked array brings along.
  struct Plain {
    py::handle x, mask;
    explicit Plain(const py::handle* arguments) : x(arguments[0]) {}
  };
  struct Masked : Maskable {
    explicit Masked(const py::handle* arguments)
        : Maskable(arguments[0], arguments[1 + kMaskAt], arguments[1 + kAxisAt]) {}
  };
  using Source = std::conditional_t<kMasked, Masked, Plain>;

  template <std::size_t... I, std::size_t... G>
  Call(const Source& source, const py::handle* next, std::index_sequence<I...>,
       std::index_sequence<G...>)
      : x(source.x, names_of(Signature<Method>::family).x),
        arrays{{array<I>(source, next)...}},
        x_view_(x.view()),
        views_{arrays[G].view()..., ConstTensor()} {
    for (int i = 0; i < kOwnCount<Method>; ++i) inputs_.own[i] = &views_[i];
    std::size_t i = 0, n = 0;
    for_each_argument<Method>([&](const auto& a) {
      using A = std::remove_cvref_t<decltype(a)>;
      const py::handle value = next[kPositions<Method, kForward>[i++]];
      if constexpr (A::kind == Kind::buffer || A::kind == Kind::mask ||
                    (A::kind == Kind::residual && kForward)) {
        options.*a.member = arrays[n].tensor();
      }
      n += is_array(A::kind);
      if constexpr (A::kind == Kind::groups) inputs_.groups = as_index(value, a.name);
      if constexpr (A::kind == Kind::axes) read_axes(value, x, &(options.*a.member));
      if constexpr (A::kind == Kind::learns || A::kind == Kind::option) {
        if (!kForward && a.needed == Needed::forward) return;
        auto& field = options.*a.member;
        field = number<std::remove_reference_t<decltype(field)>>(value, a.name);
      }
    });
  }

  template <std::size_t kArray>
  Array array(const Source& source, const py::handle* next) {
    constexpr const auto& a = kArgumentOf<Method, kArray>;
    const py::handle value = next[kPositions<Method, kForward>[kArrayArguments<Method>[kArray]]];
    if constexpr (a.kind == Kind::own) {
      return Array(value, a.name);
    } else if constexpr (a.kind == Kind::mask) {
      return read_mask(source.mask, x, as_axis(next[kAxisAt], "channel_axis"));
    } else if constexpr (a.kind == Kind::buffer && kForward) {
      // Buffers that the call moves must be writable.
      const bool moves = as_bool(next[kLearnsAt], learns_name());
      return moves ? Array::writable(value, a.name) : Array::optional(value, a.name);
    } else {
      return Array::optional(value, kArrayName<Method, kForward, kArray>);
    }
  }
  static constexpr const char* learns_name() {
    return std::get<0>(arguments_of<Method, Kind::learns>()).name;
  }
  const ConstTensor& view_of(Kind kind) const {
    return views_[std::min<std::size_t>(array_of<Method>(kind), kGradients<Method>)];
  }

  // Of x, of the arrays that have a gradient, and an absent one.
  ConstTensor x_view_, views_[kGradients<Method> + 1];
  Inputs inputs_{x_view_, view_of(Kind::weight), view_of(Kind::bias)};
};

// ---- forward and backward

template <class Method>
constexpr unsigned kFields = (kReportsMean<Method> ? Statistics::kMean : 0u) |
                             (kReportsRstd<Method> ? Statistics::kRstd : 0u) | Statistics::kPooled;

// y, (y, stats) and with a residual (y, h), (y, h, stats).
template <class Method>
py::object forward(const py::handle* arguments) {
  const py::handle* last = arguments + 1 + kTaken<Method, true>;
  const bool return_stats = kLeavesStats<Method> && as_bool(last[1], "return_stats");
  Call<Method, true> call(arguments);
  Result h;
  bool summed = false;
  if constexpr (has<Method>(Kind::residual)) {
    summed = bool(call.options.residual);
    if (summed) h = call.x.new_like(&call.options.h);
  }
  Output y(last[0], call.x);
  const Context context = call.context(Named{"out", y.array()});
  const auto run = [&](const StatsOut& stats) {
    unlocked(call.size(), &call_forward<Method>, call.inputs(), y.tensor, call.options, stats,
             context);
  };
  if constexpr (kLeavesStats<Method>) {
    Statistics stats(return_stats, call.x, call.shape(kStatsOf<Method>), kFields<Method>);
    if (saves_given<Method>(call.options)) stats.add_given(call.x, call.shape(Pool::batch));
    run(stats.out);
    if (return_stats && summed) return py::make_tuple(y.result.take(), h.take(), stats.tuple());
    if (return_stats) return py::make_tuple(y.result.take(), stats.tuple());
  } else {
    run({});
  }
  if (summed) return py::make_tuple(y.result.take(), h.take());
  return y.result.take();
}

// What forward has saved, as far as the method does.
constexpr const char* kSavedNames[] = {"stats.pooled", "stats.given"};

// Of the array at a place, absent where there are not so many.
template <std::size_t kAt, std::size_t n>
ConstTensor view_at(const std::array<Array, n>& arrays) {
  if constexpr (kAt < n) return arrays[kAt].view();
  return {};
}
template <std::size_t kAt, std::size_t n>
Tensor tensor_at(const std::array<ParameterGradient, n>& gradients) {
  if constexpr (kAt < n) return gradients[kAt].tensor;
  return {};
}

// dx, or a tuple of it and the gradients of the signature's arrays.
template <class Method>
py::object backward(const py::handle* arguments) {
  constexpr const char* dy_name = names_of(Signature<Method>::family).dy;
  const py::handle* last = arguments + 2 + kTaken<Method, false>;
  const Array dy(*arguments, dy_name);
  const Call<Method, false> call(arguments + 1);
  return [&]<std::size_t... G, std::size_t... S>(std::index_sequence<G...>,
                                                 std::index_sequence<S...>) -> py::object {
    const std::array<Array, sizeof...(S)> saved{{Array::optional(last[S], kSavedNames[S])...}};
    Output dx(last[sizeof...(S)], call.x);
    std::array<ParameterGradient, sizeof...(G)> down{{ParameterGradient(call.arrays[G])...}};
    std::array<const Tensor*, 2> own{};
    for (std::size_t i = 0; i < kOwnCount<Method>; ++i) own[i] = &down[i].tensor;
    const Context context = call.context(Named{dy_name, dy}, Named{kSavedNames[S], saved[S]}...,
                                         Named{"out", dx.array()});
    unlocked(call.size(), &call_backward<Method>, dy.view(), call.inputs(),
             {dx.tensor, tensor_at<array_of<Method>(Kind::weight)>(down),
              tensor_at<array_of<Method>(Kind::bias)>(down)},
             own, call.options, view_at<array_of<Method>(Kind::residual)>(call.arrays),
             {view_at<0>(saved), view_at<1>(saved)}, context);
    if constexpr (sizeof...(G) == 0) {
      return dx.result.take();
    } else {
      return py::make_tuple(dx.result.take(), down[G].result.take()...);
    }
  }(std::make_index_sequence<kGradients<Method>>(), std::make_index_sequence<kSaved<Method>>());
}

// ---- as functions of so many arguments

template <std::size_t>
using Handle = py::handle;
template <auto kFunction, std::size_t... I>
void define(py::module_& m, const std::string& name, std::index_sequence<I...>) {
  m.def(name.c_str(), [](Handle<I>... arguments) {
    const py::handle all[] = {arguments...};
    return kFunction(all);
  });
}
template <class Method, bool kHasFunction>
void register_method(py::module_& m) {
  if constexpr (kHasFunction) {
    const std::string name = Signature<Method>::name;
    define<&forward<Method>>(
        m, name, std::make_index_sequence<1 + kTaken<Method, true> + 1 + kLeavesStats<Method>>());
    define<&backward<Method>>(
        m, name + "_backward",
        std::make_index_sequence<2 + kTaken<Method, false> + kSaved<Method> + 1>());
  }
}

}  // namespace

void register_methods(py::module_& m) {
#define NORMCORE_METHOD(name, Method) register_method<Method, has_function<Method>(#name)>(m);
#include "normcore/methods.def"
#undef NORMCORE_METHOD
}

}  // namespace normcore::python
