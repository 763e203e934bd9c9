// Operands that meet in memory, in every operation: whatever is written has memory of its own for
// each element and shares none with anything else, but for what may be written over what.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "support.h"

namespace normcore {
namespace {

using Shape = std::vector<Index>;

struct Operand {
  const char* name;  // in messages
  Shape shape;
  bool written;
  DType dtype = DType::kFloat32;
};
Operand read(const char* name, Shape shape) { return {name, std::move(shape), false}; }
Operand write(const char* name, Shape shape, DType t = DType::kFloat32) {
  return {name, std::move(shape), true, t};
}
Operand saved(Shape shape) { return {"stats.pooled", std::move(shape), false, DType::kFloat64}; }

using Tensors = std::vector<Tensor>;
struct Operation {
  const char* name;
  std::vector<Operand> operands;
  // Indices of what may be exactly what.
  std::vector<std::pair<int, int>> may_be;
  std::function<void(const Tensors&)> run;
};
void PrintTo(const Operation& o, std::ostream* out) { *out << o.name; }

const Shape kX = {2, 4, 3}, kC = {4}, kLast = {3}, kRows = {2, 4, 1}, kThree = {3}, kPairs = {4, 2};
const Shape kMatrix = {4, 4}, kPlane = {4, 6};
constexpr DType k64 = DType::kFloat64;

std::vector<Operation> operations() {
  std::vector<Operation> all;
  auto add = [&](const char* name, std::vector<Operand> operands,
                 std::vector<std::pair<int, int>> may_be,
                 auto run) { all.push_back({name, std::move(operands), std::move(may_be), run}); };
  add("layer_norm",
      {read("x", kX), read("weight", kLast), read("bias", kLast), read("residual", kX),
       write("out", kX), write("h", kX), write("stats.mean", kRows), write("stats.rstd", kRows),
       write("stats.pooled", {2, 4, 1, 2}, k64)},
      {{4, 0}, {5, 0}, {5, 3}}, [](const Tensors& t) {
        LayerNormOptions o;
        o.residual = t[3];
        o.h = t[5];
        layer_norm(t[0], t[1], t[2], t[4], o, {t[6], t[7], t[8]});
      });
  add("layer_norm_backward",
      {read("dy", kX), read("x", kX), read("weight", kLast), read("dh", kX), saved({2, 4, 1, 2}),
       write("out", kX), write("dweight", kLast), write("dbias", kLast)},
      {{5, 0}, {5, 1}, {5, 3}}, [](const Tensors& t) {
        layer_norm_backward(t[0], t[1], t[2], {t[5], t[6], t[7]}, {}, t[3], {t[4], {}});
      });
  add("rms_norm", {read("x", kX), read("weight", kLast), write("out", kX)}, {{2, 0}},
      [](const Tensors& t) { rms_norm(t[0], t[1], t[2]); });
  add("rms_norm_backward",
      {read("dy", kX), read("x", kX), read("weight", kLast), write("out", kX),
       write("dweight", kLast)},
      {{3, 0}, {3, 1}},
      [](const Tensors& t) { rms_norm_backward(t[0], t[1], t[2], {t[3], t[4], {}}); });
  add("normalize", {read("x", kX), write("out", kX)}, {{1, 0}},
      [](const Tensors& t) { normalize(t[0], t[1]); });
  add("normalize_backward", {read("dy", kX), read("x", kX), write("out", kX)}, {{2, 0}, {2, 1}},
      [](const Tensors& t) { normalize_backward(t[0], t[1], t[2]); });
  add("batch_norm",
      {read("x", kX), read("weight", kC), read("bias", kC), read("mask", {2, 3}), write("out", kX),
       write("running_mean", kC), write("running_var", kC), write("stats.mean", kC),
       write("stats.rstd", kC), write("stats.pooled", kPairs, k64)},
      {{4, 0}}, [](const Tensors& t) {
        BatchNormOptions o;
        o.running_mean = t[5];
        o.running_var = t[6];
        o.training = true;
        o.mask = t[3];
        batch_norm(t[0], t[1], t[2], t[4], o, {t[7], t[8], t[9], {}});
      });
  add("batch_norm_in_evaluation",
      {read("x", kX), read("weight", kC), read("bias", kC), read("running_mean", kC),
       read("running_var", kC), write("out", kX)},
      {{5, 0}}, [](const Tensors& t) {
        BatchNormOptions o;
        o.running_mean = t[3];
        o.running_var = t[4];
        batch_norm(t[0], t[1], t[2], t[5], o);
      });
  add("batch_norm_backward",
      {read("dy", kX), read("x", kX), read("weight", kC), read("mask", {2, 3}), saved(kPairs),
       write("out", kX), write("dweight", kC), write("dbias", kC)},
      {{5, 0}, {5, 1}}, [](const Tensors& t) {
        BatchNormOptions o;
        o.training = true;
        o.mask = t[3];
        batch_norm_backward(t[0], t[1], t[2], {t[5], t[6], t[7]}, o, {t[4], {}});
      });
  add("instance_norm",
      {read("x", kX), read("weight", kC), read("bias", kC), write("out", kX),
       write("running_mean", kC), write("running_var", kC)},
      {{3, 0}}, [](const Tensors& t) {
        InstanceNormOptions o;
        o.running_mean = t[4];
        o.running_var = t[5];
        instance_norm(t[0], t[1], t[2], t[3], o);
      });
  add("group_norm", {read("x", kX), read("weight", kC), read("bias", kC), write("out", kX)},
      {{3, 0}}, [](const Tensors& t) { group_norm(t[0], 2, t[1], t[2], t[3]); });
  add("group_norm_backward",
      {read("dy", kX), read("x", kX), read("weight", kC), write("out", kX), write("dweight", kC),
       write("dbias", kC)},
      {{3, 0}, {3, 1}},
      [](const Tensors& t) { group_norm_backward(t[0], t[1], 2, t[2], {t[3], t[4], t[5]}); });
  add("batch_renorm",
      {read("x", kX), read("weight", kC), read("bias", kC), write("out", kX),
       write("running_mean", kC), write("running_std", kC), write("stats.given", kPairs, k64)},
      {{3, 0}}, [](const Tensors& t) {
        batch_renorm(t[0], t[1], t[2], t[3], {t[4], t[5], true}, {{}, {}, {}, t[6]});
      });
  add("batch_instance_norm",
      {read("x", kX), read("rho", kC), read("weight", kC), read("bias", kC), write("out", kX),
       write("running_mean", kC), write("running_var", kC)},
      {{4, 0}}, [](const Tensors& t) {
        batch_instance_norm(t[0], t[1], t[2], t[3], t[4], {t[5], t[6], true});
      });
  add("batch_instance_norm_backward",
      {read("dy", kX), read("x", kX), read("rho", kC), read("weight", kC), write("out", kX),
       write("dweight", kC), write("dbias", kC), write("drho", kC)},
      {{4, 0}, {4, 1}}, [](const Tensors& t) {
        BatchInstanceNormOptions o;
        o.training = true;
        batch_instance_norm_backward(t[0], t[1], t[2], t[3], {t[4], t[5], t[6]}, t[7], o);
      });
  add("switchable_norm",
      {read("x", kX), read("mean_logits", kThree), read("var_logits", kThree), read("weight", kC),
       read("bias", kC), write("out", kX), write("running_mean", kC), write("running_var", kC)},
      {{5, 0}}, [](const Tensors& t) {
        switchable_norm(t[0], t[1], t[2], t[3], t[4], t[5], {t[6], t[7], true});
      });
  add("switchable_norm_backward",
      {read("dy", kX), read("x", kX), read("mean_logits", kThree), read("var_logits", kThree),
       read("weight", kC), write("out", kX), write("dweight", kC), write("dbias", kC),
       write("dmean_logits", kThree), write("dvar_logits", kThree)},
      {{5, 0}, {5, 1}}, [](const Tensors& t) {
        SwitchableNormOptions o;
        o.training = true;
        switchable_norm_backward(t[0], t[1], t[2], t[3], t[4], {t[5], t[6], t[7]}, t[8], t[9], o);
      });
  add("mean_only_batch_norm",
      {read("x", kX), read("bias", kC), write("out", kX), write("running_mean", kC)}, {{2, 0}},
      [](const Tensors& t) { mean_only_batch_norm(t[0], t[1], t[2], {t[3], true}); });
  add("lp_batch_norm",
      {read("x", kX), read("weight", kC), read("bias", kC), write("out", kX),
       write("running_mean", kC), write("running_scale", kC)},
      {{3, 0}},
      [](const Tensors& t) { lp_batch_norm(t[0], t[1], t[2], t[3], {1, t[4], t[5], true}); });
  add("topk_batch_norm",
      {read("x", kX), read("weight", kC), read("bias", kC), write("out", kX),
       write("running_mean", kC), write("running_scale", kC)},
      {{3, 0}},
      [](const Tensors& t) { topk_batch_norm(t[0], t[1], t[2], t[3], {2, t[4], t[5], true}); });
  add("weight_norm", {read("v", kPlane), read("g", kC), write("out", kPlane)}, {{2, 0}},
      [](const Tensors& t) { weight_norm(t[0], t[1], t[2]); });
  add("weight_norm_backward",
      {read("dw", kPlane), read("v", kPlane), read("g", kC), write("out", kPlane), write("dg", kC)},
      {{3, 0}, {3, 1}},
      [](const Tensors& t) { weight_norm_backward(t[0], t[1], t[2], t[3], t[4]); });
  add("norm", {read("x", kX), write("out", kRows)}, {},
      [](const Tensors& t) { norm(t[0], t[1], {.axes = Axes{2}}); });
  add("moments",
      {read("x", kX), read("mask", kX), write("count", kRows), write("mean", kRows),
       write("m2", kRows)},
      {}, [](const Tensors& t) {
        MomentsOptions o;
        o.axes = Axes{2};
        o.mask = t[1];
        moments(t[0], {t[2], t[3], t[4]}, o);
      });
  add("spectral_norm",
      {read("weight", kPlane), read("u", kC), write("out", kPlane), write("out.u", kC),
       write("out.v", {6})},
      {{2, 0}, {3, 1}},
      [](const Tensors& t) { spectral_norm(t[0], {t[1], {}}, {t[2], t[3], t[4]}); });
  add("spectral_norm_backward",
      {read("dw", kPlane), read("result.weight", kPlane), read("result.u", kC),
       read("result.v", {6}), write("out", kPlane)},
      {{4, 0}, {4, 1}},
      [](const Tensors& t) { spectral_norm_backward(t[0], t[1], 2, t[2], t[3], t[4]); });
  add("power_method", {read("a", kPlane), read("u", kC), write("out.u", kC), write("out.v", {6})},
      {{2, 1}}, [](const Tensors& t) { power_method(t[0], t[1], t[2], t[3]); });
  add("divisive_norm",
      {read("x", kX), read("weights", kMatrix), read("sigma", kC), read("gain", kC),
       write("out", kX)},
      {{4, 0}}, [](const Tensors& t) { divisive_norm(t[0], t[1], t[2], t[3], t[4]); });
  add("divisive_norm_backward",
      {read("dy", kX), read("x", kX), read("weights", kMatrix), read("sigma", kC), read("gain", kC),
       write("out", kX), write("dweights", kMatrix), write("dsigma", kC), write("dgain", kC)},
      {{5, 0}, {5, 1}}, [](const Tensors& t) {
        divisive_norm_backward(t[0], t[1], t[2], t[3], t[4], {t[5], t[6], t[7], t[8]});
      });
  add("gdn", {read("x", kX), read("beta", kC), read("gamma", kMatrix), write("out", kX)}, {{3, 0}},
      [](const Tensors& t) { gdn(t[0], t[1], t[2], t[3]); });
  add("gdn_backward",
      {read("dy", kX), read("x", kX), read("beta", kC), read("gamma", kMatrix), write("out", kX),
       write("dbeta", kC), write("dgamma", kMatrix), write("dalpha", {}, k64),
       write("depsilon", {}, k64)},
      {{4, 0}, {4, 1}}, [](const Tensors& t) {
        gdn_backward(t[0], t[1], t[2], t[3],
                     {t[4], t[5], t[6], static_cast<double*>(t[7].data()),
                      static_cast<double*>(t[8].data())});
      });
  add("local_response_norm", {read("x", kX), write("out", kX)}, {{1, 0}},
      [](const Tensors& t) { local_response_norm(t[0], 3, t[1]); });
  add("local_response_norm_backward", {read("dy", kX), read("x", kX), write("out", kX)},
      {{2, 0}, {2, 1}},
      [](const Tensors& t) { local_response_norm_backward(t[0], t[1], 3, t[2]); });
  add("local_divisive_norm",
      {read("x", kX), read("sigma", kC), read("weight", kC), read("bias", kC), write("out", kX)},
      {{4, 0}},
      [](const Tensors& t) { local_divisive_norm(t[0], t[1], t[2], t[3], t[4], {{3}, {3}}); });
  add("local_divisive_norm_backward",
      {read("dy", kX), read("x", kX), read("sigma", kC), read("weight", kC), write("out", kX),
       write("dsigma", kC), write("dweight", kC), write("dbias", kC)},
      {{4, 0}, {4, 1}}, [](const Tensors& t) {
        local_divisive_norm_backward(t[0], t[1], t[2], t[3], {t[4], t[5], t[6], t[7]}, {{3}, {3}});
      });
  return all;
}

class Overlaps : public ::testing::TestWithParam<Operation> {
 protected:
  // Memory of its own for each operand, all of it 0.5.
  Overlaps() {
    for (const Operand& o : GetParam().operands) {
      arrays_.emplace_back(o.dtype, o.shape);
      arrays_.back().assign(std::vector<double>(std::size_t(arrays_.back().size()), 0.5));
      tensors_.push_back(arrays_.back().tensor());
    }
  }
  std::string told(const Tensors& tensors) {
    try {
      GetParam().run(tensors);
      return "accepted";
    } catch (const value_error& e) {
      return e.what();
    }
  }
  // The operand with other memory, or other strides.
  Tensor like(std::size_t i, void* data) const {
    return testing::make_tensor(data, arrays_[i].dtype, arrays_[i].shape);
  }
  bool unchanged() const {
    for (const testing::Array& a : arrays_) {
      for (Index i = 0; i < a.size(); ++i) {
        if (a.read(i) != 0.5) return false;
      }
    }
    return true;
  }

  std::vector<testing::Array> arrays_;
  Tensors tensors_;
};

TEST_P(Overlaps, OfTwoOperandsAreRefusedWhereOneIsWritten) {
  const auto& operands = GetParam().operands;
  const std::size_t n = operands.size();
  for (std::size_t i = 0; i < n; ++i) {
    for (std::size_t j = 0; j < n; ++j) {
      if (i == j || !operands[i].written) continue;
      // In memory that holds the larger of both, the smaller one lies at the start, or in the end.
      const std::size_t larger = arrays_[i].bytes.size() >= arrays_[j].bytes.size() ? i : j;
      const std::size_t smaller = larger == i ? j : i;
      unsigned char* start = arrays_[larger].bytes.data();
      const std::size_t rest = arrays_[larger].bytes.size() - arrays_[smaller].bytes.size();
      for (const std::size_t at : {std::size_t(0), rest / 8 * 8}) {
        Tensors meeting = tensors_;
        meeting[larger] = like(larger, start);
        meeting[smaller] = like(smaller, start + at);
        bool may_be = false;
        for (const auto& [a, b] : GetParam().may_be) {
          may_be |= a == int(i) && b == int(j);
        }
        if (may_be) continue;
        const std::string message = told(meeting);
        const std::string one = operands[i].name, other = operands[j].name;
        EXPECT_TRUE(message.starts_with(one + " overlaps " + other + " in memory, expected") ||
                    message.starts_with(other + " overlaps " + one + " in memory, expected"))
            << one << " and " << other << ": " << message;
        ASSERT_TRUE(unchanged()) << one << " and " << other;
      }
    }
  }
}

TEST_P(Overlaps, OfElementsOfWhatIsWrittenAreRefused) {
  const auto& operands = GetParam().operands;
  for (std::size_t i = 0; i < operands.size(); ++i) {
    if (!operands[i].written || arrays_[i].size() < 2) continue;
    for (const Index step : {0, 1}) {
      Tensors t = tensors_;
      int longer = 0;
      for (int a = 0; a < t[i].ndim(); ++a) {
        t[i].set_dim(a, t[i].shape(a), step);
        longer += t[i].shape(a) > 1;
      }
      if (step == 1 && longer < 2) continue;  // one axis is an array like any
      const std::string message = told(t), name = operands[i].name;
      EXPECT_TRUE(message.starts_with(name + (step == 0 ? " is broadcast along axis "
                                                        : " has elements that overlap in memory")))
          << name << ": " << message;
      ASSERT_TRUE(unchanged()) << name;
    }
  }
}

TEST_P(Overlaps, ThatAreWhatIsAllowedAndNoneAreAccepted) {
  EXPECT_EQ(told(tensors_), "accepted");
  for (const auto& [a, b] : GetParam().may_be) {
    Tensors t = tensors_;
    t[std::size_t(a)] = t[std::size_t(b)];
    EXPECT_EQ(told(t), "accepted") << GetParam().operands[std::size_t(a)].name << " over "
                                   << GetParam().operands[std::size_t(b)].name;
  }
}

INSTANTIATE_TEST_SUITE_P(Operations, Overlaps, ::testing::ValuesIn(operations()),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace normcore
