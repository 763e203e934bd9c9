// Element types: the enumeration, the two 16-bit storage types, and what is computed in for each.
// Statistics and tables are double whatever the element type.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "normcore/export.h"

// Declared, so that they are known where their headers are included.
namespace Eigen {
struct half;
struct bfloat16;
}  // namespace Eigen
struct __half;
struct __nv_bfloat16;

namespace normcore {

using Index = std::int64_t;

namespace detail {

// value / 2^bits to the nearest integer, ties to even.
constexpr std::uint32_t shifted(std::uint32_t value, int bits) {
  return (value + (1u << (bits - 1)) - 1 + (value >> bits & 1)) >> bits;
}

}  // namespace detail

// Storage: arithmetic happens in float, in the kernels. `of` rounds to the nearest, ties to even;
// as a float an element is the same number.
struct float16 {
  std::uint16_t bits;

  static constexpr float16 of(float value) {
    const std::uint32_t all = std::bit_cast<std::uint32_t>(value), magnitude = all & 0x7fffffff;
    const std::uint32_t sign = all >> 16 & 0x8000;
    std::uint32_t rounded = 0;
    if (magnitude > 0x7f800000) {
      rounded = 0x7e00;  // NaN
    } else if (magnitude >= 0x47800000) {
      rounded = 0x7c00;  // 2^16 and more: infinity
    } else if (magnitude >= 0x38800000) {
      rounded = detail::shifted(magnitude - (112u << 23), 13);
    } else if (magnitude >= 0x33000000) {  // multiples of 2^-24
      const int exponent = int(magnitude >> 23);
      rounded = detail::shifted((magnitude & 0x7fffff) | 0x800000, 126 - exponent);
    }
    return {std::uint16_t(sign | rounded)};
  }
  explicit constexpr operator float() const {
    const std::uint32_t sign = std::uint32_t(bits & 0x8000) << 16, magnitude = bits & 0x7fff;
    std::uint32_t wide = (magnitude << 13) + (112u << 23);
    if (magnitude < 0x400) {
      wide = std::bit_cast<std::uint32_t>(float(magnitude) * 0x1p-24f);
    } else if (magnitude >= 0x7c00) {
      wide += 112u << 23;  // infinity and NaN
    }
    return std::bit_cast<float>(sign | wide);
  }
};
struct bfloat16 {
  std::uint16_t bits;

  static constexpr bfloat16 of(float value) {
    const std::uint32_t all = std::bit_cast<std::uint32_t>(value), magnitude = all & 0x7fffffff;
    const std::uint32_t rounded = magnitude > 0x7f800000 ? 0x7fc0 : detail::shifted(magnitude, 16);
    return {std::uint16_t((all >> 16 & 0x8000) | rounded)};
  }
  explicit constexpr operator float() const {
    return std::bit_cast<float>(std::uint32_t(bits) << 16);
  }
};

enum class DType : std::uint8_t { kFloat32, kFloat64, kBFloat16, kFloat16 };

constexpr std::size_t size_of(DType t) {
  return t == DType::kFloat64 ? 8 : t == DType::kFloat32 ? 4 : 2;
}
constexpr const char* name_of(DType t) {
  constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16"};
  return kNames[static_cast<int>(t)];
}

template <class T>
struct DTypeOf;
template <>
struct DTypeOf<float> {
  static constexpr DType value = DType::kFloat32;
};
template <>
struct DTypeOf<double> {
  static constexpr DType value = DType::kFloat64;
};
template <>
struct DTypeOf<bfloat16> {
  static constexpr DType value = DType::kBFloat16;
};
template <>
struct DTypeOf<float16> {
  static constexpr DType value = DType::kFloat16;
};

// Types of others with the same bits: the compiler's (and with C++23 std::float16_t and
// std::bfloat16_t, which are those), Eigen's and CUDA's.
// GCC has _Float16 in C++ from version 13 on, on x86 from 12 on, but the macro before that.
#if defined(__FLT16_MAX__) && (defined(__clang__) || defined(__x86_64__) || __GNUC__ >= 13)
template <>
struct DTypeOf<_Float16> : DTypeOf<float16> {};
#endif
#ifdef __BFLT16_MAX__
template <>
struct DTypeOf<__bf16> : DTypeOf<bfloat16> {};
#endif
template <>
struct DTypeOf<Eigen::half> : DTypeOf<float16> {};
template <>
struct DTypeOf<Eigen::bfloat16> : DTypeOf<bfloat16> {};
template <>
struct DTypeOf<__half> : DTypeOf<float16> {};
template <>
struct DTypeOf<__nv_bfloat16> : DTypeOf<bfloat16> {};

// Statistics handed to users and running buffers: float64 for float64 data, else float32.
constexpr DType statistics_dtype(DType t) {
  return t == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

}  // namespace normcore
