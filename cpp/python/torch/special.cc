// As operators.cc, for what has no signature: divisive and local normalization, and spectral norm.
#include "register.h"

namespace normcore::python::torch {
namespace {

// The tensors of a call, x first, and their views, which lie where x does.
template <std::size_t n>
struct Arrays {
  std::array<const char*, n> names;
  std::array<Owned, n> owned;
  std::array<Tensor, n> views;
  Context context;

  void read() {
    context = context_of(owned[0]);
    for (std::size_t i = 0; i < n; ++i) {
      if (!owned[i]) continue;
      if (i > 0) check_place(owned[i], names[i], context);
      views[i] = view(owned[i], names[i]);
    }
  }
  const Tensor& operator[](std::size_t i) const { return views[i]; }
  // The gradient of an array: like it, or of no elements where it is absent or not wanted.
  New gradient(std::size_t i, bool wanted) const {
    if (wanted && views[i]) return new_contiguous(views[i], views[i].dtype(), context);
    New none = new_empty(views[0].dtype(), context);
    none.view = Tensor();
    return none;
  }
  New like_x() const { return new_like(views[0], true, context); }
};

template <class... T>
void give(Value* stack, T&... results) {
  ((*stack++ = results.tensor.release()), ...);
}

// ---- divisive norm

struct Divisive {
  Arrays<4> a{{"x", "weights", "sigma", "gain"}, {}, {}, {}};
  DivisiveNormOptions options;
  explicit Divisive(Stack& s) {
    for (int i = 0; i < 3; ++i) a.owned[i] = s.tensor();
    a.owned[3] = s.optional_tensor();
    options.exponent = s.number<double>();
    options.power = s.number<double>();
    options.channel_axis = axis_of(s.number<Index>());
  }
};
constexpr const char* kDivisiveSchema =
    "Tensor x, Tensor weights, Tensor sigma, Tensor? gain, float exponent, float power, "
    "int channel_axis";

void divisive_forward(Value* stack, std::uint64_t, std::uint64_t) {
  Stack arguments(stack);
  Divisive c(arguments);
  run([&] {
    c.a.read();
    New y = c.a.like_x();
    divisive_norm(c.a[0], c.a[1], c.a[2], c.a[3], y.view, c.options, c.a.context);
    give(stack, y);
  });
}
void divisive_backward(Value* stack, std::uint64_t, std::uint64_t) {
  Stack arguments(stack);
  const Owned dy = arguments.tensor();
  Divisive c(arguments);
  const Index wanted = arguments.number<Index>();
  run([&] {
    c.a.read();
    check_place(dy, "dy", c.a.context);
    New dx = c.a.like_x(), dweights = c.a.gradient(1, wanted & 1),
        dsigma = c.a.gradient(2, wanted & 2), dgain = c.a.gradient(3, wanted & 4);
    divisive_norm_backward(view(dy, "dy"), c.a[0], c.a[1], c.a[2], c.a[3],
                           {dx.view, dweights.view, dsigma.view, dgain.view}, c.options,
                           c.a.context);
    give(stack, dx, dweights, dsigma, dgain);
  });
}

// ---- GDN

struct Gdn {
  Arrays<3> a{{"x", "beta", "gamma"}, {}, {}, {}};
  GDNOptions options;
  explicit Gdn(Stack& s) {
    for (Owned& t : a.owned) t = s.tensor();
    options.inverse = s.number<bool>();
    options.alpha = s.number<double>();
    options.epsilon = s.number<double>();
    options.channel_axis = axis_of(s.number<Index>());
  }
};
constexpr const char* kGdnSchema =
    "Tensor x, Tensor beta, Tensor gamma, bool inverse, float alpha, float epsilon, "
    "int channel_axis";

void gdn_forward(Value* stack, std::uint64_t, std::uint64_t) {
  Stack arguments(stack);
  Gdn c(arguments);
  run([&] {
    c.a.read();
    New y = c.a.like_x();
    gdn(c.a[0], c.a[1], c.a[2], y.view, c.options, c.a.context);
    give(stack, y);
  });
}
// The last result: the gradients of alpha and epsilon, float64.
void gdn_backward_(Value* stack, std::uint64_t, std::uint64_t) {
  Stack arguments(stack);
  const Owned dy = arguments.tensor();
  Gdn c(arguments);
  const Index wanted = arguments.number<Index>();
  run([&] {
    c.a.read();
    check_place(dy, "dy", c.a.context);
    ConstTensor two(nullptr, DType::kFloat64, 1);
    two.set_dim(0, wanted & 4 ? 2 : 0, 1);
    New dx = c.a.like_x(), dbeta = c.a.gradient(1, wanted & 1),
        dgamma = c.a.gradient(2, wanted & 2),
        exponents = new_contiguous(two, DType::kFloat64, c.a.context);
    auto* numbers = static_cast<double*>(wanted & 4 ? exponents.view.data() : nullptr);
    gdn_backward(view(dy, "dy"), c.a[0], c.a[1], c.a[2],
                 {dx.view, dbeta.view, dgamma.view, numbers, numbers ? numbers + 1 : nullptr},
                 c.options, c.a.context);
    give(stack, dx, dbeta, dgamma, exponents);
  });
}

// ---- local response norm

struct Response {
  Arrays<1> a{{"x"}, {}, {}, {}};
  Index size;
  LocalResponseNormOptions options;
  explicit Response(Stack& s) {
    a.owned[0] = s.tensor();
    size = s.number<Index>();
    options.alpha = s.number<double>();
    options.beta = s.number<double>();
    options.k = s.number<double>();
    options.across = s.number<bool>() ? Across::kSpace : Across::kChannels;
    options.even_window = s.number<bool>() ? EvenWindow::kOnnx : EvenWindow::kTorch;
    options.channel_axis = axis_of(s.number<Index>());
  }
};
constexpr const char* kResponseSchema =
    "Tensor x, int size, float alpha, float beta, float k, bool across_space, bool onnx_window, "
    "int channel_axis";

void response_forward(Value* stack, std::uint64_t, std::uint64_t) {
  Stack arguments(stack);
  Response c(arguments);
  run([&] {
    c.a.read();
    New y = c.a.like_x();
    local_response_norm(c.a[0], c.size, y.view, c.options, c.a.context);
    give(stack, y);
  });
}
void response_backward(Value* stack, std::uint64_t, std::uint64_t) {
  Stack arguments(stack);
  const Owned dy = arguments.tensor();
  Response c(arguments);
  run([&] {
    c.a.read();
    check_place(dy, "dy", c.a.context);
    New dx = c.a.like_x();
    local_response_norm_backward(view(dy, "dy"), c.a[0], c.size, dx.view, c.options, c.a.context);
    give(stack, dx);
  });
}

// ---- local divisive norm

struct LocalDivisive {
  Arrays<4> a{{"x", "sigma", "weight", "bias"}, {}, {}, {}};
  std::vector<Index> summation, suppression;
  LocalDivisiveNormOptions options{{}, {}};
  explicit LocalDivisive(Stack& s) {
    a.owned[0] = s.tensor();
    a.owned[1] = s.tensor();
    a.owned[2] = s.optional_tensor();
    a.owned[3] = s.optional_tensor();
    summation = s.integers();
    suppression = s.integers();
    options.channel_axis = axis_of(s.number<Index>());
  }
  void read() {
    a.read();
    options.summation_window = window_of(summation, "summation_window");
    options.suppression_window = window_of(suppression, "suppression_window");
  }
};
constexpr const char* kLocalDivisiveSchema =
    "Tensor x, Tensor sigma, Tensor? weight, Tensor? bias, int[] summation_window, "
    "int[] suppression_window, int channel_axis";

void local_divisive_forward(Value* stack, std::uint64_t, std::uint64_t) {
  Stack arguments(stack);
  LocalDivisive c(arguments);
  run([&] {
    c.read();
    New y = c.a.like_x();
    local_divisive_norm(c.a[0], c.a[1], c.a[2], c.a[3], y.view, c.options, c.a.context);
    give(stack, y);
  });
}
void local_divisive_backward(Value* stack, std::uint64_t, std::uint64_t) {
  Stack arguments(stack);
  const Owned dy = arguments.tensor();
  LocalDivisive c(arguments);
  const Index wanted = arguments.number<Index>();
  run([&] {
    c.read();
    check_place(dy, "dy", c.a.context);
    New dx = c.a.like_x(), dsigma = c.a.gradient(1, wanted & 1),
        dweight = c.a.gradient(2, wanted & 2), dbias = c.a.gradient(3, wanted & 4);
    local_divisive_norm_backward(view(dy, "dy"), c.a[0], c.a[1], c.a[2],
                                 {dx.view, dsigma.view, dweight.view, dbias.view}, c.options,
                                 c.a.context);
    give(stack, dx, dsigma, dweight, dbias);
  });
}

// ---- spectral norm

New new_vector(Index n, DType dtype, const Context& where) {
  ConstTensor shape(nullptr, dtype, 1);
  shape.set_dim(0, n, 1);
  return new_contiguous(shape, dtype, where);
}

void spectral_forward(Value* stack, std::uint64_t, std::uint64_t) {
  Stack s(stack);
  Arrays<3> a{{"weight", "u", "v"}, {}, {}, {}};
  a.owned[0] = s.tensor();
  a.owned[1] = s.optional_tensor();
  a.owned[2] = s.optional_tensor();
  SpectralNormOptions options;
  options.n_power_iterations = s.number<Index>();
  options.axis = axis_of(s.number<Index>());
  options.eps = s.number<double>();
  options.bound = s.optional_number<double>();
  options.u_first = s.number<bool>();
  run([&] {
    a.read();
    const Tensor& weight = a[0];
    const DType dtype = statistics_dtype(weight.dtype());
    New w = new_like(weight, false, a.context),
        u = new_vector(length_of(weight, options.axis), dtype, a.context),
        v = new_vector(length_of_rest(weight, options.axis), dtype, a.context),
        sigma = new_contiguous(ConstTensor(nullptr, dtype, 0), dtype, a.context);
    spectral_norm(weight, {a[1], a[2]}, {w.view, u.view, v.view, sigma.view}, options, a.context);
    give(stack, w, sigma, u, v);
  });
}
void spectral_backward(Value* stack, std::uint64_t, std::uint64_t) {
  Stack s(stack);
  Arrays<5> a{{"dw", "w", "sigma", "u", "v"}, {}, {}, {}};
  for (Owned& t : a.owned) t = s.tensor();
  SpectralNormOptions options;
  options.axis = axis_of(s.number<Index>());
  options.bound = s.optional_number<double>();
  run([&] {
    a.read();
    New dweight = new_like(a[1], false, a.context);
    spectral_norm_backward(a[0], a[1], a[2], a[3], a[4], dweight.view, options, a.context);
    give(stack, dweight);
  });
}

}  // namespace

void define_special(Library& library) {
  // `last`: what backward takes behind forward's arguments.
  const auto both = [&](const char* name, const char* arguments, Kernel forward, Kernel backward,
                        const char* last, int gradients) {
    library.define(name, std::string("(") + arguments + ") -> (Tensor)", forward);
    library.define(std::string(name) + "_backward",
                   std::string("(Tensor dy, ") + arguments + last + ") -> " + tensors(gradients),
                   backward);
  };
  constexpr const char* kWanted = ", int wanted";
  both("divisive_norm", kDivisiveSchema, &divisive_forward, &divisive_backward, kWanted, 4);
  both("gdn", kGdnSchema, &gdn_forward, &gdn_backward_, kWanted, 4);
  both("local_response_norm", kResponseSchema, &response_forward, &response_backward, "", 1);
  both("local_divisive_norm", kLocalDivisiveSchema, &local_divisive_forward,
       &local_divisive_backward, kWanted, 4);
  library.define("spectral_norm",
                 "(Tensor weight, Tensor? u, Tensor? v, int n_power_iterations, int axis, "
                 "float eps, float? bound, bool u_first) -> (Tensor, Tensor, Tensor, Tensor)",
                 &spectral_forward);
  library.define("spectral_norm_backward",
                 "(Tensor dw, Tensor w, Tensor sigma, Tensor u, Tensor v, int axis, "
                 "float? bound) -> (Tensor)",
                 &spectral_backward);
}

}  // namespace normcore::python::torch
