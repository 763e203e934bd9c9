// Errors of the adaptive methods, of the other scales of batch norm, of weights, masks and
// processes: as errors_test.cc.
#include <gtest/gtest.h>

#include <functional>

#include "adaptive_methods.h"

namespace normcore {
namespace {

using namespace testing;

struct ErrorCase {
  const char* name;
  const char* message;  // its beginning
  std::function<void(const Call&)> call;
};
void PrintTo(const ErrorCase& c, std::ostream* out) { *out << c.name; }

// `c` has x [2, 3, 4], and parameters that fit any method.
Tensor reshaped(const Array& a, std::vector<Index> shape) {
  return make_tensor(a.bytes.data(), a.dtype, shape);
}
BatchNormOptions masked(const Call& c, const ConstTensor& mask, bool training = true) {
  BatchNormOptions o{c.running_mean.tensor(), c.running_spread.tensor(), training};
  o.mask = mask;
  return o;
}
BatchRenormOptions renorm(const Call& c, double r_max = 3, double d_max = 5, double eps = 1e-5) {
  return {c.running_mean.tensor(), c.running_spread.tensor(), true, 0.1, r_max, d_max, eps};
}
struct NoExchange : Exchange {
  void sum(double*, std::ptrdiff_t) override { ADD_FAILURE() << "was asked for sums"; }
} no_exchange;
const Context kProcesses{.exchange = &no_exchange};

const ErrorCase kErrors[] = {
    {"RenormWithoutBuffers", "running_mean is None, expected an array",
     [](const Call& c) { batch_renorm(c.x.tensor(), {}, {}, c.out(), {}); }},
    {"RenormWithoutStd", "running_std is None, expected an array",
     [](const Call& c) {
       batch_renorm(c.x.tensor(), {}, {}, c.out(), {.running_mean = c.running_mean.tensor()});
     }},
    {"RenormClipsBelowOne", "r_max is 0.5",
     [](const Call& c) { batch_renorm(c.x.tensor(), {}, {}, c.out(), renorm(c, 0.5), c.stats()); }},
    {"RenormClipIsNoNumber", "r_max is nan",
     [](const Call& c) { batch_renorm(c.x.tensor(), {}, {}, c.out(), renorm(c, NAN), c.stats()); }},
    {"RenormClipsBelowZero", "d_max is -1",
     [](const Call& c) { batch_renorm(c.x.tensor(), {}, {}, c.out(), renorm(c, 3, -1)); }},
    {"RenormWithoutEps", "eps is 0, expected a finite number > 0 when training",
     [](const Call& c) { batch_renorm(c.x.tensor(), {}, {}, c.out(), renorm(c, 3, 5, 0)); }},
    {"RenormBackwardWithoutStatistics", "stats is None",
     [](const Call& c) {
       batch_renorm_backward(c.dy.tensor(), c.x.tensor(), {}, c.gradients(), renorm(c));
     }},
    {"RenormOutOverStd", "running_std overlaps out",
     [](const Call& c) {
       auto o = renorm(c);
       o.running_std = reshaped(c.y, {3});
       batch_renorm(c.x.tensor(), {}, {}, c.out(), o);
     }},
    {"NoRho", "rho is None",
     [](const Call& c) { batch_instance_norm(c.x.tensor(), {}, {}, {}, c.out()); }},
    {"RhoOfOtherShape", "rho has shape (24,), expected (3,)",
     [](const Call& c) {
       batch_instance_norm(c.x.tensor(), reshaped(c.x, {24}), {}, {}, c.out());
     }},
    {"RhoGradientOfOtherShape", "drho has shape (2,), expected (3,)",
     [](const Call& c) {
       batch_instance_norm_backward(c.dy.tensor(), c.x.tensor(), c.first.tensor(), {},
                                    c.gradients(), reshaped(c.dfirst, {2}));
     }},
    {"OutOverRho", "out overlaps rho",
     [](const Call& c) { batch_instance_norm(c.x.tensor(), reshaped(c.y, {3}), {}, {}, c.out()); }},
    {"MeanOfSeveralPools", "stats.mean or rstd is given, expected none",
     [](const Call& c) {
       batch_instance_norm(c.x.tensor(), c.first.tensor(), {}, {}, c.out(), {},
                           {.mean = reshaped(c.pooled, {2, 3})});
     }},
    {"NoLogits", "var_logits is None",
     [](const Call& c) { switchable_norm(c.x.tensor(), c.first.tensor(), {}, {}, {}, c.out()); }},
    {"LogitsOfOtherShape", "mean_logits has shape (2,), expected (3,)",
     [](const Call& c) {
       switchable_norm(c.x.tensor(), reshaped(c.first, {2}), c.second.tensor(), {}, {}, c.out());
     }},
    {"LogitGradientOfOtherShape", "dvar_logits has shape (2,), expected (3,)",
     [](const Call& c) {
       switchable_norm_backward(c.dy.tensor(), c.x.tensor(), c.first.tensor(), c.second.tensor(),
                                {}, c.gradients(), c.dfirst.tensor(), reshaped(c.dsecond, {2}));
     }},
    {"MeanOnlyBufferOfOtherShape", "running_mean has shape (2,), expected (3,)",
     [](const Call& c) {
       mean_only_batch_norm(c.x.tensor(), {}, c.out(), {reshaped(c.running_mean, {2}), true});
     }},
    {"PowerBelowOne", "p is 0.5",
     [](const Call& c) { lp_batch_norm(c.x.tensor(), {}, {}, c.out(), {.p = 0.5}); }},
    {"PowerThatIsNoNumber", "p is nan",
     [](const Call& c) {
       lp_batch_norm_backward(c.dy.tensor(), c.x.tensor(), {}, c.gradients(), {.p = NAN});
     }},
    {"OutOverScale", "out overlaps running_scale",
     [](const Call& c) {
       lp_batch_norm(
           c.x.tensor(), {}, {}, c.out(),
           {.running_mean = c.running_mean.tensor(), .running_scale = reshaped(c.y, {3})});
     }},
    {"LpOfProcesses", "context.exchange is given",
     [](const Call& c) {
       lp_batch_norm(c.x.tensor(), {}, {}, c.out(), {}, c.stats(), kProcesses);
     }},
    {"LpBackwardOfProcesses", "context.exchange is given",
     [](const Call& c) {
       lp_batch_norm_backward(c.dy.tensor(), c.x.tensor(), {}, c.gradients(), {.training = true},
                              {}, kProcesses);
     }},
    {"TopKOfProcesses", "context.exchange is given",
     [](const Call& c) {
       topk_batch_norm(c.x.tensor(), {}, {}, c.out(), {.training = true}, {}, kProcesses);
     }},
    {"TopKBackwardOfProcesses", "context.exchange is given",
     [](const Call& c) {
       topk_batch_norm_backward(c.dy.tensor(), c.x.tensor(), {}, c.gradients(), {}, {}, kProcesses);
     }},
    {"NoneOfTheLargest", "k is 0",
     [](const Call& c) { topk_batch_norm(c.x.tensor(), {}, {}, c.out(), {.k = 0}); }},
    {"OtherOrder", "ord is 3", [](const Call& c) { normalize(c.x.tensor(), c.out(), {.ord = 3}); }},
    {"NegativeOrder", "ord is -inf",
     [](const Call& c) {
       normalize_backward(c.dy.tensor(), c.x.tensor(), c.gradients().dx, {.ord = -INFINITY});
     }},
    {"AxisTwice", "axis names -1 twice",
     [](const Call& c) { normalize(c.x.tensor(), c.out(), {.axes = {2, -1}}); }},
    {"NegativeEps", "eps is -1",
     [](const Call& c) { normalize(c.x.tensor(), c.out(), {.eps = -1}); }},
    {"NoG", "g is None", [](const Call& c) { weight_norm(c.x.tensor(), {}, c.out()); }},
    {"GOfOtherShape", "g has shape (3,), expected () or (2,)",
     [](const Call& c) { weight_norm(c.x.tensor(), c.weight.tensor(), c.out()); }},
    {"GAlongAnotherAxis", "g has shape (1, 1, 3)",
     [](const Call& c) {
       weight_norm(c.x.tensor(), reshaped(c.weight, {1, 1, 3}), c.out(), {.axis = 1});
     }},
    {"WeightAxisOutOfRange", "axis is 3, expected -3 to 2",
     [](const Call& c) { weight_norm(c.x.tensor(), c.weight.tensor(), c.out(), {.axis = 3}); }},
    {"GGradientOfOtherShape", "dg has shape (2,), expected (3,)",
     [](const Call& c) {
       weight_norm_backward(c.dy.tensor(), c.x.tensor(), c.weight.tensor(), c.gradients().dx,
                            reshaped(c.dweight, {2}), {.axis = 1});
     }},
    {"MaskOfOtherShape", "mask has shape (2, 3, 4), expected (2, 4)",
     [](const Call& c) {
       batch_norm(c.x.tensor(), {}, {}, c.out(), masked(c, c.x.tensor()), c.stats());
     }},
    {"MaskOfOtherType", "mask has dtype float32, expected float64",
     [](const Call& c) {
       const float mask[8] = {1, 1, 1, 1, 1, 1, 1, 1};
       batch_norm(c.x.tensor(), {}, {}, c.out(), masked(c, {mask, {2, 4}}), c.stats());
     }},
    {"NegativeMask", "mask holds -1",
     [](const Call& c) {
       const double mask[8] = {1, 1, 1, 1, 1, 1, 1, -1};
       batch_norm(c.x.tensor(), {}, {}, c.out(), masked(c, {mask, {2, 4}}), c.stats());
     }},
    {"MaskThatIsNoNumberInBackward", "mask holds nan",
     [](const Call& c) {
       const double mask[8] = {1, 1, 1, 1, 1, 1, 1, NAN};
       batch_norm_backward(c.dy.tensor(), c.x.tensor(), {}, c.gradients(),
                           masked(c, {mask, {2, 4}}));
     }},
    {"OutOverMask", "out overlaps mask",
     [](const Call& c) {
       batch_norm(c.x.tensor(), {}, {}, c.out(), masked(c, reshaped(c.y, {2, 4})));
     }},
    {"GradientOverMask", "out overlaps mask",
     [](const Call& c) {
       batch_norm_backward(c.dy.tensor(), c.x.tensor(), {}, {c.y.tensor(), {}, {}},
                           masked(c, reshaped(c.y, {2, 4})));
     }},
};

class AdaptiveErrors : public ::testing::TestWithParam<ErrorCase> {};

constexpr Array Call::* kArrays[] = {
    &Call::x,      &Call::dy,   &Call::y,     &Call::dx,           &Call::weight,
    &Call::first,  &Call::mask, &Call::mean,  &Call::running_mean, &Call::running_spread,
    &Call::pooled, &Call::rstd, &Call::given, &Call::dweight,      &Call::dfirst};

TEST_P(AdaptiveErrors, NameTheArgumentAndWriteNothing) {
  Random random(1);
  Call c(methods().front(), DType::kFloat64, 1, draw(random, methods().front(), {2, 3, 4}));
  c.y.assign(Vector(24, 0.5));  // also a valid mask and the like
  std::vector<std::vector<unsigned char>> before;
  for (const auto a : kArrays) {
    const testing::Bytes& b = (c.*a).bytes;
    before.emplace_back(b.data(), b.data() + b.size());
  }
  std::string message = "no error";
  try {
    GetParam().call(c);
  } catch (const std::invalid_argument& e) {
    message = e.what();
  }
  EXPECT_EQ(message.substr(0, std::strlen(GetParam().message)), GetParam().message);
  for (std::size_t i = 0; i < before.size(); ++i) {
    EXPECT_EQ(std::memcmp((c.*kArrays[i]).bytes.data(), before[i].data(), before[i].size()), 0)
        << "array " << i;
  }
}
INSTANTIATE_TEST_SUITE_P(All, AdaptiveErrors, ::testing::ValuesIn(kErrors),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace normcore
