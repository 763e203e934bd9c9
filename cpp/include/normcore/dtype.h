// Element types: the enumeration, the two 16-bit storage types, and what is computed in for each.
// Statistics and tables are double whatever the element type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "normcore/export.h"

namespace normcore {

using Index = std::int64_t;

// Storage only: arithmetic happens in float, in the kernels.
struct float16 {
  std::uint16_t bits;
};
struct bfloat16 {
  std::uint16_t bits;
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

// Statistics handed to users and running buffers: float64 for float64 data, else float32.
constexpr DType statistics_dtype(DType t) {
  return t == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
}

}  // namespace normcore
