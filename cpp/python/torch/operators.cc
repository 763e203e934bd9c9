// The methods as torch's operators, made from their signatures (ops/signatures.h), as methods.cc
// makes functions of the module. Of a method there are
//   normcore::NAME         x and the signature's arguments, to y
//   normcore::NAME.saved   the same, to y and what backward takes: pooled, and given where running
//                          statistics may stand beside those of x
//   normcore::NAME.moves   and .moves_saved, the same of calls that move the running buffers
//   normcore::NAME.sum     and .sum_saved: with a residual, whose sum with x comes behind y
//   normcore::NAME_backward   dy, x, the arguments that backward needs, what was saved, and the
//                          gradients that are wanted beside dx: bits, in their order
// What is not wanted or was not given comes back as a tensor of no elements.
#include <array>
#include <string>

#include "ops/signatures.h"
#include "register.h"

namespace normcore::python::torch {
namespace {

enum Variant : unsigned { kPlain = 0, kSaves = 1, kMoves = 2, kSums = 4 };

template <class Method>
constexpr bool has_variant(unsigned variant) {
  return !((variant & kSaves) && !kLeavesStats<Method>) &&
         !((variant & kMoves) && kBuffers<Method> == 0) &&
         !((variant & kSums) && !has<Method>(Kind::residual));
}
constexpr const char* variant_name(unsigned variant) {
  constexpr const char* kNames[] = {"", ".saved", ".moves", ".moves_saved", ".sum", ".sum_saved"};
  return kNames[variant];
}

// Whether an argument of the signature is one of an operator. (A residual is of those that sum, and
// of backward, where the gradient of the sum has its place.)
template <bool kForward, class A>
constexpr bool is_taken(const A& a, unsigned variant) {
  if (A::kind == Kind::residual) return !kForward || (variant & kSums);
  return kForward || a.needed != Needed::forward;
}

// ---- schemas

template <class O, class T>
T member_of(T O::*);

// The type of an argument in a schema. (Running buffers that move are said to, elsewhere.)
template <class A>
constexpr const char* type_of(const A&) {
  if constexpr (A::kind == Kind::own) {
    return "Tensor";
  } else if constexpr (is_array(A::kind)) {
    return "Tensor?";
  } else if constexpr (A::kind == Kind::groups) {
    return "int";
  } else if constexpr (A::kind == Kind::learns) {
    return "bool";
  } else {
    using T = decltype(member_of(std::declval<A>().member));
    return std::is_same_v<T, bool>     ? "bool"
           : std::is_same_v<T, double> ? "float"
           : std::is_same_v<T, Axes>   ? "int[]"
           : A::kind == Kind::axes     ? "int?"
                                       : "int";
  }
}

template <class Method, bool kForward>
std::string arguments_of_schema(unsigned variant) {
  std::string text = "Tensor ";
  text += names_of(Signature<Method>::family).x;
  char alias = 'a';
  for_each_argument<Method>([&](const auto& a) {
    if (!is_taken<kForward>(a, variant)) return;
    text += ", ";
    if (a.kind == Kind::buffer && (variant & kMoves)) {
      text += "Tensor(";
      text += alias++;
      text += "!)?";
    } else {
      text += type_of(a);
    }
    text += ' ';
    text += a.name;
  });
  return text;
}

template <class Method>
inline constexpr Index kOwnGradients = [] {
  Index bits = 0, bit = 1;
  for_each_argument<Method>([&](const auto& a) {
    if (a.kind == Kind::own) bits |= bit;
    if (has_gradient(a.kind)) bit <<= 1;
  });
  return bits;
}();

// ---- calls

// What the operators of a method take: x and the arguments of its signature.
template <class Method, bool kForward>
class Call {
  static constexpr auto kNames = names_of(Signature<Method>::family);

 public:
  typename Signature<Method>::Options options;
  Owned x_owned;
  std::array<Owned, kArguments<Method>> owned;  // by the argument, those that are arrays
  Tensor x;
  std::array<ConstTensor, kArguments<Method>> arrays;
  Context context;

  Call(Stack& stack, unsigned variant) : x_owned(stack.tensor()) {
    // Every argument is taken off the stack before one is looked at.
    std::size_t i = 0;
    for_each_argument<Method>([&](const auto& a) {
      if (is_taken<kForward>(a, variant)) take(stack, a, &owned[i]);
      ++i;
    });
  }
  Call(const Call&) = delete;  // its parts refer to each other

  // Reads what was taken.
  void read() {
    context = context_of(x_owned);
    x = view(x_owned, kNames.x);
    x_view_ = x;
    std::size_t i = 0;
    int n_own = 0;
    for_each_argument<Method>([&](const auto& a) {
      using A = std::remove_cvref_t<decltype(a)>;
      if constexpr (is_array(A::kind)) {
        if (owned[i]) {
          const char* name = A::kind == Kind::residual && !kForward ? "dh" : a.name;
          check_place(owned[i], name, context);
          const Tensor array = view(owned[i], name);
          arrays[i] = array;
          if constexpr (A::kind == Kind::buffer || A::kind == Kind::mask ||
                        (A::kind == Kind::residual && kForward)) {
            options.*a.member = array;
          }
        }
        if constexpr (A::kind == Kind::own) inputs_.own[n_own++] = &arrays[i];
      }
      ++i;
    });
    if constexpr (has<Method>(Kind::axes) && Signature<Method>::family == Family::rows) {
      options.axes = axes_of(axes_);
    }
  }
  const Inputs& inputs() const { return inputs_; }

  ConstTensor shape(Pool pool) const {
    if constexpr (Signature<Method>::family == Family::rows) {
      return kept_shape(x, options.axes);
    } else {
      return channel_shape(x, options.channel_axis, pool != Pool::batch,
                           pool == Pool::group ? inputs_.groups : 0);
    }
  }

 private:
  template <class A>
  void take(Stack& stack, const A& a, Owned* array) {
    if constexpr (A::kind == Kind::own) *array = stack.tensor();
    if constexpr (is_array(A::kind) && A::kind != Kind::own) *array = stack.optional_tensor();
    if constexpr (A::kind == Kind::groups) inputs_.groups = stack.number<Index>();
    if constexpr (A::kind == Kind::learns || A::kind == Kind::option) {
      auto& field = options.*a.member;
      using T = std::remove_reference_t<decltype(field)>;
      if constexpr (std::is_same_v<T, int>) {
        field = axis_of(stack.number<Index>());
      } else {
        field = stack.number<T>();
      }
    }
    if constexpr (A::kind == Kind::axes) {
      auto& field = options.*a.member;
      if constexpr (std::is_same_v<std::remove_reference_t<decltype(field)>, Axes>) {
        axes_ = stack.integers();
      } else {
        const auto kept = stack.optional_number<Index>();
        field.reset();
        if (kept) field = axis_of(*kept);
      }
    }
  }
  const ConstTensor& array_of(Kind kind) const {
    constexpr std::size_t kNone = kArguments<Method>;
    const std::size_t at = place_of<Method>(kind);
    return at < kNone ? arrays[at] : absent_;
  }

  std::vector<Index> axes_;
  ConstTensor x_view_, absent_;
  Inputs inputs_{x_view_, array_of(Kind::weight), array_of(Kind::bias)};
};

template <class Method>
constexpr bool kAsChannelsLast = Signature<Method>::family == Family::channels;

template <class Method, unsigned kVariant>
void forward(Value* stack, std::uint64_t, std::uint64_t) {
  Stack arguments(stack);
  Call<Method, true> call(arguments, kVariant);
  run([&] {
    call.read();
    New y = new_like(call.x, kAsChannelsLast<Method>, call.context), h, pooled, given;
    if constexpr (kVariant & kSums) {
      h = new_like(call.x, kAsChannelsLast<Method>, call.context);
      call.options.h = h.view;
    }
    StatsOut stats;
    if constexpr (kVariant & kSaves) {
      pooled = new_pairs(call.shape(kStatsOf<Method>), call.context);
      stats.pooled = pooled.view;
      if constexpr (kMaySaveGiven<Method>) {
        const bool saves = saves_given<Method>(call.options);
        given = saves ? new_pairs(call.shape(Pool::batch), call.context)
                      : new_empty(DType::kFloat64, call.context);
        if (saves) stats.given = given.view;
      }
    }
    in_processes(call.context, [&] {
      call_forward<Method>(call.inputs(), y.view, call.options, stats, call.context);
    });
    *stack++ = y.tensor.release();
    if constexpr (kVariant & kSums) *stack++ = h.tensor.release();
    if constexpr (kVariant & kSaves) *stack++ = pooled.tensor.release();
    if constexpr ((kVariant & kSaves) && kMaySaveGiven<Method>) *stack++ = given.tensor.release();
  });
}

template <class Method>
void backward(Value* stack, std::uint64_t, std::uint64_t) {
  Stack arguments(stack);
  const Owned dy = arguments.tensor();
  Call<Method, false> call(arguments, kPlain);
  std::array<Owned, 2> saved;
  for (std::size_t i = 0; i < kSaved<Method>; ++i) saved[i] = arguments.optional_tensor();
  Index wanted = kGradients<Method> > 0 ? arguments.number<Index>() : 0;
  run([&] {
    call.read();
    check_place(dy, names_of(Signature<Method>::family).dy, call.context);
    const Tensor dy_view = view(dy, names_of(Signature<Method>::family).dy);
    New dx = new_like(call.x, kAsChannelsLast<Method>, call.context);
    std::array<New, kGradients<Method> + 1> down;  // one more: C++ has no empty arrays
    std::array<const Tensor*, 2> own{};
    // Gradients of own arrays come together.
    if (wanted & kOwnGradients<Method>) wanted |= kOwnGradients<Method>;
    Gradients gradients{dx.view, {}, {}};
    ConstTensor dh;
    std::size_t i = 0, n = 0;
    int n_own = 0;
    for_each_argument<Method>([&](const auto& a) {
      using A = std::remove_cvref_t<decltype(a)>;
      if constexpr (has_gradient(A::kind)) {
        const ConstTensor& array = call.arrays[i];
        New& made = down[n];
        const bool given = bool(array) && (wanted >> n & 1);
        made = given ? new_contiguous(array, array.dtype(), call.context)
                     : new_empty(call.x.dtype(), call.context);
        if (!given) made.view = Tensor();
        if constexpr (A::kind == Kind::own) own[n_own++] = &made.view;
        if constexpr (A::kind == Kind::weight) gradients.dweight = made.view;
        if constexpr (A::kind == Kind::bias) gradients.dbias = made.view;
        ++n;
      }
      if constexpr (A::kind == Kind::residual) dh = call.arrays[i];
      ++i;
    });
    std::array<ConstTensor, 2> stats;
    for (std::size_t s = 0; s < kSaved<Method>; ++s) {
      if (!saved[s]) continue;
      const char* name = s == 0 ? "pooled" : "given";
      check_place(saved[s], name, call.context);
      const Tensor t = view(saved[s], name);
      if (t.size() > 0 || t.ndim() != 1) stats[s] = t;  // else it was not saved
    }
    in_processes(call.context, [&] {
      call_backward<Method>(dy_view, call.inputs(), gradients, own, call.options, dh,
                            {stats[0], stats[1]}, call.context);
    });
    *stack++ = dx.tensor.release();
    for (std::size_t g = 0; g < kGradients<Method>; ++g) {
      *stack++ = down[g].tensor.release();
    }
  });
}

// ---- registration

template <class Method, unsigned kVariant>
void define_forward(Library& library) {
  if constexpr (has_variant<Method>(kVariant)) {
    const std::string name = std::string(Signature<Method>::name) + variant_name(kVariant);
    const std::size_t results =
        1 + (kVariant & kSums ? 1 : 0) + (kVariant & kSaves ? kSaved<Method> : 0);
    std::string text = "(";
    text += arguments_of_schema<Method, true>(kVariant);
    text += ") -> ";
    text += tensors(results);
    library.define(name, text, &forward<Method, kVariant>);
  }
}
template <class Method, bool kHasFunction>
void define_method(Library& library) {
  if constexpr (kHasFunction) {
    [&]<unsigned... V>(std::integer_sequence<unsigned, V...>) {
      (define_forward<Method, V>(library), ...);
    }(std::make_integer_sequence<unsigned, 6>());
    constexpr const char* dy = names_of(Signature<Method>::family).dy;
    std::string text = "(Tensor ";
    text += dy;
    text += ", ";
    text += arguments_of_schema<Method, false>(kPlain);
    if (kSaved<Method> > 0) text += ", Tensor? pooled";
    if (kSaved<Method> > 1) text += ", Tensor? given";
    if (kGradients<Method> > 0) text += ", int wanted";
    library.define(std::string(Signature<Method>::name) + "_backward",
                   text + ") -> " + tensors(1 + kGradients<Method>), &backward<Method>);
  }
}

}  // namespace

void define_methods(Library& library) {
#define NORMCORE_METHOD(name, Method) define_method<Method, has_function<Method>(#name)>(library);
#include "normcore/methods.def"
#undef NORMCORE_METHOD
}

}  // namespace normcore::python::torch
