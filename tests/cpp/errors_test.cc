// Errors of the operations: each is a std::invalid_argument that says what is wrong, and is thrown
// before anything is written.
#include <gtest/gtest.h>

#include <functional>

#include "support.h"

namespace normcore {
namespace {

// Arrays for any of the operations on x [2, 4, 6], every byte of the outputs poisoned.
struct Arrays {
  float x[48], dy[48], weight[6], bias[6];
  testing::Bytes y{48 * 4}, dx{48 * 4}, dweight{6 * 4}, dbias{6 * 4}, running_mean{6 * 4},
      running_var{6 * 4}, stats{64 * 8};

  Arrays() {
    for (int i = 0; i < 48; ++i) x[i] = float(i % 7), dy[i] = float(i % 5);
    for (int i = 0; i < 6; ++i) weight[i] = bias[i] = 1;
  }
  static Tensor over(const testing::Bytes& b, std::initializer_list<Index> shape) {
    return Tensor(reinterpret_cast<float*>(b.data()), shape);
  }
  ConstTensor in() const { return {x, {2, 4, 6}}; }
  ConstTensor grad() const { return {dy, {2, 4, 6}}; }
  Tensor out() const { return over(y, {2, 4, 6}); }
  Gradients gradients(Index n) const { return {over(dx, {2, 4, 6}), over(dweight, {n}), {}}; }
  bool untouched() const {
    for (const auto* b : {&y, &dx, &dweight, &dbias, &running_mean, &running_var, &stats}) {
      if (!b->poisoned(0, b->size())) return false;
    }
    return true;
  }
};

struct ErrorCase {
  const char* name;
  const char* message;  // its beginning
  std::function<void(Arrays&)> call;
};
void PrintTo(const ErrorCase& c, std::ostream* out) { *out << c.name; }

const ErrorCase kErrors[] = {
    {"WeightOfOtherShape", "weight has shape (5,), expected (6,): x's shape over axis",
     [](Arrays& a) { layer_norm(a.in(), {a.weight, {5}}, {}, a.out()); }},
    {"BiasOfOtherShape", "bias has shape (6,), expected (4,): x.shape[channel_axis=1]",
     [](Arrays& a) { group_norm(a.in(), 2, {}, {a.bias, {6}}, a.out()); }},
    {"OutOfOtherShape", "out has shape (2, 4, 5), expected (2, 4, 6): x's",
     [](Arrays& a) { layer_norm(a.in(), {}, {}, Arrays::over(a.y, {2, 4, 5})); }},
    {"OutOverlapsX", "out overlaps x in memory, expected x itself or memory of its own",
     [](Arrays& a) { rms_norm({a.x, {40}}, {}, Tensor(a.x + 8, {40})); }},
    {"OutOverlapsWeight", "out overlaps weight in memory, expected memory of its own",
     [](Arrays& a) {
       layer_norm(a.in(), {reinterpret_cast<float*>(a.y.data()), {6}}, {}, a.out());
     }},
    {"AxisOutOfRange", "axis is 3, expected -3 to 2 for x with 3 axes",
     [](Arrays& a) { layer_norm(a.in(), {}, {}, a.out(), {.axes = {3}}); }},
    {"NoAxis", "axis is (), expected at least one axis",
     [](Arrays& a) { layer_norm(a.in(), {}, {}, a.out(), {.axes = {}}); }},
    {"NegativeEps", "eps is -1, expected a finite number >= 0",
     [](Arrays& a) { rms_norm(a.in(), {}, a.out(), {.eps = -1}); }},
    {"ZeroEpsInTraining", "eps is 0, expected a finite number > 0 when training",
     [](Arrays& a) { batch_norm(a.in(), {}, {}, a.out(), {.training = true, .eps = 0}); }},
    {"MomentumThatIsNoNumber", "momentum is nan, expected a finite number",
     [](Arrays& a) {
       batch_norm(a.in(), {}, {}, a.out(),
                  {.running_mean = Arrays::over(a.running_mean, {4}),
                   .running_var = Arrays::over(a.running_var, {4}),
                   .training = true,
                   .momentum = NAN});
     }},
    {"OneRunningBufferAlone", "running_var is None, expected an array",
     [](Arrays& a) {
       batch_norm(a.in(), {}, {}, a.out(),
                  {.running_mean = Arrays::over(a.running_mean, {4}), .training = true});
     }},
    {"RunningBufferOfOtherShape", "running_mean has shape (6,), expected (4,)",
     [](Arrays& a) {
       batch_norm(a.in(), {}, {}, a.out(),
                  {.running_mean = Arrays::over(a.running_mean, {6}),
                   .running_var = Arrays::over(a.running_var, {6}),
                   .training = true});
     }},
    {"OneValuePerChannel", "Expected more than 1 value per channel when training",
     [](Arrays& a) {
       batch_norm({a.x, {1, 4}}, {}, {}, Arrays::over(a.y, {1, 4}), {.training = true});
     }},
    {"ChannelAxisIsBatch", "channel_axis is 0, expected another axis than 0, the batch",
     [](Arrays& a) { instance_norm(a.in(), {}, {}, a.out(), {.channel_axis = 0}); }},
    {"GroupsThatDoNotDivide", "num_groups is 3, expected a positive divisor of 4",
     [](Arrays& a) { group_norm(a.in(), 3, {}, {}, a.out()); }},
    {"NoGroups", "num_groups is 0, expected a positive divisor of 4",
     [](Arrays& a) { group_norm(a.in(), 0, {}, {}, a.out()); }},
    {"StatisticsFromNowhere", "running_mean is None, expected an array: use_input_stats=False",
     [](Arrays& a) { instance_norm(a.in(), {}, {}, a.out(), {.use_input_stats = false}); }},
    {"StatisticsOfOtherShape", "stats.mean has shape (2, 4), expected (2, 4, 1)",
     [](Arrays& a) {
       layer_norm(a.in(), {}, {}, a.out(), {}, {Arrays::over(a.stats, {2, 4}), {}, {}});
     }},
    {"PooledThatIsNotFloat64", "stats.pooled has dtype float32, expected float64",
     [](Arrays& a) {
       layer_norm(a.in(), {}, {}, a.out(), {}, {{}, {}, Arrays::over(a.stats, {2, 4, 1, 2})});
     }},
    {"DeviceWithoutBackend", "context.device is CUDA, expected the CPU",
     [](Arrays& a) { layer_norm(a.in(), {}, {}, a.out(), {}, {}, {.device = Device::kCuda}); }},
    {"ResidualOfOtherShape", "residual has shape (2, 24), expected (2, 4, 6): x's",
     [](Arrays& a) {
       layer_norm(a.in(), {}, {}, a.out(),
                  {.residual = ConstTensor(a.dy, {2, 24}), .h = Arrays::over(a.dx, {2, 4, 6})});
     }},
    {"TooManyAxes", "x has 33 axes, expected at most 32",
     [](Arrays& a) {
       Tensor x(a.x, DType::kFloat32, 33);
       for (int i = 0; i < 33; ++i) x.set_dim(i, 1, 1);
       layer_norm(x, {}, {}, x);
     }},
    {"TooManyAxesForAView", "a tensor has more axes than kMaxDims",
     [](Arrays& a) { layer_norm(ConstTensor(a.x, DType::kFloat32, 34), {}, {}, a.out()); }},
    {"SumOverPartOfX", "h overlaps x in memory, expected x itself or memory of its own",
     [](Arrays& a) {
       layer_norm({a.x, {1, 4, 6}}, {}, {}, Arrays::over(a.y, {1, 4, 6}),
                  {.residual = ConstTensor(a.dy, {1, 4, 6}), .h = Tensor(a.x + 6, {1, 4, 6})});
     }},
    {"SumOverPartOfTheResidual",
     "h overlaps residual in memory, expected residual itself or memory of its own",
     [](Arrays& a) {
       layer_norm({a.x, {1, 4, 6}}, {}, {}, Arrays::over(a.y, {1, 4, 6}),
                  {.residual = ConstTensor(a.dy, {1, 4, 6}), .h = Tensor(a.dy + 6, {1, 4, 6})});
     }},
    {"SumOverOut", "h overlaps out in memory, expected memory of its own",
     [](Arrays& a) { layer_norm(a.in(), {}, {}, a.out(), {.residual = a.grad(), .h = a.out()}); }},
    {"GradientOfOtherShape", "dy has shape (48,), expected (2, 4, 6): x's",
     [](Arrays& a) { layer_norm_backward({a.dy, {48}}, a.in(), {a.weight, {6}}, a.gradients(6)); }},
    {"GradientOfOtherType", "dy has dtype float64, expected float32: x's",
     [](Arrays& a) {
       const double dy[48] = {};
       layer_norm_backward({dy, {2, 4, 6}}, a.in(), {}, a.gradients(6));
     }},
    {"ParameterGradientOfOtherShape", "dweight has shape (6,), expected (4,)",
     [](Arrays& a) {
       batch_norm_backward(a.grad(), a.in(), {}, a.gradients(6), {.training = true});
     }},
    {"SavedStatisticsOfOtherShape", "stats.pooled has shape (4, 2), expected (2, 2, 2)",
     [](Arrays& a) {
       const double pooled[8] = {};
       group_norm_backward(a.grad(), a.in(), 2, {}, a.gradients(4), {},
                           ConstTensor(pooled, {4, 2}));
     }},
};

class Errors : public ::testing::TestWithParam<ErrorCase> {};

TEST_P(Errors, SayWhatIsWrongAndWriteNothing) {
  Arrays a;
  const Arrays before;
  std::string message = "no error";
  try {
    GetParam().call(a);
  } catch (const std::invalid_argument& e) {
    message = e.what();
  }
  EXPECT_EQ(message.substr(0, std::strlen(GetParam().message)), GetParam().message);
  EXPECT_TRUE(a.untouched());
  EXPECT_EQ(std::memcmp(a.x, before.x, sizeof(a.x)), 0);
  EXPECT_EQ(std::memcmp(a.weight, before.weight, sizeof(a.weight)), 0);
}
INSTANTIATE_TEST_SUITE_P(All, Errors, ::testing::ValuesIn(kErrors),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(IsaSetting, NamesWhatIsAvailableWhereTheNameIsUnknown) {
  const std::string before = get_isa();
  try {
    set_isa("v9");
    FAIL() << "no error";
  } catch (const std::invalid_argument& e) {
    EXPECT_EQ(std::string(e.what()).find("name is 'v9', expected one of "), 0u);
    EXPECT_NE(std::string(e.what()).find(available_isas().front()), std::string::npos);
  }
  EXPECT_EQ(get_isa(), before);
}

}  // namespace
}  // namespace normcore
