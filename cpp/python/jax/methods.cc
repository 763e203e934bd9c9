// The methods as XLA's handlers, made from their signatures (ops/signatures.h), as
// torch/operators.cc makes torch's operators. Of a method there are
//   NAME           x and the arrays of the signature to y, the sum with a residual, the running
//                  buffers as the call has moved them, and, where the attribute `saves` is true,
//                  what backward takes: pooled, and given where running statistics stand beside x's
//   NAME_backward  dy, x, the arrays that backward needs (for a residual the gradient that comes by
//                  the sum) and what was saved, to dx and the gradients of the arrays
// Only what is given is an argument, and only what is wanted a result. The attributes `arrays`,
// `saved` and `wanted` say which, in bits: of the signature's arrays, of pooled and given, and of
// the arrays that have a gradient. The options are attributes by their names.
#include <array>

#include "../shapes.h"
#include "ops/signatures.h"
#include "register.h"

namespace normcore::python::jax {
namespace {

void read_option(const Call& call, const char* name, int* option) {
  *option = axis_of(call.number<Index>(name));
}
template <class T>
void read_option(const Call& call, const char* name, T* option) {
  *option = call.number<T>(name);
}
void read_option(const Call& call, const char* name, Axes* axes) {
  *axes = axes_of(call.integers(name));
}
void read_option(const Call& call, const char* name, std::optional<int>* kept) {
  kept->reset();
  if (call.has(name)) *kept = axis_of(call.number<Index>(name));
}

// x, the arrays and the options of a call.
template <class Method, bool kForward>
class Taken {
 public:
  typename Signature<Method>::Options options;
  Tensor x;
  std::array<ConstTensor, kArguments<Method>> arrays;  // by the argument

  explicit Taken(Call& call) : x(call.argument(names_of(Signature<Method>::family).x)), x_(x) {
    const Index given = call.number<Index>("arrays");
    std::size_t i = 0;
    int n_own = 0, bit = 0;
    for_each_argument<Method>([&](const auto& a) {
      using A = std::remove_cvref_t<decltype(a)>;
      ConstTensor& array = arrays[i++];
      if constexpr (is_array(A::kind)) {
        if (given >> bit++ & 1) {
          array = call.argument(A::kind == Kind::residual && !kForward ? "dh" : a.name);
        }
        if constexpr (A::kind == Kind::own) inputs_.own[n_own++] = &array;
        if constexpr (A::kind == Kind::buffer || A::kind == Kind::mask ||
                      (A::kind == Kind::residual && kForward)) {
          options.*a.member = array;
        }
      } else if constexpr (A::kind == Kind::groups) {
        inputs_.groups = call.number<Index>(a.name);
      } else if (kForward || a.needed != Needed::forward) {
        read_option(call, a.name, &(options.*a.member));
      }
    });
  }
  Taken(const Taken&) = delete;  // its parts refer to each other

  const Inputs& get() const { return inputs_; }

 private:
  const ConstTensor& array_of(Kind kind) const {
    constexpr std::size_t kNone = kArguments<Method>;
    const std::size_t at = place_of<Method>(kind);
    return at < kNone ? arrays[at] : absent_;
  }

  ConstTensor x_, absent_;
  Inputs inputs_{x_, array_of(Kind::weight), array_of(Kind::bias)};
};

template <class Method>
void forward(Call& call) {
  Taken<Method, true> inputs(call);
  auto& options = inputs.options;
  const Tensor y = call.result("y");
  if constexpr (has<Method>(Kind::residual)) {
    if (options.residual) options.h = call.result("h");
  }
  for_each_argument<Method>([&](const auto& a) {
    using A = std::remove_cvref_t<decltype(a)>;
    if constexpr (A::kind == Kind::buffer) {
      // XLA lays the new one over the old one, or over a copy of it.
      if (learns<Method>(options) && options.*a.member) options.*a.member = call.result(a.name);
    }
  });
  StatsOut stats;
  if constexpr (kLeavesStats<Method>) {
    if (call.number<bool>("saves")) {
      stats.pooled = call.pairs_result("pooled");
      if (saves_given<Method>(options)) stats.given = call.pairs_result("given");
    }
  }
  call_forward<Method>(inputs.get(), y, options, stats, call.context());
}

template <class Method>
void backward(Call& call) {
  const Tensor dy = call.argument(names_of(Signature<Method>::family).dy);
  const Taken<Method, false> inputs(call);
  const Index saved = call.number<Index>("saved"), wanted = call.number<Index>("wanted");
  ConstTensor pooled, given;
  if (saved & 1) pooled = call.pairs_argument("pooled");
  if (saved & 2) given = call.pairs_argument("given");
  Gradients gradients{call.result(names_of(Signature<Method>::family).dx), {}, {}};
  std::array<Tensor, 2> own;
  ConstTensor dh;
  std::size_t i = 0;
  int n_own = 0, bit = 0;
  for_each_argument<Method>([&](const auto& a) {
    using A = std::remove_cvref_t<decltype(a)>;
    if constexpr (has_gradient(A::kind)) {
      Tensor made;
      if (wanted >> bit++ & 1) made = call.result(a.name);
      if constexpr (A::kind == Kind::own) own[n_own++] = made;
      if constexpr (A::kind == Kind::weight) gradients.dweight = made;
      if constexpr (A::kind == Kind::bias) gradients.dbias = made;
    }
    if constexpr (A::kind == Kind::residual) dh = inputs.arrays[i];
    ++i;
  });
  call_backward<Method>(dy, inputs.get(), gradients, {&own[0], &own[1]}, inputs.options, dh,
                        {pooled, given}, call.context());
}

template <class Method, bool kHasFunction>
void define_method(Handlers& handlers) {
  if constexpr (kHasFunction) {
    const std::string name = Signature<Method>::name;
    handlers.define<&forward<Method>>(name);
    handlers.define<&backward<Method>>(name + "_backward");
  }
}

}  // namespace

void define_methods(Handlers& handlers) {
#define NORMCORE_METHOD(name, Method) define_method<Method, has_function<Method>(#name)>(handlers);
#include "normcore/methods.def"
#undef NORMCORE_METHOD
}

}  // namespace normcore::python::jax
