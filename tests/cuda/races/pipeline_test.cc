// Calls of the library that run every kernel once or twice on the emulated device, for the
// sanitizer. Sizes: a part of a warp, warps, a block, clusters, and two sweeps. The values are
// tested elsewhere.
#include <gtest/gtest.h>

#include <string>

#include "normcore/normcore.h"
#include "reports.h"
#include "support.h"

namespace normcore {
namespace {

using testing::Array;
using testing::Random;

const Context kDevice{Device::kCuda};

// Whether the kernels of the type are compiled by the sanitizer.
bool is_watched(DType t) {
  const std::string name = name_of(t), types = NORMCORE_RACE_TYPES;  // " bf16 f32 "
  const std::string bits = name.substr(name.find_first_of("0123456789"));
  return types.find((name[0] == 'b' ? " bf" : " f") + bits + " ") != std::string::npos;
}

Array filled(DType dtype, std::vector<Index> shape, std::vector<Index> strides = {}) {
  static Random random(1);
  Array a(dtype, std::move(shape), std::move(strides));
  a.fill(random, 0.5, 1);
  return a;
}

// ---- rows

struct Rows {
  DType dtype;
  Index rows, n;
  Index gap = 0;  // between rows: where it is no multiple of 16 bytes they lie anywhere
};
void PrintTo(const Rows& r, std::ostream* out) {
  *out << name_of(r.dtype) << " " << r.rows << " x " << r.n << " + " << r.gap;
}
class RowsHave : public ::testing::TestWithParam<Rows> {};

TEST_P(RowsHave, NoRaces) {
  const Rows& r = GetParam();
  if (!is_watched(r.dtype)) GTEST_SKIP();
  const int before = races::reports();
  const auto matrix = [&] { return filled(r.dtype, {r.rows, r.n}, {r.n + r.gap, 1}); };
  const Array x = matrix(), dy = matrix(), y = matrix(), residual = matrix(), h = matrix();
  for (const DType t : {DType::kFloat32, r.dtype}) {
    const Array weight = filled(t, {r.n}), bias = filled(t, {r.n});
    const Array dweight(t, {r.n}), dbias(t, {r.n});
    const Array pooled(DType::kFloat64, {r.rows, 1, 2});
    const Gradients gradients{y.tensor(), dweight.tensor(), dbias.tensor()};
    StatsOut stats;
    stats.pooled = pooled.tensor();
    layer_norm(x.tensor(), weight.tensor(), bias.tensor(), y.tensor(), {}, stats, kDevice);
    layer_norm_backward(dy.tensor(), x.tensor(), weight.tensor(), gradients, {}, {}, stats.pooled,
                        kDevice);
    if (t != r.dtype) continue;
    layer_norm_backward(dy.tensor(), x.tensor(), weight.tensor(), gradients, {}, {}, {}, kDevice);
    RMSNormOptions options;
    options.residual = residual.tensor();
    options.h = h.tensor();
    rms_norm(x.tensor(), weight.tensor(), y.tensor(), options, {}, kDevice);
    rms_norm_backward(dy.tensor(), x.tensor(), weight.tensor(), {y.tensor(), dweight.tensor(), {}},
                      {}, h.tensor(), {}, kDevice);
    layer_norm(x.tensor(), weight.tensor(), bias.tensor(), x.tensor(), {}, {}, kDevice);
  }
  EXPECT_EQ(races::reports(), before);
}
INSTANTIATE_TEST_SUITE_P(
    Shapes, RowsHave,
    ::testing::Values(Rows{DType::kBFloat16, 11, 5}, Rows{DType::kBFloat16, 11, 64},
                      Rows{DType::kBFloat16, 11, 257}, Rows{DType::kBFloat16, 7, 60, 3},
                      Rows{DType::kBFloat16, 7, 771, 2}, Rows{DType::kBFloat16, 5, 1504},
                      Rows{DType::kBFloat16, 1, 9000},  // a cluster of two in backward
                      Rows{DType::kFloat32, 5, 7}, Rows{DType::kFloat32, 5, 771, 2},
                      Rows{DType::kFloat32, 1, 4097}, Rows{DType::kFloat16, 5, 200},
                      Rows{DType::kFloat64, 3, 300, 1}));

// ---- channels

struct Channels {
  DType dtype;
  std::vector<Index> shape;
  int axis = 1;
};
void PrintTo(const Channels& c, std::ostream* out) {
  *out << name_of(c.dtype) << " (";
  for (const Index d : c.shape) *out << d << " ";
  *out << ") axis " << c.axis;
}
class ChannelsHave : public ::testing::TestWithParam<Channels> {};

TEST_P(ChannelsHave, NoRaces) {
  const Channels& c = GetParam();
  if (!is_watched(c.dtype)) GTEST_SKIP();
  const int before = races::reports();
  const Index channels = c.shape[std::size_t(c.axis)];
  const Array x = filled(c.dtype, c.shape), dy = filled(c.dtype, c.shape);
  const Array y(c.dtype, c.shape);
  const auto vector = [](Index n) { return filled(DType::kFloat32, {n}); };
  const Array weight = vector(channels), bias = vector(channels), dweight = vector(channels);
  const Array dbias = vector(channels), mean = vector(channels), var = vector(channels);
  const Array mean_logits = vector(3), var_logits = vector(3);
  const Array dmean_logits = vector(3), dvar_logits = vector(3);
  const Gradients gradients{y.tensor(), dweight.tensor(), dbias.tensor()};

  BatchNormOptions batch;
  batch.training = true;
  batch.channel_axis = c.axis;
  batch.running_mean = mean.tensor();
  batch.running_var = var.tensor();
  batch_norm(x.tensor(), weight.tensor(), bias.tensor(), y.tensor(), batch, {}, kDevice);
  batch_norm_backward(dy.tensor(), x.tensor(), weight.tensor(), gradients, batch, {}, kDevice);
  InstanceNormOptions instance;
  instance.channel_axis = c.axis;
  instance_norm(x.tensor(), weight.tensor(), bias.tensor(), y.tensor(), instance, {}, kDevice);
  instance_norm_backward(dy.tensor(), x.tensor(), weight.tensor(), gradients, instance, {},
                         kDevice);
  GroupNormOptions group;
  group.channel_axis = c.axis;
  group_norm(x.tensor(), 3, weight.tensor(), bias.tensor(), y.tensor(), group, {}, kDevice);
  group_norm_backward(dy.tensor(), x.tensor(), 3, weight.tensor(), gradients, group, {}, kDevice);
  SwitchableNormOptions switchable;
  switchable.channel_axis = c.axis;
  switchable.training = true;
  switchable_norm(x.tensor(), mean_logits.tensor(), var_logits.tensor(), weight.tensor(),
                  bias.tensor(), y.tensor(), switchable, {}, kDevice);
  switchable_norm_backward(dy.tensor(), x.tensor(), mean_logits.tensor(), var_logits.tensor(),
                           weight.tensor(), gradients, dmean_logits.tensor(), dvar_logits.tensor(),
                           switchable, {}, kDevice);
  for (const int k : {3, 1000}) {  // by lists, and by a block alone
    TopKBatchNormOptions topk;
    topk.channel_axis = c.axis;
    topk.training = true;
    topk.k = k;
    topk_batch_norm(x.tensor(), weight.tensor(), bias.tensor(), y.tensor(), topk, {}, kDevice);
    topk_batch_norm_backward(dy.tensor(), x.tensor(), weight.tensor(), gradients, topk, {},
                             kDevice);
  }
  batch_norm(x.tensor(), weight.tensor(), bias.tensor(), x.tensor(), batch, {}, kDevice);
  EXPECT_EQ(races::reports(), before);
}
INSTANTIATE_TEST_SUITE_P(Shapes, ChannelsHave,
                         ::testing::Values(Channels{DType::kBFloat16, {3, 6, 5, 7}},
                                           Channels{DType::kBFloat16, {3, 6, 9}},
                                           Channels{DType::kBFloat16, {4, 5, 6}, 2},
                                           Channels{DType::kFloat32, {3, 6, 33}},
                                           Channels{DType::kFloat32, {2, 6, 1300}},
                                           Channels{DType::kFloat32,
                                                    {1, 3, 4500}},  // several pieces
                                           Channels{DType::kBFloat16, {2, 70, 24}, 2},
                                           Channels{DType::kFloat16, {2, 70, 3}, 2},
                                           Channels{DType::kFloat64, {2, 3, 40}}));

// ---- windows over channels and over space, in all types

struct Images {
  DType dtype;
  std::vector<Index> shape;
  int axis = 1;
};
void PrintTo(const Images& i, std::ostream* out) { *out << name_of(i.dtype) << " axis " << i.axis; }
class WindowsHave : public ::testing::TestWithParam<Images> {};

TEST_P(WindowsHave, NoRaces) {
  const Images& i = GetParam();
  const int before = races::reports();
  const Index channels = i.shape[std::size_t(i.axis)];
  const Array x = filled(i.dtype, i.shape), dy = filled(i.dtype, i.shape), y(i.dtype, i.shape);
  LocalResponseNormOptions response;
  response.channel_axis = i.axis;
  for (const Across across : {Across::kChannels, Across::kSpace}) {
    response.across = across;
    local_response_norm(x.tensor(), 3, y.tensor(), response, kDevice);
    local_response_norm_backward(dy.tensor(), x.tensor(), 3, y.tensor(), response, kDevice);
  }
  const auto vector = [&] { return filled(DType::kFloat32, {channels}); };
  const Array sigma = vector(), weight = vector(), bias = vector();
  const Array dsigma = vector(), dweight = vector(), dbias = vector();
  const LocalDivisiveNormOptions divisive{{3}, {3}, i.axis};
  local_divisive_norm(x.tensor(), sigma.tensor(), weight.tensor(), bias.tensor(), y.tensor(),
                      divisive, kDevice);
  local_divisive_norm_backward(dy.tensor(), x.tensor(), sigma.tensor(), weight.tensor(),
                               {y.tensor(), dsigma.tensor(), dweight.tensor(), dbias.tensor()},
                               divisive, kDevice);
  EXPECT_EQ(races::reports(), before);
}
INSTANTIATE_TEST_SUITE_P(Shapes, WindowsHave,
                         ::testing::Values(Images{DType::kBFloat16, {2, 9, 5, 7}},
                                           Images{DType::kFloat32, {2, 5, 7, 9}, 3},
                                           Images{DType::kFloat16, {1, 34, 3, 3}},
                                           Images{DType::kFloat64, {2, 3, 3, 34}, 3}));

// ---- matrices, in all types

struct Matrix {
  DType dtype;
  Index rows, cols, gap = 0;
};
void PrintTo(const Matrix& m, std::ostream* out) {
  *out << name_of(m.dtype) << " " << m.rows << " x " << m.cols << " + " << m.gap;
}
class MatricesHave : public ::testing::TestWithParam<Matrix> {};

TEST_P(MatricesHave, NoRaces) {
  const Matrix& m = GetParam();
  const int before = races::reports();
  const Array w = filled(m.dtype, {m.rows, m.cols}, {m.cols + m.gap, 1});
  const Array out(m.dtype, {m.rows, m.cols}), dw = filled(m.dtype, {m.rows, m.cols});
  const DType wide = m.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const Array u = filled(wide, {m.rows}), v = filled(wide, {m.cols}), sigma(DType::kFloat64, {});
  SpectralNormOptions options;
  for (const Index n : {0, 2}) {
    options.n_power_iterations = n;
    spectral_norm(w.tensor(), {u.tensor(), v.tensor()},
                  {out.tensor(), u.tensor(), v.tensor(), sigma.tensor()}, options, kDevice);
  }
  spectral_norm_backward(dw.tensor(), out.tensor(), ConstTensor(sigma.tensor()), u.tensor(),
                         v.tensor(), dw.tensor(), options, kDevice);
  PowerMethodOptions until;
  until.max_iterations = 3;
  power_method(w.tensor(), {}, u.tensor(), v.tensor(), until, kDevice);
  EXPECT_EQ(races::reports(), before);
}
INSTANTIATE_TEST_SUITE_P(Shapes, MatricesHave,
                         ::testing::Values(Matrix{DType::kBFloat16, 37, 64},
                                           Matrix{DType::kFloat32, 20, 33, 2},
                                           Matrix{DType::kFloat16, 5, 1200},
                                           Matrix{DType::kFloat64, 65, 18}));
// ---- mixtures of channels

// Few channels, of which a thread has a pixel; more, on tensor cores; and two blocks that share a
// pixel. The pixels are several tiles and runs.
TEST(MixturesHave, NoRaces) {
  const int before = races::reports();
  for (const Channels& c :
       {Channels{DType::kFloat32, {1, 5, 300}}, Channels{DType::kFloat32, {2, 20, 150}},
        Channels{DType::kFloat32, {1, 70, 300}}, Channels{DType::kFloat32, {1, 300, 70}, 2}}) {
    const Index n = c.shape[std::size_t(c.axis)];
    const Array x = filled(c.dtype, c.shape), dy = filled(c.dtype, c.shape), y(c.dtype, c.shape);
    const Array beta = filled(c.dtype, {n}), gamma = filled(c.dtype, {n, n});
    const Array dbeta(c.dtype, {n}), dgamma(c.dtype, {n, n}), exponents(DType::kFloat64, {2});
    GDNOptions options;
    options.channel_axis = c.axis;
    GDNGradients gradients{y.tensor(), dbeta.tensor(), dgamma.tensor()};
    gradients.dalpha = static_cast<double*>(exponents.tensor().data());
    gradients.depsilon = gradients.dalpha + 1;
    gdn(x.tensor(), beta.tensor(), gamma.tensor(), y.tensor(), options, kDevice);
    gdn_backward(dy.tensor(), x.tensor(), beta.tensor(), gamma.tensor(), gradients, options,
                 kDevice);
    gradients.dx = x.tensor();
    gdn_backward(dy.tensor(), x.tensor(), beta.tensor(), gamma.tensor(), gradients, options,
                 kDevice);
    gdn(dy.tensor(), beta.tensor(), gamma.tensor(), dy.tensor(), options, kDevice);
  }
  EXPECT_EQ(races::reports(), before);
}

}  // namespace
}  // namespace normcore
