// Inference with every method, through the C++ and the C interface: the same bits from both, from
// many threads at once and from any number of OpenMP threads; nothing is allocated once a thread
// has done a call; and what the C interface refuses.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "allocations.h"
#include "normcore/c_api.h"
#include "support.h"

namespace normcore {
namespace {

using testing::Array;

constexpr Index kBatch = 3, kChannels = 12;

normcore_const_tensor c_view(const Array& a) {
  return {a.tensor().data(), int32_t(a.dtype), int32_t(a.shape.size()), a.shape.data(),
          a.strides.data()};
}

// Everything that a call may want, for x of (kBatch, kChannels, side, side). Parameters have dtypes
// and strides of their own.
struct Inputs {
  Array x, residual, axis_weight, weight, bias, rho, logits, var_logits, mean, variance, positive,
      mixing, kernel, gain, u, sigma;

  Inputs(DType t, Index side, unsigned seed, std::vector<Index> strides_of_x = {})
      : x(t, {kBatch, kChannels, side, side}, std::move(strides_of_x)),
        residual(t, x.shape),
        axis_weight(DType::kFloat32, {side}),
        weight(t, {kChannels}),
        bias(DType::kFloat32, {kChannels}, {-2}),
        rho(t, {kChannels}),
        logits(DType::kFloat32, {3}),
        var_logits(DType::kFloat64, {3}),
        mean(DType::kFloat32, {kChannels}),
        variance(DType::kFloat64, {kChannels}, {3}),
        positive(DType::kFloat32, {kChannels}),
        mixing(DType::kFloat32, {kChannels, kChannels}),
        kernel(t, {kChannels, side * side}),
        gain(DType::kFloat32, {kChannels, 1}),
        u(DType::kFloat32, {kChannels}),
        sigma(DType::kFloat32, {1}) {
    testing::Random random(seed);
    for (Array* a : {&x, &residual, &axis_weight, &weight, &bias, &logits, &var_logits, &mean,
                     &kernel, &gain, &u}) {
      a->fill(random, 0.25, 1);
    }
    for (Array* a : {&rho, &variance, &positive, &mixing, &sigma}) {
      std::vector<double> numbers(std::size_t(a->size()));
      for (double& v : numbers) v = 0.25 + 0.5 * random.uniform();
      a->assign(numbers);
    }
  }
};

// A method's call in both languages. y is like x, or like the kernel where that is normalized.
struct Method {
  const char* name;
  bool of_kernel;
  void (*cpp)(const Inputs&, const Tensor& y, const Context&);
  normcore_status (*c)(const Inputs&, const normcore_tensor* y, const normcore_context*);
};
void PrintTo(const Method& m, std::ostream* out) { *out << m.name; }

// The views of the C call that follows: they must outlive it.
#define VIEW(name) const normcore_const_tensor name = c_view(in.name)

normcore_channel_options given(const normcore_const_tensor* mean,
                               const normcore_const_tensor* spread) {
  normcore_channel_options o = normcore_channel_defaults();
  o.running_mean = mean;
  o.running_spread = spread;
  o.eps = 1e-3;
  return o;
}
template <class Options>
Options stored(const Inputs& in) {
  Options o;
  o.running_mean = ConstTensor(in.mean.tensor());
  if constexpr (requires { o.running_var; }) o.running_var = ConstTensor(in.variance.tensor());
  if constexpr (requires { o.running_std; }) o.running_std = ConstTensor(in.variance.tensor());
  if constexpr (requires { o.running_scale; }) o.running_scale = ConstTensor(in.variance.tensor());
  if constexpr (requires { o.eps; }) o.eps = 1e-3;
  return o;
}

const Method kMethods[] = {
    {"layer_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       layer_norm(in.x.tensor(), in.axis_weight.tensor(), {}, y, {.axes = {3}, .eps = 1e-3}, {},
                  context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(axis_weight);
       const int32_t axes[] = {3};
       auto o = normcore_layer_norm_defaults();
       o.axes = axes;
       o.n_axes = 1;
       o.eps = 1e-3;
       return normcore_layer_norm(&x, &axis_weight, nullptr, y, &o, context);
     }},
    {"rms_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       rms_norm(in.x.tensor(), in.axis_weight.tensor(), y, {.eps = 1e-3, .weight_offset = 1}, {},
                context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(axis_weight);
       auto o = normcore_rms_norm_defaults();
       o.eps = 1e-3;
       o.weight_offset = 1;
       return normcore_rms_norm(&x, &axis_weight, y, &o, context);
     }},
    {"normalize", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       normalize(in.x.tensor(), y, {.ord = 1, .axes = {1}, .eps = 1e-3}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       const int32_t axes[] = {1};
       auto o = normcore_normalize_defaults();
       o.ord = 1;
       o.axes = axes;
       o.n_axes = 1;
       o.eps = 1e-3;
       return normcore_normalize(&x, y, &o, context);
     }},
    {"batch_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       batch_norm(in.x.tensor(), in.weight.tensor(), in.bias.tensor(), y,
                  stored<BatchNormOptions>(in), {}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(weight);
       VIEW(bias);
       VIEW(mean);
       VIEW(variance);
       const auto o = given(&mean, &variance);
       return normcore_batch_norm(&x, &weight, &bias, y, &o, context);
     }},
    {"batch_norm_of_x", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       batch_norm(in.x.tensor(), {}, in.bias.tensor(), y, {}, {}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(bias);
       return normcore_batch_norm(&x, nullptr, &bias, y, nullptr, context);
     }},
    {"instance_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       instance_norm(in.x.tensor(), in.weight.tensor(), {}, y, {}, {}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(weight);
       return normcore_instance_norm(&x, &weight, nullptr, y, nullptr, context);
     }},
    {"instance_norm_with_stored_statistics", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       auto o = stored<InstanceNormOptions>(in);
       o.use_input_stats = false;
       instance_norm(in.x.tensor(), in.weight.tensor(), in.bias.tensor(), y, o, {}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(weight);
       VIEW(bias);
       VIEW(mean);
       VIEW(variance);
       const auto o = given(&mean, &variance);
       return normcore_instance_norm(&x, &weight, &bias, y, &o, context);
     }},
    {"group_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       group_norm(in.x.tensor(), 4, in.weight.tensor(), in.bias.tensor(), y, {.eps = 1e-3}, {},
                  context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(weight);
       VIEW(bias);
       const auto o = given(nullptr, nullptr);
       return normcore_group_norm(&x, 4, &weight, &bias, y, &o, context);
     }},
    {"batch_renorm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       batch_renorm(in.x.tensor(), in.weight.tensor(), {}, y, stored<BatchRenormOptions>(in), {},
                    context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(weight);
       VIEW(mean);
       VIEW(variance);
       const auto o = given(&mean, &variance);
       return normcore_batch_renorm(&x, &weight, nullptr, y, &o, context);
     }},
    {"batch_instance_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       batch_instance_norm(in.x.tensor(), in.rho.tensor(), in.weight.tensor(), in.bias.tensor(), y,
                           stored<BatchInstanceNormOptions>(in), {}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(rho);
       VIEW(weight);
       VIEW(bias);
       VIEW(mean);
       VIEW(variance);
       const auto o = given(&mean, &variance);
       return normcore_batch_instance_norm(&x, &rho, &weight, &bias, y, &o, context);
     }},
    {"switchable_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       switchable_norm(in.x.tensor(), in.logits.tensor(), in.var_logits.tensor(),
                       in.weight.tensor(), in.bias.tensor(), y, stored<SwitchableNormOptions>(in),
                       {}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(logits);
       VIEW(var_logits);
       VIEW(weight);
       VIEW(bias);
       VIEW(mean);
       VIEW(variance);
       const auto o = given(&mean, &variance);
       return normcore_switchable_norm(&x, &logits, &var_logits, &weight, &bias, y, &o, context);
     }},
    {"mean_only_batch_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       mean_only_batch_norm(in.x.tensor(), in.bias.tensor(), y,
                            stored<MeanOnlyBatchNormOptions>(in), {}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(bias);
       VIEW(mean);
       const auto o = given(&mean, nullptr);
       return normcore_mean_only_batch_norm(&x, &bias, y, &o, context);
     }},
    {"lp_batch_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       lp_batch_norm(in.x.tensor(), in.weight.tensor(), in.bias.tensor(), y, {.p = 3}, {}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(weight);
       VIEW(bias);
       return normcore_lp_batch_norm(&x, 3, &weight, &bias, y, nullptr, context);
     }},
    {"topk_batch_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       topk_batch_norm(in.x.tensor(), in.weight.tensor(), in.bias.tensor(), y, {.k = 7}, {},
                       context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(weight);
       VIEW(bias);
       return normcore_topk_batch_norm(&x, 7, &weight, &bias, y, nullptr, context);
     }},
    {"topk_batch_norm_with_stored_statistics", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       topk_batch_norm(in.x.tensor(), {}, {}, y, stored<TopKBatchNormOptions>(in), {}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(mean);
       VIEW(variance);
       const auto o = given(&mean, &variance);
       return normcore_topk_batch_norm(&x, 1, nullptr, nullptr, y, &o, context);
     }},
    {"weight_norm", true,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       weight_norm(in.kernel.tensor(), in.gain.tensor(), y, {.axis = 0, .eps = 1e-3}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(kernel);
       VIEW(gain);
       auto o = normcore_weight_norm_defaults();
       o.eps = 1e-3;
       return normcore_weight_norm(&kernel, &gain, y, &o, context);
     }},
    {"weight_norm_of_the_whole", true,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       weight_norm(in.kernel.tensor(), in.sigma.tensor(), y, {.axis = {}}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(kernel);
       VIEW(sigma);
       auto o = normcore_weight_norm_defaults();
       o.whole = 1;
       return normcore_weight_norm(&kernel, &sigma, y, &o, context);
     }},
    {"spectral_norm", true,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       SpectralNormOptions o;
       o.n_power_iterations = 2;
       o.bound = 1.5;
       spectral_norm(in.kernel.tensor(), {in.u.tensor(), {}}, {y, {}, {}}, o, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(kernel);
       VIEW(u);
       auto o = normcore_spectral_norm_defaults();
       o.n_power_iterations = 2;
       o.bound = 1.5;
       double sigma = -1;
       const auto status = normcore_spectral_norm(&kernel, &u, nullptr, y, &sigma, &o, context);
       EXPECT_GT(sigma, 0);
       return status;
     }},
    {"divisive_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       divisive_norm(in.x.tensor(), in.mixing.tensor(), in.positive.tensor(), in.weight.tensor(), y,
                     {.exponent = 1.5, .power = 1.25}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(mixing);
       VIEW(positive);
       VIEW(weight);
       auto o = normcore_divisive_norm_defaults();
       o.exponent = 1.5;
       o.power = 1.25;
       return normcore_divisive_norm(&x, &mixing, &positive, &weight, y, &o, context);
     }},
    {"gdn", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       gdn(in.x.tensor(), in.positive.tensor(), in.mixing.tensor(), y,
           {.inverse = true, .alpha = 1, .epsilon = 0.75}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(positive);
       VIEW(mixing);
       auto o = normcore_gdn_defaults();
       o.inverse = 1;
       o.alpha = 1;
       o.epsilon = 0.75;
       return normcore_gdn(&x, &positive, &mixing, y, &o, context);
     }},
    {"local_response_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       local_response_norm(in.x.tensor(), 4, y,
                           {.alpha = 0.5,
                            .beta = 0.5,
                            .k = 2,
                            .across = Across::kSpace,
                            .even_window = EvenWindow::kOnnx},
                           context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       auto o = normcore_local_response_norm_defaults();
       o.alpha = 0.5;
       o.beta = 0.5;
       o.k = 2;
       o.across_space = 1;
       o.even_window_onnx = 1;
       return normcore_local_response_norm(&x, 4, y, &o, context);
     }},
    {"local_divisive_norm", false,
     [](const Inputs& in, const Tensor& y, const Context& context) {
       local_divisive_norm(in.x.tensor(), in.positive.tensor(), in.weight.tensor(),
                           in.bias.tensor(), y, {{3, 5}, {1}}, context);
     },
     [](const Inputs& in, const normcore_tensor* y, const normcore_context* context) {
       VIEW(x);
       VIEW(positive);
       VIEW(weight);
       VIEW(bias);
       const int64_t summation[] = {3, 5}, suppression[] = {1};
       const normcore_local_divisive_norm_options o{summation, suppression, 2, 1, 1};
       return normcore_local_divisive_norm(&x, &positive, &weight, &bias, y, &o, context);
     }},
};
#undef VIEW

// y of a call, poisoned.
Array output_of(const Method& m, const Inputs& in) {
  const Array& like = m.of_kernel ? in.kernel : in.x;
  return Array(like.dtype, like.shape);
}
std::string bits_of(const Array& y) {
  return {reinterpret_cast<const char*>(y.bytes.data()), y.bytes.size()};
}
std::string bits_of(const Method& m, const Inputs& in, int threads) {
  const Array y = output_of(m, in);
  m.cpp(in, y.tensor(), {.threads = threads});
  return bits_of(y);
}

class Inference : public ::testing::TestWithParam<Method> {};

TEST_P(Inference, IsTheSameFromC) {
  const Method& m = GetParam();
  for (const DType t : testing::kDTypes) {
    const Inputs in(t, 7, testing::run_seed());
    const Array y = output_of(m, in);
    const normcore_tensor c_y{y.tensor().data(), int32_t(t), int32_t(y.shape.size()),
                              y.shape.data(), nullptr};
    normcore_context context{};
    context.threads = 1;
    ASSERT_EQ(m.c(in, &c_y, &context), NORMCORE_OK) << normcore_last_error();
    EXPECT_EQ(bits_of(y), bits_of(m, in, 1)) << name_of(t) << ", seed " << testing::run_seed();
  }
}

TEST_P(Inference, AllocatesNothing) {
  const Method& m = GetParam();
  for (const DType t : testing::kDTypes) {
    for (const Index side : {5, 61}) {  // in one thread, and in as many as there are
      const Inputs in(t, side, 1);
      const Array y = output_of(m, in);
      const Tensor out = y.tensor();
      auto call = [&](int threads) { m.cpp(in, out, {.threads = threads}); };
      call(1);
      const long before = testing::allocations();
      call(1);
      EXPECT_EQ(testing::allocations(), before) << name_of(t) << ", side " << side;
      EXPECT_EQ(testing::allocations_of([&] { call(2); }), 0) << name_of(t) << ", side " << side;
    }
  }
}

TEST_P(Inference, OfAnyStridesAllocatesNothing) {
  const Method& m = GetParam();
  constexpr Index kSide = 9, kPixels = kSide * kSide;
  const std::vector<Index> channels_last = {kPixels * kChannels, 1, kSide * kChannels, kChannels},
                           gaps = {kPixels * kChannels * 2, kPixels * 2, 2, kSide * 2};
  for (const auto& strides : {channels_last, gaps}) {
    const Inputs in(DType::kBFloat16, kSide, 1, strides);
    const Array y = output_of(m, in);
    auto call = [&] { m.cpp(in, y.tensor(), {.threads = 1}); };
    call();
    const long before = testing::allocations();
    call();
    EXPECT_EQ(testing::allocations(), before);
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, Inference, ::testing::ValuesIn(kMethods),
                         [](const auto& info) { return info.param.name; });

// Every thread runs all methods on sizes of its own, beginning with another one, and all share
// their inputs: scratch memory, the choice of kernels and last errors must not be shared.
TEST(InferenceInManyThreads, HasTheBitsOfOne) {
  constexpr int kThreads = 8, kRounds = 5;
  const std::vector<Index> sides = {5, 8, 61};
  std::vector<Inputs> inputs;
  for (const Index side : sides) inputs.emplace_back(DType::kFloat32, side, 3 + unsigned(side));
  std::vector<std::string> want;
  for (const Inputs& in : inputs) {
    for (const Method& m : kMethods) want.push_back(bits_of(m, in, 1));
  }
  std::vector<std::string> faults(kThreads);
  std::vector<std::thread> threads;
  for (int k = 0; k < kThreads; ++k) {
    threads.emplace_back([&, k] {
      const std::size_t n = want.size(), methods = std::size(kMethods);
      for (std::size_t i = 0; i < kRounds * n; ++i) {
        const std::size_t at = (i + std::size_t(k) * 7) % n;
        const Method& m = kMethods[at % methods];
        if (bits_of(m, inputs[at / methods], k % 3) != want[at]) faults[std::size_t(k)] = m.name;
        const std::string name = std::string("v").append(std::to_string(90 + k));
        const bool told = normcore_set_isa(name.c_str()) == NORMCORE_VALUE_ERROR &&
                          std::string(normcore_last_error()).find(name) != std::string::npos;
        if (!told) faults[std::size_t(k)] = "last error";
      }
    });
  }
  for (std::thread& t : threads) t.join();
  for (const std::string& fault : faults) EXPECT_EQ(fault, "");
}

// Every method has the bits of one of the instruction sets while another thread sets them in turn.
TEST(InferenceBesideSetIsa, HasTheBitsOfOneInstructionSet) {
  const std::string initial = get_isa();
  const Inputs in(DType::kFloat32, 61, testing::run_seed());
  std::vector<std::vector<std::string>> want;
  for (const Method& m : kMethods) {
    want.emplace_back();
    for (const std::string& isa : available_isas()) {
      set_isa(isa);
      want.back().push_back(bits_of(m, in, 1));
    }
  }
  std::atomic<bool> stop{false};
  std::thread flip([&] {
    while (!stop) {
      for (const std::string& isa : available_isas()) set_isa(isa);
    }
  });
  for (int i = 0; i < 60; ++i) {
    const std::size_t at = std::size_t(i) % std::size(kMethods);
    for (const int threads : {1, 2}) {
      const std::string got = bits_of(kMethods[at], in, threads);
      EXPECT_EQ(std::count(want[at].begin(), want[at].end(), got) > 0, true)
          << kMethods[at].name << ", " << threads << " threads";
    }
  }
  stop = true;
  flip.join();
  set_isa(initial);
}

// ---- what the C interface refuses by itself

struct CErrorCase {
  const char* name;
  const char* message;  // its beginning
  normcore_status status;
  void (*spoil)(normcore_const_tensor* x, normcore_tensor* y, normcore_layer_norm_options* o,
                normcore_context* context);
};
void PrintTo(const CErrorCase& c, std::ostream* out) { *out << c.name; }

const int64_t kNegative[] = {2, -3}, kHuge[] = {int64_t(1) << 32, int64_t(1) << 32};
const int32_t kAxes[] = {2};
const CErrorCase kCErrors[] = {
    {"DType", "x->dtype is 4, expected one of NORMCORE_FLOAT32 to NORMCORE_FLOAT16",
     NORMCORE_TYPE_ERROR, [](auto* x, auto*, auto*, auto*) { x->dtype = 4; }},
    {"DTypeOfY", "out has dtype float64, expected float32: x's", NORMCORE_VALUE_ERROR,
     [](auto*, auto* y, auto*, auto*) { y->dtype = NORMCORE_FLOAT64; }},
    {"NegativeNdim", "y->ndim is -1, expected 0 to 32", NORMCORE_VALUE_ERROR,
     [](auto*, auto* y, auto*, auto*) { y->ndim = -1; }},
    {"TooManyAxes", "x->ndim is 33, expected 0 to 32", NORMCORE_VALUE_ERROR,
     [](auto* x, auto*, auto*, auto*) { x->ndim = 33; }},
    {"NoShape", "x->shape is null, expected ndim sizes", NORMCORE_VALUE_ERROR,
     [](auto* x, auto*, auto*, auto*) { x->shape = nullptr; }},
    {"NegativeSize", "x->shape[1] is -3, expected a number >= 0", NORMCORE_VALUE_ERROR,
     [](auto* x, auto*, auto*, auto*) { x->shape = kNegative; }},
    {"NoData", "x->data is null, expected memory", NORMCORE_VALUE_ERROR,
     [](auto* x, auto*, auto*, auto*) { x->data = nullptr; }},
    {"Axis", "axis is 2, expected -2 to 1 for x with 2 axes", NORMCORE_VALUE_ERROR,
     [](auto*, auto*, auto* o, auto*) {
       o->axes = kAxes;
       o->n_axes = 1;
     }},
    {"TooManyElements", "x->shape has more elements than memory can hold", NORMCORE_VALUE_ERROR,
     [](auto* x, auto*, auto*, auto*) { x->shape = kHuge; }},
    {"SumWithoutResidual", "residual is null, expected a tensor: h is given", NORMCORE_VALUE_ERROR,
     [](auto*, auto* y, auto* o, auto*) { o->h = y; }},
    {"ResidualWithoutSum", "h is null, expected a tensor: residual is given", NORMCORE_VALUE_ERROR,
     [](auto* x, auto*, auto* o, auto*) { o->residual = x; }},
    {"NoAxes", "axes is null, expected 2 values", NORMCORE_VALUE_ERROR,
     [](auto*, auto*, auto* o, auto*) { o->n_axes = 2; }},
    {"NegativeNumberOfAxes", "axes has -1 values, expected 0 to 32", NORMCORE_VALUE_ERROR,
     [](auto*, auto*, auto* o, auto*) { o->n_axes = -1; }},
    {"Eps", "eps is -1, expected a finite number", NORMCORE_VALUE_ERROR,
     [](auto*, auto*, auto* o, auto*) { o->eps = -1; }},
    {"Device", "context->device is 2, expected NORMCORE_CPU or NORMCORE_CUDA", NORMCORE_VALUE_ERROR,
     [](auto*, auto*, auto*, auto* context) { context->device = 2; }},
    {"Threads", "context->threads is -1, expected 0 or more", NORMCORE_VALUE_ERROR,
     [](auto*, auto*, auto*, auto* context) { context->threads = -1; }},
};

class CErrors : public ::testing::TestWithParam<CErrorCase> {};

TEST_P(CErrors, AreToldAndNothingIsWritten) {
  const CErrorCase& e = GetParam();
  const float values[6] = {1, 2, 3, 4, 5, 6};
  const testing::Bytes written(6 * 8);
  const int64_t shape[] = {2, 3};
  normcore_const_tensor x{values, NORMCORE_FLOAT32, 2, shape, nullptr};
  normcore_tensor y{written.data(), NORMCORE_FLOAT32, 2, shape, nullptr};
  auto o = normcore_layer_norm_defaults();
  normcore_context context{};
  e.spoil(&x, &y, &o, &context);
  const normcore_status status = normcore_layer_norm(&x, nullptr, nullptr, &y, &o, &context);
  EXPECT_EQ(status, e.status);
  EXPECT_EQ(std::string(normcore_last_error()).rfind(e.message, 0), 0u) << normcore_last_error();
  EXPECT_TRUE(written.poisoned(0, written.size()));
}

INSTANTIATE_TEST_SUITE_P(CApi, CErrors, ::testing::ValuesIn(kCErrors),
                         [](const auto& info) { return info.param.name; });

TEST(CApi, RefusesStatisticsThatAMethodHasNoUseFor) {
  const float values[6] = {1, 2, 3, 4, 5, 6};
  float y[6];
  const int64_t shape[] = {1, 2, 3};
  const normcore_const_tensor x{values, NORMCORE_FLOAT32, 3, shape, nullptr},
      two{values, NORMCORE_FLOAT32, 1, shape + 1, nullptr};
  const normcore_tensor out{y, NORMCORE_FLOAT32, 3, shape, nullptr};
  const auto o = given(&two, &two);
  EXPECT_EQ(normcore_group_norm(&x, 2, nullptr, nullptr, &out, &o, nullptr), NORMCORE_VALUE_ERROR);
  EXPECT_STREQ(normcore_last_error(),
               "running_mean is given, expected none: group norm has no use for it");
  EXPECT_EQ(normcore_mean_only_batch_norm(&x, nullptr, &out, &o, nullptr), NORMCORE_VALUE_ERROR);
  EXPECT_STREQ(normcore_last_error(),
               "running_spread is given, expected none: mean-only batch norm has no use for it");
}

TEST(CApi, AddsAResidual) {
  const Inputs in(DType::kBFloat16, 5, testing::run_seed());
  const Array y(in.x.dtype, in.x.shape), h(in.x.dtype, in.x.shape);
  auto run = [&](bool rms, bool from_c) {
    const Tensor out = y.tensor(), sum = h.tensor();
    for (const Array* a : {&y, &h}) std::memset(a->bytes.data(), 0xa7, a->bytes.size());
    const normcore_const_tensor x = c_view(in.x), residual = c_view(in.residual);
    const normcore_tensor c_out{out.data(), x.dtype, x.ndim, x.shape, nullptr},
        c_sum{sum.data(), x.dtype, x.ndim, x.shape, nullptr};
    const int32_t axes[] = {-1, 1, 2};
    if (rms && from_c) {
      const normcore_rms_norm_options o{axes, 3, 1e-3, 1, &residual, &c_sum};
      EXPECT_EQ(normcore_rms_norm(&x, nullptr, &c_out, &o, nullptr), NORMCORE_OK);
    } else if (rms) {
      rms_norm(in.x.tensor(), {}, out, {{1, 2, 3}, 1e-3, 1, in.residual.tensor(), sum});
    } else if (from_c) {
      const normcore_layer_norm_options o{axes, 3, 1e-3, &residual, &c_sum};
      EXPECT_EQ(normcore_layer_norm(&x, nullptr, nullptr, &c_out, &o, nullptr), NORMCORE_OK);
    } else {
      layer_norm(in.x.tensor(), {}, {}, out, {{1, 2, 3}, 1e-3, in.residual.tensor(), sum});
    }
    return bits_of(y) + bits_of(h);
  };
  for (const bool rms : {false, true}) EXPECT_EQ(run(rms, true), run(rms, false));
}

TEST(ReadOnlyBuffers, ServeInferenceButAreNotMoved) {
  const float values[6] = {1, 2, 3, 4, 5, 6}, stored_mean[2] = {2, 5}, stored_var[2] = {1, 1};
  float y[6] = {};
  const ConstTensor x(values, {1, 2, 3});
  const Tensor out(y, {1, 2, 3});
  BatchNormOptions o{{stored_mean, {2}}, {stored_var, {2}}};
  o.eps = 0;
  batch_norm(x, {}, {}, out, o);
  EXPECT_EQ(std::vector<float>(y, y + 6), (std::vector<float>{-1, 0, 1, -1, 0, 1}));

  const Buffer mean(stored_mean, {2}), spread(stored_var, {2});
  const ConstTensor logits(values, {3}), rho(values, {2});
  const std::function<void()> calls[] = {
      [&] { batch_norm(x, {}, {}, out, {mean, spread, true}); },
      [&] { instance_norm(x, {}, {}, out, {mean, spread}); },
      [&] { batch_renorm(x, {}, {}, out, {mean, spread, true}); },
      [&] { batch_instance_norm(x, rho, {}, {}, out, {mean, spread, true}); },
      [&] { switchable_norm(x, logits, logits, {}, {}, out, {mean, spread, true}); },
      [&] { mean_only_batch_norm(x, {}, out, {mean, true}); },
      [&] { lp_batch_norm(x, {}, {}, out, {1, mean, spread, true}); },
      [&] { topk_batch_norm(x, {}, {}, out, {2, mean, spread, true}); }};
  y[0] = 7;
  for (const auto& call : calls) {
    try {
      call();
      ADD_FAILURE() << "a read-only buffer was moved by call " << &call - calls;
    } catch (const value_error& e) {
      EXPECT_STREQ(e.what(),
                   "running_mean is read-only, expected memory that a training call may move");
    }
    EXPECT_EQ(y[0], 7);
  }
}

// ---- what programs have compiled in: see "Versions" in docs/embedding.md

static_assert(sizeof(void*) != 8 ||
              (sizeof(normcore_tensor) == 32 && sizeof(normcore_const_tensor) == 32 &&
               sizeof(normcore_context) == 40 && sizeof(normcore_layer_norm_options) == 40 &&
               sizeof(normcore_rms_norm_options) == 48 &&
               sizeof(normcore_normalize_options) == 32 && sizeof(normcore_channel_options) == 32 &&
               sizeof(normcore_weight_norm_options) == 16 &&
               sizeof(normcore_spectral_norm_options) == 32 &&
               sizeof(normcore_divisive_norm_options) == 24 && sizeof(normcore_gdn_options) == 24 &&
               sizeof(normcore_local_response_norm_options) == 40 &&
               sizeof(normcore_local_divisive_norm_options) == 32));

}  // namespace
}  // namespace normcore
