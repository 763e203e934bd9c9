// The 16-bit storage types: what they hold, and what other libraries call the same.
#include "normcore/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "normcore/ops.h"
#include "support.h"

// As those of Eigen and CUDA are made.
namespace Eigen {
struct half {
  std::uint16_t x;
};
struct bfloat16 {
  std::uint16_t value;
};
}  // namespace Eigen
struct alignas(2) __half {
  std::uint16_t x;
};
struct alignas(2) __nv_bfloat16 {
  std::uint16_t x;
};

namespace normcore {
namespace {

static_assert(float16::of(1.f).bits == 0x3c00 && float(float16{0x3c00}) == 1.f);
static_assert(bfloat16::of(-2.f).bits == 0xc000 && float(bfloat16{0xc000}) == -2.f);
static_assert(DTypeOf<Eigen::half>::value == DType::kFloat16);
static_assert(DTypeOf<Eigen::bfloat16>::value == DType::kBFloat16);
static_assert(DTypeOf<__half>::value == DType::kFloat16);
static_assert(DTypeOf<__nv_bfloat16>::value == DType::kBFloat16);
#if defined(__FLT16_MAX__) && (defined(__clang__) || defined(__x86_64__) || __GNUC__ >= 13)
static_assert(DTypeOf<_Float16>::value == DType::kFloat16);
#endif

template <class T>
class Storage : public ::testing::Test {};
using Types = ::testing::Types<float16, bfloat16>;
TYPED_TEST_SUITE(Storage, Types);

TYPED_TEST(Storage, EveryPatternIsTheSameNumberAsFloat) {
  constexpr DType kType = DTypeOf<TypeParam>::value;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const TypeParam element{std::uint16_t(bits)};
    const float value = float(element);
    const double want = testing::value_of(kType, element.bits);
    if (std::isnan(want)) {
      ASSERT_TRUE(std::isnan(value)) << bits;
      ASSERT_TRUE(std::isnan(float(TypeParam::of(value)))) << bits;
      ASSERT_EQ(std::signbit(value), bool(bits & 0x8000)) << bits;
    } else {
      ASSERT_EQ(value, want) << bits;
      ASSERT_EQ(std::signbit(value), bool(bits & 0x8000)) << bits;
      ASSERT_EQ(TypeParam::of(value).bits, element.bits) << bits;
    }
  }
}

// Between neighbours: the nearer one, and at the middle the even one.
TYPED_TEST(Storage, RoundsToTheNearestAndTiesToEven) {
  const float infinity = std::numeric_limits<float>::infinity();
  for (std::uint32_t bits = 0;; ++bits) {
    const TypeParam low{std::uint16_t(bits)}, high{std::uint16_t(bits + 1)};
    if (std::isinf(float(low))) break;
    // Beyond the largest number there is one more step to where infinity begins.
    const double step = double(float(low)) - double(float(TypeParam{std::uint16_t(bits - 1)}));
    const double above = std::isinf(float(high)) ? double(float(low)) + step : double(float(high));
    const float middle = float((double(float(low)) + above) / 2);
    ASSERT_EQ(2 * double(middle), double(float(low)) + above) << bits;
    for (const std::uint16_t sign : {0, 0x8000}) {
      auto rounded = [&](float v) { return TypeParam::of(sign ? -v : v).bits; };
      ASSERT_EQ(rounded(middle), (bits % 2 ? high.bits : low.bits) | sign) << bits;
      ASSERT_EQ(rounded(std::nextafter(middle, 0.f)), low.bits | sign) << bits;
      ASSERT_EQ(rounded(std::nextafter(middle, infinity)), high.bits | sign) << bits;
    }
  }
  EXPECT_TRUE(std::isinf(float(TypeParam::of(std::numeric_limits<float>::max()))));
  // Far below half of the smallest, but for the sign.
  if (DTypeOf<TypeParam>::value == DType::kFloat16) {
    EXPECT_EQ(TypeParam::of(-std::numeric_limits<float>::denorm_min()).bits, 0x8000);
  }
}

TYPED_TEST(Storage, RandomFloatsRoundAsTheReference) {
  std::mt19937 random(std::random_device{}());
  for (int i = 0; i < 200000; ++i) {
    const float v = std::bit_cast<float>(std::uint32_t(random()));
    if (std::isnan(v)) continue;
    constexpr DType kType = DTypeOf<TypeParam>::value;
    const double want = testing::round_to(kType, double(v));
    ASSERT_EQ(double(float(TypeParam::of(v))), want) << std::bit_cast<std::uint32_t>(v);
  }
}

TEST(Views, TakeTheTypesOfOthers) {
  std::vector<Eigen::half> x{{0x3c00}, {0xbc00}}, y(2);
  layer_norm({x.data(), {1, 2}}, {}, {}, {y.data(), {1, 2}}, {.axes = {-1}, .eps = 0});
  EXPECT_EQ(y[0].x, 0x3c00);
  EXPECT_EQ(y[1].x, 0xbc00);
}

}  // namespace
}  // namespace normcore
