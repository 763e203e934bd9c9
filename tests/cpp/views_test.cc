// Views that cannot be: addresses, sizes and strides are checked at the entry of each operation and
// of the C interface, before anything is read or written through them.
#include <gtest/gtest.h>

#include <functional>
#include <limits>

#include "normcore/c_api.h"
#include "normcore/normcore.h"

namespace normcore {
namespace {

alignas(64) float memory[64];
alignas(64) float results[64];

ConstTensor x() { return {memory, {2, 4, 3}}; }
ConstTensor vector(Index n) { return {memory, {n}}; }

struct Wrong {
  const char* name;
  const char* message;  // what follows the argument's name
  std::function<Tensor(float*)> make;
};
const Wrong kWrong[] = {
    {"Absent", " is None, expected an array", [](float*) { return Tensor(); }},
    {"Null", ".data is null, expected memory",
     [](float*) { return Tensor(static_cast<float*>(nullptr), {2, 4, 3}); }},
    {"NotAligned", " is not aligned to its elements",
     [](float* p) {
       return Tensor(reinterpret_cast<float*>(reinterpret_cast<char*>(p) + 2), {2, 4, 3});
     }},
    {"NegativeSize", ".shape[1] is -4, expected a number >= 0",
     [](float* p) { return Tensor(p, {2, -4, 3}); }},
    {"ProductThatWraps", ".shape has more elements than memory can hold",
     [](float* p) { return Tensor(p, {Index{1} << 32, Index{1} << 32, 3}, {0, 0, 1}); }},
    {"FarStrides", ".strides reach further than memory does",
     [](float* p) { return Tensor(p, {2, 4, 3}, {Index{1} << 60, 3, 1}); }},
    {"LeastStride", ".strides reach further than memory does",
     [](float* p) { return Tensor(p, {2, 4, 3}, {12, std::numeric_limits<Index>::min(), 1}); }},
    {"BelowZero", ".strides reach further than memory does",
     [](float* p) { return Tensor(p, {2, 4, 3}, {-(Index{1} << 50), 3, 1}); }},
};

// An argument of an operation, and how it gets there.
struct Argument {
  const char* op;
  const char* name;
  bool optional;  // absent, it is not given
  std::function<void(const Tensor&)> call;
};
Tensor y() { return {results, {2, 4, 3}}; }
const Argument kArguments[] = {
    {"layer_norm", "x", false, [](const Tensor& t) { layer_norm(t, {}, {}, y()); }},
    {"layer_norm", "weight", true,
     [](const Tensor& t) { layer_norm(x(), t, {}, y(), {.axes = {0, 1, 2}}); }},
    {"layer_norm", "out", false, [](const Tensor& t) { layer_norm(x(), {}, {}, t); }},
    {"layer_norm", "residual", true,
     [](const Tensor& t) { layer_norm(x(), {}, {}, y(), {.residual = t, .h = y()}); }},
    {"rms_norm", "x", false, [](const Tensor& t) { rms_norm(t, {}, y()); }},
    {"batch_norm", "x", false, [](const Tensor& t) { batch_norm(t, {}, {}, y()); }},
    {"batch_norm", "out", false, [](const Tensor& t) { batch_norm(x(), {}, {}, t); }},
    {"batch_norm", "bias", true, [](const Tensor& t) { batch_norm(x(), {}, t, y()); }},
    {"instance_norm", "x", false, [](const Tensor& t) { instance_norm(t, {}, {}, y()); }},
    {"group_norm", "x", false, [](const Tensor& t) { group_norm(t, 2, {}, {}, y()); }},
    {"group_norm_backward", "dy", false,
     [](const Tensor& t) { group_norm_backward(t, x(), 2, {}, {y(), {}, {}}); }},
    {"group_norm_backward", "out", false,
     [](const Tensor& t) { group_norm_backward(x(), x(), 2, {}, {t, {}, {}}); }},
    {"lp_batch_norm", "x", false, [](const Tensor& t) { lp_batch_norm(t, {}, {}, y()); }},
    {"normalize", "x", false, [](const Tensor& t) { normalize(t, y()); }},
    {"norm", "x", false, [](const Tensor& t) { norm(t, Tensor(results, {1, 1, 1})); }},
    {"moments", "x", false,
     [](const Tensor& t) { moments(t, {Tensor(results, {1, 1, 1}), {}, {}}); }},
    {"moments", "mask", true,
     [](const Tensor& t) { moments(x(), {Tensor(results, {1, 1, 1}), {}, {}}, {{}, t}); }},
    {"weight_norm", "v", false, [](const Tensor& t) { weight_norm(t, vector(2), y()); }},
    {"weight_norm", "g", false, [](const Tensor& t) { weight_norm(x(), t, y()); }},
    {"spectral_norm", "weight", false,
     [](const Tensor& t) { spectral_norm(t, {vector(2), {}}, {y(), {}, {}}); }},
    {"power_method", "a", false, [](const Tensor& t) { power_method(t, {}, {}, {}); }},
    {"divisive_norm", "x", false,
     [](const Tensor& t) { divisive_norm(t, {memory, {4, 4}}, vector(4), {}, y()); }},
    {"gdn", "x", false, [](const Tensor& t) { gdn(t, vector(4), {memory, {4, 4}}, y()); }},
    {"local_response_norm", "x", false, [](const Tensor& t) { local_response_norm(t, 3, y()); }},
    {"local_response_norm", "out", false, [](const Tensor& t) { local_response_norm(x(), 3, t); }},
    {"local_divisive_norm", "x", false,
     [](const Tensor& t) { local_divisive_norm(t, vector(4), {}, {}, y(), {{3}, {3}}); }},
};

TEST(Views, EachOperationRefusesThem) {
  for (const Argument& a : kArguments) {
    for (const Wrong& w : kWrong) {
      if (a.optional && std::string(w.name) == "Absent") continue;
      std::fill_n(memory, 64, 1.0f);
      std::fill_n(results, 64, -7.0f);
      const bool written = std::string(a.name) == "out";
      const std::string expected = std::string(a.name) + w.message;
      try {
        a.call(w.make(written ? results : memory));
        ADD_FAILURE() << a.op << " accepts " << w.name << " for " << a.name;
      } catch (const std::invalid_argument& e) {
        EXPECT_EQ(std::string(e.what()).rfind(expected, 0), 0u) << a.op << ": " << e.what();
      }
      for (float value : results) ASSERT_EQ(value, -7.0f) << a.op << " " << w.name;
    }
  }
}

TEST(Views, ANumberWithoutMemoryIsNone) {
  const Tensor number(static_cast<float*>(nullptr), DType::kFloat32, 0);
  EXPECT_THROW(divisive_norm(x(), {memory, {4, 4}}, number, {}, y()), value_error);
  EXPECT_THROW(local_divisive_norm(x(), number, {}, {}, y(), {{3}, {3}}), value_error);
  EXPECT_THROW(weight_norm(x(), number, y(), {.axis = {}}), value_error);
}

TEST(Views, GradientsWithoutMemoryAreRefused) {
  const Tensor four(static_cast<float*>(nullptr), {4});
  EXPECT_THROW(group_norm_backward(x(), x(), 2, vector(4), {y(), four, {}}), value_error);
  EXPECT_THROW(batch_norm_backward(x(), x(), vector(4), {y(), {}, four}), value_error);
  EXPECT_THROW(
      gdn_backward(x(), x(), vector(4), {memory, {4, 4}}, {y(), four, {}, nullptr, nullptr}),
      value_error);
}

TEST(Views, NothingNeedsNoMemory) {
  const Tensor nothing(static_cast<float*>(nullptr), {2, 0, 3});
  batch_norm(nothing, {}, {}, nothing);
  group_norm(nothing, 1, {}, {}, nothing);
  // Strides of an axis of one element are never taken.
  const ConstTensor one(memory, {1, 4, 3}, {Index{1} << 50, 3, 1});
  layer_norm(one, {}, {}, Tensor(results, {1, 4, 3}));
}

TEST(Views, TheCInterfaceRefusesThem) {
  const std::int64_t shape[] = {2, 4, 3}, far[] = {std::int64_t{1} << 61, 3, 1};
  const std::int64_t huge[] = {std::int64_t{1} << 32, std::int64_t{1} << 32, 0};
  const auto refused = [&](normcore_const_tensor t, normcore_tensor out, const char* message) {
    EXPECT_EQ(normcore_layer_norm(&t, nullptr, nullptr, &out, nullptr, nullptr),
              NORMCORE_VALUE_ERROR);
    EXPECT_EQ(std::string(normcore_last_error()).rfind(message, 0), 0u) << normcore_last_error();
  };
  const normcore_const_tensor good{memory, NORMCORE_FLOAT32, 3, shape, nullptr};
  const normcore_tensor to{results, NORMCORE_FLOAT32, 3, shape, nullptr};
  char* odd = reinterpret_cast<char*>(memory) + 1;
  refused({odd, NORMCORE_FLOAT32, 3, shape, nullptr}, to, "x is not aligned");
  refused(good, {odd, NORMCORE_FLOAT32, 3, shape, nullptr}, "y is not aligned");
  refused({memory, NORMCORE_FLOAT32, 3, shape, far}, to, "x->strides reach further");
  refused({memory, NORMCORE_FLOAT32, 3, huge, nullptr}, to, "x->shape has more elements");
  refused({memory, NORMCORE_FLOAT32, -1, nullptr, nullptr}, to, "x->ndim is -1, expected 0 to 32");
  for (std::int32_t dtype : {-1, 4, 1 << 20}) {
    const normcore_const_tensor t{memory, dtype, 3, shape, nullptr};
    EXPECT_EQ(normcore_layer_norm(&t, nullptr, nullptr, &to, nullptr, nullptr),
              NORMCORE_TYPE_ERROR);
  }
  // A weight without memory is not a weight that is not given.
  const normcore_const_tensor weight{nullptr, NORMCORE_FLOAT32, 1, shape + 2, nullptr};
  EXPECT_EQ(normcore_layer_norm(&good, &weight, nullptr, &to, nullptr, nullptr),
            NORMCORE_VALUE_ERROR);
  EXPECT_EQ(std::string(normcore_last_error()).rfind("weight->data is null", 0), 0u);
}

}  // namespace
}  // namespace normcore
