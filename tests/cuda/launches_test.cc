// How many kernels a call launches, and how often it asks the pool for memory: each launch costs a
// few microseconds of the host and of the device beyond its work. The table has the most that each
// call may take; where fewer serve, lower it with the change that does so.
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <ostream>
#include <vector>

#include "normcore/normcore.h"
#include "support.h"

namespace normcore {
namespace {

using testing::Array;
using testing::Random;

const Context kDevice{Device::kCuda};

// Of a process that is alone.
class Alone final : public Exchange {
 public:
  void sum(double*, Index) override {}
  void sum_on_device(double*, Index, int, void*) override {}
};

const std::vector<Index> kRows{64, 256};
const std::vector<Index> kHeld{4, 6, 4, 4};         // registers hold a channel and a group
const std::vector<Index> kSweeps{4, 6, 160, 160};   // two sweeps
const std::vector<Index> kLast{4, 6, 40, 6};        // channels last, in the second-level cache
const std::vector<Index> kLargeLast{4, 6, 480, 6};  // and not

// The arrays of the calls below. x is bfloat16.
struct Arrays {
  static constexpr DType kX = DType::kBFloat16, kWide = DType::kFloat32, kPooled = DType::kFloat64;
  Array x, dy, y, weight, bias, dweight, dbias, mean, rstd, pooled, running_mean, running_var, mask;

  // Of a matrix the statistics are by row, else by channel.
  Arrays(const std::vector<Index>& shape, DType parameters)
      : x(kX, shape),
        dy(kX, shape),
        y(kX, shape),
        weight(parameters, {shape[1]}),
        bias(parameters, {shape[1]}),
        dweight(parameters, {shape[1]}),
        dbias(parameters, {shape[1]}),
        mean(kWide, {shape[0], 1}),
        rstd(kWide, {shape[0], 1}),
        pooled(kPooled, shape.size() == 2 ? std::vector<Index>{shape[0], 1, 2}
                                          : std::vector<Index>{shape[1], 2}),
        running_mean(kWide, {shape[1]}),
        running_var(kWide, {shape[1]}),
        mask(kWide, shape.size() == 4 ? std::vector<Index>{shape[0], shape[2], shape[3]}
                                      : std::vector<Index>{shape[0]}) {
    Random random(1);
    for (Array* a : {&x, &dy, &weight, &bias, &running_mean, &running_var, &mask}) {
      a->fill(random, 1, 0.2);
    }
  }
  StatsOut stats() const {
    StatsOut out;
    out.pooled = pooled.tensor();
    if (x.shape.size() > 2) return out;
    out.mean = mean.tensor();
    out.rstd = rstd.tensor();
    return out;
  }
  Gradients gradients(bool has_bias = true) const {
    return {y.tensor(), dweight.tensor(), has_bias ? dbias.tensor() : Tensor()};
  }
  BatchNormOptions options(bool training) const {
    BatchNormOptions o;
    o.training = training;
    o.running_mean = running_mean.tensor();
    o.running_var = running_var.tensor();
    if (x.shape == kLast || x.shape == kLargeLast) o.channel_axis = 3;
    return o;
  }
};

struct Call {
  const char* name;
  std::vector<Index> shape;
  void (*run)(const Arrays&);
  int narrow, wide;  // launches with parameters of x's type, and in float32
  int allocations = 1;
};
void PrintTo(const Call& c, std::ostream* out) { *out << c.name; }

void layer_norm_call(const Arrays& a) {
  layer_norm(a.x.tensor(), a.weight.tensor(), a.bias.tensor(), a.y.tensor(), {}, {}, kDevice);
}
void layer_norm_stats(const Arrays& a) {
  layer_norm(a.x.tensor(), a.weight.tensor(), a.bias.tensor(), a.y.tensor(), {}, a.stats(),
             kDevice);
}
void layer_norm_gradients(const Arrays& a) {
  layer_norm_backward(a.dy.tensor(), a.x.tensor(), a.weight.tensor(), a.gradients(), {}, {}, {},
                      kDevice);
}
void layer_norm_gradients_stats(const Arrays& a) {
  layer_norm_backward(a.dy.tensor(), a.x.tensor(), a.weight.tensor(), a.gradients(), {}, {},
                      a.pooled.tensor(), kDevice);
}
void rms_norm_call(const Arrays& a) {
  rms_norm(a.x.tensor(), a.weight.tensor(), a.y.tensor(), {}, {}, kDevice);
}
void rms_norm_gradients(const Arrays& a) {
  rms_norm_backward(a.dy.tensor(), a.x.tensor(), a.weight.tensor(), a.gradients(false), {}, {}, {},
                    kDevice);
}
void batch_norm_training(const Arrays& a) {
  batch_norm(a.x.tensor(), a.weight.tensor(), a.bias.tensor(), a.y.tensor(), a.options(true),
             a.stats(), kDevice);
}
void batch_norm_gradients(const Arrays& a) {
  batch_norm_backward(a.dy.tensor(), a.x.tensor(), a.weight.tensor(), a.gradients(),
                      a.options(true), a.pooled.tensor(), kDevice);
}
void masked_training(const Arrays& a) {
  BatchNormOptions o = a.options(true);
  o.mask = a.mask.tensor();
  batch_norm(a.x.tensor(), a.weight.tensor(), a.bias.tensor(), a.y.tensor(), o, a.stats(), kDevice);
}
void masked_gradients(const Arrays& a) {
  BatchNormOptions o = a.options(true);
  o.mask = a.mask.tensor();
  batch_norm_backward(a.dy.tensor(), a.x.tensor(), a.weight.tensor(), a.gradients(), o,
                      a.pooled.tensor(), kDevice);
}
void training_together(const Arrays& a) {
  Alone alone;
  Context together = kDevice;
  together.exchange = &alone;
  batch_norm(a.x.tensor(), a.weight.tensor(), a.bias.tensor(), a.y.tensor(), a.options(true),
             a.stats(), together);
}
void gradients_together(const Arrays& a) {
  Alone alone;
  Context together = kDevice;
  together.exchange = &alone;
  batch_norm_backward(a.dy.tensor(), a.x.tensor(), a.weight.tensor(), a.gradients(),
                      a.options(true), a.pooled.tensor(), together);
}
void batch_norm_evaluation(const Arrays& a) {
  batch_norm(a.x.tensor(), a.weight.tensor(), a.bias.tensor(), a.y.tensor(), a.options(false), {},
             kDevice);
}
GroupNormOptions by_last_axis() {
  GroupNormOptions o;
  o.channel_axis = 3;
  return o;
}
void group_norm_last(const Arrays& a) {
  group_norm(a.x.tensor(), 3, a.weight.tensor(), a.bias.tensor(), a.y.tensor(), by_last_axis(), {},
             kDevice);
}
void group_norm_last_gradients(const Arrays& a) {
  group_norm_backward(a.dy.tensor(), a.x.tensor(), 3, a.weight.tensor(), a.gradients(),
                      by_last_axis(), {}, kDevice);
}
void group_norm_call(const Arrays& a) {
  group_norm(a.x.tensor(), 3, a.weight.tensor(), a.bias.tensor(), a.y.tensor(), {}, {}, kDevice);
}
void group_norm_gradients(const Arrays& a) {
  group_norm_backward(a.dy.tensor(), a.x.tensor(), 3, a.weight.tensor(), a.gradients(), {}, {},
                      kDevice);
}
// Of the Arrays' 6 channels a thread has a pixel; x is smaller than the cache holds tables for.
void gdn_call(const Arrays& a) {
  const Array gamma(a.weight.dtype, {6, 6});
  gdn(a.x.tensor(), a.weight.tensor(), gamma.tensor(), a.y.tensor(), {}, kDevice);
}
void gdn_gradients(const Arrays& a) {
  const Array gamma(a.weight.dtype, {6, 6}), dgamma(a.weight.dtype, {6, 6});
  const Array exponents(DType::kFloat64, {2});
  GDNGradients gradients{a.y.tensor(), a.dbias.tensor(), dgamma.tensor()};
  gradients.dalpha = static_cast<double*>(exponents.tensor().data());
  gradients.depsilon = gradients.dalpha + 1;
  gdn_backward(a.dy.tensor(), a.x.tensor(), a.weight.tensor(), gamma.tensor(), gradients, {},
               kDevice);
}

// Two sweeps for the k-th largest; of the largest one alone, or none where the scale is known.
void topk_training(const Arrays& a, int k) {
  TopKBatchNormOptions o;
  o.training = true;
  o.k = k;
  topk_batch_norm(a.x.tensor(), a.weight.tensor(), a.bias.tensor(), a.y.tensor(), o, {}, kDevice);
}
void topk_gradients(const Arrays& a, int k) {
  TopKBatchNormOptions o;
  o.training = true;
  o.k = k;
  topk_batch_norm_backward(a.dy.tensor(), a.x.tensor(), a.weight.tensor(), a.gradients(), o,
                           a.pooled.tensor(), kDevice);
}

const Call kCalls[] = {
    {"layer norm", kRows, layer_norm_call, 1, 1, 1},
    {"layer norm with statistics", kRows, layer_norm_stats, 1, 1, 1},
    {"layer norm backward", kRows, layer_norm_gradients, 2, 2, 1},
    {"layer norm backward from statistics", kRows, layer_norm_gradients_stats, 2, 2, 1},
    {"rms norm", kRows, rms_norm_call, 1, 1, 1},
    {"rms norm backward", kRows, rms_norm_gradients, 2, 2, 1},
    {"batch norm training, held", kHeld, batch_norm_training, 2, 2, 1},
    {"batch norm backward, held", kHeld, batch_norm_gradients, 2, 2, 1},
    {"batch norm evaluation, held", kHeld, batch_norm_evaluation, 1, 1, 1},
    {"group norm, held", kHeld, group_norm_call, 1, 1, 1},
    {"group norm backward, held", kHeld, group_norm_gradients, 2, 2, 1},
    {"batch norm training, two sweeps", kSweeps, batch_norm_training, 4, 4, 1},
    {"batch norm backward, two sweeps", kSweeps, batch_norm_gradients, 4, 4, 1},
    {"batch norm evaluation, two sweeps", kSweeps, batch_norm_evaluation, 1, 1, 1},
    {"batch norm training with a mask", kSweeps, masked_training, 8, 8, 1},
    {"batch norm backward with a mask", kSweeps, masked_gradients, 6, 6, 1},
    {"batch norm training over processes", kSweeps, training_together, 9, 9, 1},
    {"batch norm backward over processes", kSweeps, gradients_together, 7, 7, 1},
    {"batch norm training, channels last", kLast, batch_norm_training, 2, 2, 1},
    {"batch norm backward, channels last", kLast, batch_norm_gradients, 1, 1, 1},
    {"group norm, channels last", kLast, group_norm_last, 1, 1, 1},
    {"group norm backward, channels last", kLast, group_norm_last_gradients, 3, 3, 1},
    {"batch norm training, large, channels last", kLargeLast, batch_norm_training, 4, 4, 1},
    {"batch norm backward, large, channels last", kLargeLast, batch_norm_gradients, 4, 4, 1},
    {"group norm, two sweeps", kSweeps, group_norm_call, 2, 2, 1},
    {"group norm backward, two sweeps", kSweeps, group_norm_gradients, 7, 7, 1},
    {"top-1 batch norm training", kSweeps, [](const Arrays& a) { topk_training(a, 1); }, 9, 9, 1},
    {"top-3 batch norm training", kSweeps, [](const Arrays& a) { topk_training(a, 3); }, 10, 10, 1},
    {"top-1 batch norm backward", kSweeps, [](const Arrays& a) { topk_gradients(a, 1); }, 11, 11,
     1},
    {"top-3 batch norm backward", kSweeps, [](const Arrays& a) { topk_gradients(a, 3); }, 12, 12,
     1},
    {"gdn", kHeld, gdn_call, 2, 2, 1},
    {"gdn backward", kHeld, gdn_gradients, 6, 6, 1},
};

class Launches : public ::testing::TestWithParam<Call> {};

TEST_P(Launches, AreNoMoreThanTheTableSays) {
  const Call& call = GetParam();
  for (const bool narrow : {true, false}) {
    const Arrays arrays(call.shape, narrow ? DType::kBFloat16 : DType::kFloat32);
    const int launches = emulation::launches, allocations = emulation::allocations;
    call.run(arrays);
    SCOPED_TRACE(narrow ? "parameters of x's type" : "parameters in float32");
    EXPECT_LE(emulation::launches - launches, narrow ? call.narrow : call.wide);
    EXPECT_LE(emulation::allocations - allocations, call.allocations);
  }
}
INSTANTIATE_TEST_SUITE_P(Calls, Launches, ::testing::ValuesIn(kCalls));

}  // namespace
}  // namespace normcore
