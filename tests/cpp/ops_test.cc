// The operations through the public headers, forward and backward, in every element type and
// layout, against plain double arithmetic; and what is promised of every call: the same bits for
// any number of threads and of samples, and no allocation in the steady state.
#include <gtest/gtest.h>

#include <algorithm>

#include "allocations.h"
#include "support.h"

namespace normcore {
namespace {

using testing::allocations_of;
using testing::Array;
using testing::Bytes;
using testing::Random;

enum class Op { kLayerNorm, kRMSNorm, kBatchNormTrain, kBatchNormEval, kInstanceNorm, kGroupNorm };
constexpr Op kOps[] = {Op::kLayerNorm,     Op::kRMSNorm,      Op::kBatchNormTrain,
                       Op::kBatchNormEval, Op::kInstanceNorm, Op::kGroupNorm};
const char* name_of(Op op) {
  constexpr const char* kNames[] = {"layer_norm",      "rms_norm",      "batch_norm_train",
                                    "batch_norm_eval", "instance_norm", "group_norm"};
  return kNames[int(op)];
}

struct OpCase {
  Op op;
  DType dtype;
  bool channels_last;  // for layer and rms norm: over axis 1, with the elements strided
};
void PrintTo(const OpCase& c, std::ostream* out) {
  *out << name_of(c.op) << ' ' << name_of(c.dtype) << (c.channels_last ? " channels last" : "");
}

constexpr double kEps = 1e-3, kOffset = 0.5;
constexpr Index kGroups = 2;

// All arguments and results of one operation on x [N, C, H, W].
struct Call {
  OpCase c;
  Index N, C, H, W;
  bool element;
  Array x, dy, y, dx, weight, bias, dweight, dbias, mean, rstd, pooled, running_mean, running_var;

  Call(const OpCase& c_in, std::vector<Index> shape)
      : c(c_in),
        N(shape[0]),
        C(shape[1]),
        H(shape[2]),
        W(shape[3]),
        element(c.op == Op::kLayerNorm || c.op == Op::kRMSNorm),
        x(like_x()),
        dy(like_x()),
        y(like_x()),
        dx(like_x()),
        weight(parameter()),
        bias(parameter()),
        dweight(parameter()),
        dbias(parameter()),
        mean(statistics_dtype(c.dtype), pools()),
        rstd(statistics_dtype(c.dtype), pools()),
        pooled(DType::kFloat64, pairs()),
        running_mean(statistics_dtype(c.dtype), {C}),
        running_var(statistics_dtype(c.dtype), {C}) {
    Random random(5);
    x.fill(random, 2, 1.5);
    dy.fill(random, 0.1, 1);
    weight.fill(random, 1, 0.5);
    bias.fill(random, 0, 1);
    running_mean.fill(random, 2, 0.2);
    running_var.fill(random, 3, 0.5);
  }

  // Layer norm over the last axis, or over axis 1 of the same contiguous memory.
  int axis() const { return c.channels_last ? 1 : -1; }
  Array like_x() const {
    if (c.channels_last && !element) return Array(c.dtype, {N, C, H, W}, {H * W * C, 1, W * C, C});
    return Array(c.dtype, {N, C, H, W});
  }
  Array parameter() const {
    // Both the dtype of x and a wider one.
    const DType t = element ? c.dtype : statistics_dtype(c.dtype);
    return Array(t, {element ? (c.channels_last ? C : W) : C});
  }
  std::vector<Index> pools() const {
    switch (c.op) {
      case Op::kLayerNorm:
      case Op::kRMSNorm:
        return c.channels_last ? std::vector<Index>{N, 1, H, W} : std::vector<Index>{N, C, H, 1};
      case Op::kInstanceNorm:
        return {N, C};
      case Op::kGroupNorm:
        return {N, kGroups};
      default:
        return {C};
    }
  }
  std::vector<Index> pairs() const {
    std::vector<Index> shape = pools();
    shape.push_back(2);
    return shape;
  }

  LayerNormOptions layer() const { return {.axes = {axis()}, .eps = kEps}; }
  RMSNormOptions rms() const { return {.axes = {axis()}, .eps = kEps, .weight_offset = kOffset}; }
  BatchNormOptions batch() const {
    return {.running_mean = running_mean.tensor(),
            .running_var = running_var.tensor(),
            .training = c.op == Op::kBatchNormTrain,
            .momentum = 0.25,
            .eps = kEps};
  }

  void forward(const StatsOut& stats, const Context& context = {}) const {
    const Tensor xt = x.tensor(), w = weight.tensor(), b = bias.tensor(), out = y.tensor();
    switch (c.op) {
      case Op::kLayerNorm:
        return layer_norm(xt, w, b, out, layer(), stats, context);
      case Op::kRMSNorm:
        return rms_norm(xt, w, out, rms(), stats, context);
      case Op::kInstanceNorm:
        return instance_norm(xt, w, b, out, {.eps = kEps}, stats, context);
      case Op::kGroupNorm:
        return group_norm(xt, kGroups, w, b, out, {.eps = kEps}, stats, context);
      default:
        return batch_norm(xt, w, b, out, batch(), stats, context);
    }
  }
  StatsOut stats() const { return {mean.tensor(), rstd.tensor(), pooled.tensor()}; }

  void backward(bool from_pooled, const Context& context = {}) const {
    const Tensor xt = x.tensor(), w = weight.tensor(), g = dy.tensor();
    const ConstTensor saved = from_pooled ? ConstTensor(pooled.tensor()) : ConstTensor();
    Gradients out{dx.tensor(), dweight.tensor(), dbias.tensor()};
    switch (c.op) {
      case Op::kLayerNorm:
        return layer_norm_backward(g, xt, w, out, layer(), {}, saved, context);
      case Op::kRMSNorm:
        out.dbias = {};
        return rms_norm_backward(g, xt, w, out, rms(), {}, saved, context);
      case Op::kInstanceNorm:
        return instance_norm_backward(g, xt, w, out, {.eps = kEps}, saved, context);
      case Op::kGroupNorm:
        return group_norm_backward(g, xt, kGroups, w, out, {.eps = kEps}, saved, context);
      default:
        return batch_norm_backward(g, xt, w, out, batch(), saved, context);
    }
  }

  // Which pool and which parameter element i of x belongs to.
  Index pool_of(Index i) const {
    const Index w = i % W, h = i / W % H, k = i / (W * H) % C, n = i / (W * H * C);
    switch (c.op) {
      case Op::kLayerNorm:
      case Op::kRMSNorm:
        return c.channels_last ? (n * H + h) * W + w : (n * C + k) * H + h;
      case Op::kInstanceNorm:
        return n * C + k;
      case Op::kGroupNorm:
        return n * kGroups + k / (C / kGroups);
      default:
        return k;
    }
  }
  Index parameter_of(Index i) const {
    return element && !c.channels_last ? i % W : i / (W * H) % C;
  }
};

// The same in doubles, straight from the definitions.
struct Reference {
  std::vector<double> y, dx, dweight, dbias, dweight_size, dbias_size, mean, var, count;

  explicit Reference(const Call& f) {
    const std::size_t n = f.x.values.size(), pools = std::size_t(f.mean.size());
    const bool raw = f.c.op == Op::kRMSNorm, given = f.c.op == Op::kBatchNormEval;
    const std::vector<double>& x = f.x.values;
    auto pool = [&](std::size_t i) { return std::size_t(f.pool_of(Index(i))); };
    auto parameter = [&](std::size_t i) { return std::size_t(f.parameter_of(Index(i))); };
    auto weight = [&](std::size_t i) {
      return f.weight.values[parameter(i)] + (raw ? kOffset : 0);
    };

    mean.assign(pools, 0);
    var.assign(pools, 0);
    count.assign(pools, 0);
    for (std::size_t i = 0; i < n; ++i) ++count[pool(i)];
    for (std::size_t i = 0; i < n && !raw; ++i) mean[pool(i)] += x[i] / count[pool(i)];
    for (std::size_t i = 0; i < n; ++i) {
      const double d = x[i] - mean[pool(i)];
      var[pool(i)] += d * d / count[pool(i)];
    }
    if (given) {
      mean = f.running_mean.values;
      var = f.running_var.values;
    }

    auto rstd = [&](std::size_t i) { return 1 / std::sqrt(var[pool(i)] + kEps); };
    auto xhat = [&](std::size_t i) { return (x[i] - mean[pool(i)]) * rstd(i); };
    std::vector<double> g_mean(pools, 0), product_mean(pools, 0);
    for (auto* v : {&dweight, &dbias, &dweight_size, &dbias_size}) {
      v->assign(f.weight.values.size(), 0);
    }
    for (std::size_t i = 0; i < n; ++i) {
      const double dy = f.dy.values[i], g = weight(i) * dy;
      y.push_back(weight(i) * xhat(i) + (raw ? 0 : f.bias.values[parameter(i)]));
      g_mean[pool(i)] += g / count[pool(i)];
      product_mean[pool(i)] += g * xhat(i) / count[pool(i)];
      dweight[parameter(i)] += dy * xhat(i);
      dweight_size[parameter(i)] += std::abs(dy) * (std::abs(xhat(i)) + 1);
      dbias[parameter(i)] += dy;
      dbias_size[parameter(i)] += std::abs(dy);
    }
    for (std::size_t i = 0; i < n; ++i) {
      double d = weight(i) * f.dy.values[i];
      if (!given) d -= xhat(i) * product_mean[pool(i)];
      if (!given && !raw) d -= g_mean[pool(i)];
      dx.push_back(d * rstd(i));
    }
  }
};

class Ops : public ::testing::TestWithParam<OpCase> {
 protected:
  // Rounding once to storage, and some operations in the compute type on numbers of this size.
  static void expect_near(const Array& got, const std::vector<double>& want, double size,
                          const char* what) {
    const double u = testing::compute_rounding(got.dtype);
    ASSERT_EQ(want.size(), std::size_t(got.size()));
    for (std::size_t i = 0; i < want.size(); ++i) {
      const double tolerance =
          64 * u * (size + std::abs(want[i])) + testing::rounding(got.dtype) * std::abs(want[i]);
      ASSERT_NEAR(got.read(Index(i)), want[i], tolerance) << what << " at " << i;
    }
  }
  static void expect_sums_near(const Array& got, const std::vector<double>& want,
                               const std::vector<double>& sizes, const OpCase& c,
                               const char* what) {
    const double u = testing::compute_rounding(c.dtype);
    for (std::size_t i = 0; i < want.size(); ++i) {
      const double tolerance = 64 * u * sizes[i] + testing::rounding(got.dtype) * std::abs(want[i]);
      ASSERT_NEAR(got.read(Index(i)), want[i], tolerance) << what << " at " << i;
    }
  }
};

const std::vector<Index> kShapes[] = {{3, 4, 5, 7}, {2, 6, 1, 33}, {17, 2, 3, 2}, {1, 4, 40, 130}};

TEST_P(Ops, ForwardMatchesItsDefinition) {
  for (const auto& shape : kShapes) {
    const Call f(GetParam(), shape);
    const Reference want(f);
    f.forward(f.stats());
    expect_near(f.y, want.y, 4, "y");
    // Statistics come from compute-type sums, also where they are float64.
    const double u = testing::compute_rounding(f.c.dtype);
    for (std::size_t i = 0; i < want.mean.size(); ++i) {
      const Index at = Index(i);
      EXPECT_NEAR(f.mean.read(at), want.mean[i], 64 * u * 4);
      EXPECT_NEAR(f.rstd.read(at) * std::sqrt(want.var[i] + kEps), 1, 64 * u);
      EXPECT_NEAR(f.pooled.read(2 * at), want.mean[i], 64 * u * 4);
      EXPECT_NEAR(f.pooled.read(2 * at + 1), want.var[i], 256 * u * (1 + want.var[i]));
    }
  }
}

TEST_P(Ops, BackwardMatchesItsDefinitionWithAndWithoutSavedStatistics) {
  for (const auto& shape : kShapes) {
    for (const bool saved : {false, true}) {
      const Call f(GetParam(), shape);
      const Reference want(f);
      if (saved) f.forward(f.stats());
      f.backward(saved);
      expect_near(f.dx, want.dx, 4, "dx");
      expect_sums_near(f.dweight, want.dweight, want.dweight_size, f.c, "dweight");
      if (f.c.op != Op::kRMSNorm) {
        expect_sums_near(f.dbias, want.dbias, want.dbias_size, f.c, "dbias");
      }
    }
  }
}

TEST_P(Ops, ResultsAreTheSameBitsForAnyNumberOfThreads) {
  // Large enough for threads, and for two sweeps of a batch pool in float32.
  for (const auto& shape : {std::vector<Index>{8, 16, 32, 64}, std::vector<Index>{64, 2, 40, 60}}) {
    const Call one(GetParam(), shape), many(GetParam(), shape);
    one.forward(one.stats(), {.threads = 1});
    one.backward(true, {.threads = 1});
    for (const int threads : {2, 3, 8}) {
      many.forward(many.stats(), {.threads = threads});
      many.backward(true, {.threads = threads});
      for (Array Call::* array : {&Call::y, &Call::mean, &Call::rstd, &Call::pooled, &Call::dx,
                                  &Call::dweight, &Call::dbias}) {
        const Bytes &a = (one.*array).bytes, &b = (many.*array).bytes;
        ASSERT_EQ(std::memcmp(a.data(), b.data(), a.size()), 0) << threads << " threads";
      }
    }
  }
}

TEST_P(Ops, InferenceAllocatesNothingInTheSteadyState) {
  for (const Index width : {2, 33, 700}) {  // fewer and more bytes than are worth a thread
    const Call f(GetParam(), {16, 8, 16, width});
    for (const int threads : {1, 2}) {
      EXPECT_EQ(allocations_of([&] { f.forward({}, {.threads = threads}); }), 0)
          << "in 10 calls with " << threads << " threads, width " << width;
    }
  }
}

TEST_P(Ops, TrainingAllocatesNothingInTheSteadyState) {
  for (const Index width : {2, 33, 700}) {
    const Call f(GetParam(), {16, 8, 16, width});
    const StatsOut stats = f.stats();
    for (const int threads : {1, 2}) {
      EXPECT_EQ(allocations_of([&] {
                  f.forward(stats, {.threads = threads});
                  f.backward(true, {.threads = threads});
                  f.backward(false, {.threads = threads});
                }),
                0)
          << "in 10 times 3 calls with " << threads << " threads, width " << width;
    }
  }
}

TEST_P(Ops, InPlaceGivesTheSameBits) {
  Call apart(GetParam(), {3, 4, 9, 65});
  apart.forward({});
  apart.backward(false);
  const Bytes dx(apart.dx.bytes.size());
  std::memcpy(dx.data(), apart.dx.bytes.data(), dx.size());
  // y over x, dx over dy. x first: backward still reads it.
  const Tensor x = apart.x.tensor(), dy = apart.dy.tensor();
  switch (apart.c.op) {
    case Op::kLayerNorm:
      layer_norm_backward(dy, x, apart.weight.tensor(), {dy, {}, {}}, apart.layer());
      layer_norm(x, apart.weight.tensor(), apart.bias.tensor(), x, apart.layer());
      break;
    case Op::kRMSNorm:
      rms_norm_backward(dy, x, apart.weight.tensor(), {dy, {}, {}}, apart.rms());
      rms_norm(x, apart.weight.tensor(), x, apart.rms());
      break;
    case Op::kInstanceNorm:
      instance_norm_backward(dy, x, apart.weight.tensor(), {dy, {}, {}}, {.eps = kEps});
      instance_norm(x, apart.weight.tensor(), apart.bias.tensor(), x, {.eps = kEps});
      break;
    case Op::kGroupNorm:
      group_norm_backward(dy, x, kGroups, apart.weight.tensor(), {dy, {}, {}}, {.eps = kEps});
      group_norm(x, kGroups, apart.weight.tensor(), apart.bias.tensor(), x, {.eps = kEps});
      break;
    default: {
      batch_norm_backward(dy, x, apart.weight.tensor(), {dy, {}, {}}, apart.batch());
      batch_norm(x, apart.weight.tensor(), apart.bias.tensor(), x, apart.batch());
    }
  }
  // Running statistics have moved with the first call: evaluation reads them, and does not move
  // them.
  EXPECT_EQ(std::memcmp(dx.data(), apart.dy.bytes.data(), dx.size()), 0) << "dx";
  EXPECT_EQ(std::memcmp(apart.y.bytes.data(), apart.x.bytes.data(), dx.size()), 0) << "y";
}

std::vector<OpCase> op_cases() {
  std::vector<OpCase> cases;
  for (const Op op : kOps) {
    for (const DType t : testing::kDTypes) {
      for (const bool last : {false, true}) cases.push_back({op, t, last});
    }
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(All, Ops, ::testing::ValuesIn(op_cases()), [](const auto& info) {
  return std::string(name_of(info.param.op)) + "_" + name_of(info.param.dtype) +
         (info.param.channels_last ? "_last" : "");
});

// ---- a row's bits

// (forward and backward of) x[:n] are those of x, for the operations whose pools are samples.
class Samples : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    initial_ = get_isa();
    set_isa(GetParam());
  }
  void TearDown() override { set_isa(initial_); }
  std::string initial_;
};

TEST_P(Samples, ASampleHasTheSameBitsInABatchOfAnySize) {
  for (const DType dtype : testing::kDTypes) {
    for (const Op op : {Op::kLayerNorm, Op::kRMSNorm, Op::kInstanceNorm, Op::kGroupNorm}) {
      for (const bool last : {false, true}) {
        for (const Index width : {2, 11, 40, 300}) {
          const Call whole({op, dtype, last}, {9, 4, 1, width});
          whole.forward(whole.stats());
          whole.backward(false);
          for (const Index n : {1, 2, 3, 5, 8}) {
            const Call part({op, dtype, last}, {n, 4, 1, width});
            const std::size_t bytes = part.x.bytes.size();
            std::memcpy(part.x.bytes.data(), whole.x.bytes.data(), bytes);
            std::memcpy(part.dy.bytes.data(), whole.dy.bytes.data(), bytes);
            for (auto parameter : {&Call::weight, &Call::bias}) {
              std::memcpy((part.*parameter).bytes.data(), (whole.*parameter).bytes.data(),
                          (part.*parameter).bytes.size());
            }
            part.forward(part.stats());
            part.backward(false);
            for (auto array : {&Call::y, &Call::dx, &Call::pooled}) {
              ASSERT_EQ(std::memcmp((part.*array).bytes.data(), (whole.*array).bytes.data(),
                                    (part.*array).bytes.size()),
                        0)
                  << name_of(op) << ' ' << name_of(dtype) << (last ? " last " : " ") << n
                  << " samples of width " << width;
            }
          }
        }
      }
    }
  }
}
INSTANTIATE_TEST_SUITE_P(All, Samples, ::testing::ValuesIn(available_isas()),
                         [](const auto& info) { return testing::test_name(info.param); });

// ---- the rest of the contract

TEST(BatchNorm, TrainingMovesTheRunningStatisticsByTheUnbiasedVariance) {
  const Call f({Op::kBatchNormTrain, DType::kFloat32, false}, {3, 4, 5, 7});
  const Reference want(f);
  f.forward({});
  for (std::size_t k = 0; k < 4; ++k) {
    const double unbiased = want.var[k] * want.count[k] / (want.count[k] - 1);
    EXPECT_NEAR(f.running_mean.read(Index(k)),
                0.75 * f.running_mean.values[k] + 0.25 * want.mean[k], 1e-5);
    EXPECT_NEAR(f.running_var.read(Index(k)), 0.75 * f.running_var.values[k] + 0.25 * unbiased,
                1e-5);
  }
}

TEST(BatchNorm, EvaluationLeavesTheRunningStatisticsAlone) {
  const Call f({Op::kBatchNormEval, DType::kFloat32, false}, {3, 4, 5, 7});
  f.forward({});
  f.backward(false);
  for (std::size_t k = 0; k < 4; ++k) {
    EXPECT_EQ(f.running_mean.read(Index(k)), f.running_mean.values[k]);
    EXPECT_EQ(f.running_var.read(Index(k)), f.running_var.values[k]);
  }
}

TEST(LayerNorm, WithAResidualNormalizesAndKeepsTheSum) {
  for (const DType dtype : testing::kDTypes) {
    Random random(9);
    Array x(dtype, {6, 130}), residual(dtype, {6, 130}), h(dtype, {6, 130}), y(dtype, {6, 130}),
        want(dtype, {6, 130});
    x.fill(random, 1, 1);
    residual.fill(random, 0, 1);
    layer_norm(x.tensor(), {}, {}, y.tensor(), {.residual = residual.tensor(), .h = h.tensor()});
    for (Index i = 0; i < x.size(); ++i) {
      const std::size_t at = std::size_t(i);
      const double sum = double(float(x.values[at] + residual.values[at]));
      ASSERT_NEAR(h.read(i),
                  testing::round_to(
                      dtype, dtype == DType::kFloat64 ? x.values[at] + residual.values[at] : sum),
                  0);
    }
    layer_norm(h.tensor(), {}, {}, want.tensor());
    EXPECT_EQ(std::memcmp(y.bytes.data(), want.bytes.data(), y.bytes.size()), 0) << name_of(dtype);
  }
}

TEST(LayerNorm, MayKeepTheSumInPlaceOfATerm) {
  // Rows, rows of several pieces, and rows that must be gathered.
  struct Layout {
    Index length;
    std::vector<Index> strides;
  };
  for (const DType dtype : testing::kDTypes) {
    for (const Layout& layout : {Layout{130, {130, 1}}, {20000, {20000, 1}}, {130, {2, 12}}}) {
      const std::vector<Index> shape = {6, layout.length}, &strides = layout.strides;
      Array x(dtype, shape, strides), residual(dtype, shape, strides), h(dtype, shape),
          want(dtype, shape), y(dtype, shape);
      auto fill = [&] {
        Random random(11);
        x.fill(random, 1, 1);
        residual.fill(random, 0, 1);
      };
      fill();
      layer_norm(x.tensor(), {}, {}, want.tensor(),
                 {.residual = residual.tensor(), .h = h.tensor()});
      for (const Array* term : {&x, &residual}) {
        fill();
        layer_norm(x.tensor(), {}, {}, y.tensor(),
                   {.residual = residual.tensor(), .h = term->tensor()});
        EXPECT_EQ(y.read(), want.read()) << name_of(dtype);
        EXPECT_EQ(term->read(), h.read()) << name_of(dtype);
      }
    }
  }
}

TEST(LayerNorm, BackwardAddsTheOtherGradientOfTheSum) {
  Random random(10);
  Array x(DType::kFloat64, {5, 70}), dy(DType::kFloat64, {5, 70}), dh(DType::kFloat64, {5, 70}),
      dx(DType::kFloat64, {5, 70}), plain(DType::kFloat64, {5, 70});
  x.fill(random, 1, 1);
  dy.fill(random, 0, 1);
  dh.fill(random, 0, 1);
  layer_norm_backward(dy.tensor(), x.tensor(), {}, {plain.tensor(), {}, {}});
  layer_norm_backward(dy.tensor(), x.tensor(), {}, {dx.tensor(), {}, {}}, {}, dh.tensor());
  for (Index i = 0; i < x.size(); ++i) {
    ASSERT_NEAR(dx.read(i), plain.read(i) + dh.values[std::size_t(i)], 1e-15);
  }
}

TEST(Operations, EmptyArraysGiveNothingAndZeroGradients) {
  float weight[3] = {1, 1, 1}, dweight[3] = {7, 7, 7}, dbias[3] = {7, 7, 7};
  const Tensor empty(weight, {0, 3});
  layer_norm(empty, {weight, {3}}, {}, empty);
  layer_norm_backward(empty, empty, {weight, {3}}, {empty, {dweight, {3}}, {dbias, {3}}});
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(weight[i], 1);
    EXPECT_EQ(dweight[i], 0);
    EXPECT_EQ(dbias[i], 0);
  }
}

}  // namespace
}  // namespace normcore
