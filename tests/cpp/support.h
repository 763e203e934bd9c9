// What the C++ tests share: exact conversions between double and every element type, arrays whose
// surroundings are watched, and reproducible numbers. The conversions go by value (frexp, ldexp)
// and share nothing with those of the library.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <memory>
#include <new>
#include <numeric>
#include <ostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "normcore/normcore.h"

namespace normcore {

inline void PrintTo(DType t, std::ostream* out) { *out << name_of(t); }

namespace testing {

inline constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16,
                                    DType::kFloat16};

// ---- numbers of an element type

struct Format {
  int precision, min_exponent;  // digits of the significand; exponent of the smallest normal
  double max;
};
inline Format format_of(DType t) {
  switch (t) {
    case DType::kFloat64:
      return {53, -1022, 0x1.fffffffffffffp1023};
    case DType::kFloat32:
      return {24, -126, 0x1.fffffep127};
    case DType::kBFloat16:
      return {8, -126, 0x1.fep127};
    default:
      return {11, -14, 65504};
  }
}

// Largest relative error of one rounding, and the largest absolute one near zero.
inline double rounding(DType t) { return std::ldexp(1, -format_of(t).precision); }
inline double smallest_rounding(DType t) {
  return std::ldexp(1, format_of(t).min_exponent - format_of(t).precision);
}
// The same for what is computed in.
inline double compute_rounding(DType t) {
  return rounding(t == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32);
}

// The nearest number of the type, ties to even.
inline double round_to(DType t, double v) {
  if (t == DType::kFloat64 || v == 0 || !std::isfinite(v)) return v;
  const Format f = format_of(t);
  int e;
  std::frexp(v, &e);
  const int quantum = std::max(e - f.precision, f.min_exponent - f.precision + 1);
  const double r = std::ldexp(std::nearbyint(std::ldexp(v, -quantum)), quantum);
  return std::abs(r) > f.max ? std::copysign(INFINITY, v) : r;
}

// 16-bit patterns: `bits_of` takes a number that the type holds, and gives one of many NaNs.
inline double value_of(DType t, std::uint16_t bits) {
  const Format f = format_of(t);
  const int fraction_bits = f.precision - 1, bias = 1 - f.min_exponent;
  const int exponent = (bits & 0x7fff) >> fraction_bits;
  const int fraction = bits & ((1 << fraction_bits) - 1);
  const double sign = bits & 0x8000 ? -1 : 1;
  if (exponent == 2 * bias + 1) return fraction ? NAN : sign * INFINITY;
  if (exponent == 0) return sign * std::ldexp(fraction, f.min_exponent - fraction_bits);
  return sign * std::ldexp(fraction + (1 << fraction_bits), exponent - bias - fraction_bits);
}
inline std::uint16_t bits_of(DType t, double v) {
  const Format f = format_of(t);
  const int fraction_bits = f.precision - 1, bias = 1 - f.min_exponent;
  const unsigned sign = std::signbit(v) ? 0x8000 : 0;
  const double a = std::abs(v);
  if (std::isnan(v)) return 0x7fff;
  if (std::isinf(v)) return std::uint16_t(sign | unsigned(2 * bias + 1) << fraction_bits);
  if (a < std::ldexp(1, f.min_exponent)) {
    return std::uint16_t(sign | unsigned(std::ldexp(a, fraction_bits - f.min_exponent)));
  }
  const int e = std::ilogb(a);
  const unsigned fraction = unsigned(std::ldexp(a, fraction_bits - e)) - (1u << fraction_bits);
  return std::uint16_t(sign | unsigned(e + bias) << fraction_bits | fraction);
}

// Element i of an array of the type.
inline double get(DType t, const void* data, Index i) {
  switch (t) {
    case DType::kFloat64:
      return static_cast<const double*>(data)[i];
    case DType::kFloat32:
      return double(static_cast<const float*>(data)[i]);
    default:
      return value_of(t, static_cast<const std::uint16_t*>(data)[i]);
  }
}
inline void put(DType t, void* data, Index i, double v) {
  switch (t) {
    case DType::kFloat64:
      static_cast<double*>(data)[i] = v;
      return;
    case DType::kFloat32:
      static_cast<float*>(data)[i] = float(v);
      return;
    default:
      static_cast<std::uint16_t*>(data)[i] = bits_of(t, round_to(t, v));
  }
}

// ---- memory

// Bytes on a cache line of their own, poisoned. Nothing follows them: AddressSanitizer sees the
// first byte beyond.
class Bytes {
 public:
  static constexpr std::size_t kAlignment = 64;
  static constexpr unsigned char kPoison = 0xa7;

  explicit Bytes(std::size_t size)
      : data_(static_cast<unsigned char*>(
            ::operator new(size + !size, std::align_val_t(kAlignment)))),
        size_(size) {
    std::memset(data_.get(), kPoison, size);
  }
  unsigned char* data() const { return data_.get(); }
  std::size_t size() const { return size_; }
  bool poisoned(std::size_t from, std::size_t to) const {
    for (std::size_t i = from; i < to; ++i) {
      if (data_[i] != kPoison) return false;
    }
    return true;
  }

 private:
  struct Free {
    void operator()(unsigned char* p) const { ::operator delete(p, std::align_val_t(kAlignment)); }
  };
  std::unique_ptr<unsigned char[], Free> data_;
  std::size_t size_;
};

// A tensor over any memory.
inline Tensor make_tensor(void* data, DType t, const std::vector<Index>& shape,
                          const std::vector<Index>& strides = {}) {
  Tensor tensor(data, t, static_cast<int>(shape.size()));
  for (std::size_t i = 0; i < shape.size(); ++i) tensor.set_dim(static_cast<int>(i), shape[i], 0);
  tensor.set_contiguous();
  for (std::size_t i = 0; i < strides.size(); ++i) {
    tensor.set_dim(static_cast<int>(i), shape[i], strides[i]);
  }
  return tensor;
}

// ---- reproducible numbers

// Of this run, where a test searches further each time: NORMCORE_TEST_SEED repeats one.
inline unsigned run_seed() {
  static const char* given = std::getenv("NORMCORE_TEST_SEED");
  static const unsigned seed =
      given ? unsigned(std::strtoul(given, nullptr, 10)) : std::random_device()();
  return seed;
}

class Random {
 public:
  explicit Random(unsigned seed) : engine_(seed) {}
  Index integer(Index low, Index high) {
    return low + static_cast<Index>(engine_() % static_cast<std::uint64_t>(high - low + 1));
  }
  double uniform() { return double(engine_() >> 11) * 0x1p-53; }
  // Near enough to normal, and bounded.
  double normal() { return (uniform() + uniform() + uniform() + uniform() - 2) * std::sqrt(3.0); }

 private:
  std::mt19937_64 engine_;
};

// ---- arrays

// An array of its own with the values that it was filled with. Strides may leave gaps and be
// negative; what lies between the elements is poisoned.
struct Array {
  DType dtype;
  std::vector<Index> shape, strides;
  Bytes bytes;
  std::vector<double> values;  // in the order of the axes

  Array(DType t, std::vector<Index> shape_in, std::vector<Index> strides_in = {})
      : dtype(t),
        shape(std::move(shape_in)),
        strides(strides_in.empty() ? contiguous_strides() : std::move(strides_in)),
        bytes(std::size_t(span()) * size_of(t)) {}
  Index size() const {
    return std::accumulate(shape.begin(), shape.end(), Index(1), std::multiplies<>());
  }
  // Where element i lies.
  Index place(Index i) const {
    Index at = first();
    for (std::size_t d = shape.size(); d-- > 0; i /= shape[d]) at += i % shape[d] * strides[d];
    return at;
  }
  void fill(Random& random, double mean, double scale) {
    std::vector<double> numbers(static_cast<std::size_t>(size()));
    for (double& v : numbers) v = mean + scale * random.normal();
    assign(numbers);
  }
  void assign(const std::vector<double>& numbers) {
    values.clear();
    for (const double v : numbers) {
      values.push_back(round_to(dtype, v));
      put(dtype, bytes.data(), place(Index(values.size()) - 1), values.back());
    }
  }
  // Also between the elements.
  bool same_bits(const Array& other) const {
    return bytes.size() == other.bytes.size() &&
           std::memcmp(bytes.data(), other.bytes.data(), bytes.size()) == 0;
  }
  double read(Index i) const { return get(dtype, bytes.data(), place(i)); }
  std::vector<double> read() const {
    std::vector<double> numbers(static_cast<std::size_t>(size()));
    for (Index i = 0; i < size(); ++i) numbers[std::size_t(i)] = read(i);
    return numbers;
  }
  bool gaps_untouched() const {
    std::vector<bool> element(std::size_t(span()), false);
    for (Index i = 0; i < size(); ++i) element[std::size_t(place(i))] = true;
    const std::size_t n = size_of(dtype);
    for (std::size_t i = 0; i < element.size(); ++i) {
      if (!element[i] && !bytes.poisoned(i * n, (i + 1) * n)) return false;
    }
    return true;
  }
  Tensor tensor() const {
    return make_tensor(bytes.data() + std::size_t(first()) * size_of(dtype), dtype, shape, strides);
  }

 private:
  std::vector<Index> contiguous_strides() const {
    std::vector<Index> result(shape.size(), 1);
    for (std::size_t i = shape.size(); i-- > 1;) result[i - 1] = result[i] * shape[i];
    return result;
  }
  // Elements before the one with indices 0, and in all.
  Index first() const {
    Index n = 0;
    for (std::size_t d = 0; d < shape.size() && size() > 0; ++d) {
      n -= std::min<Index>(strides[d], 0) * (shape[d] - 1);
    }
    return n;
  }
  Index span() const {
    Index n = size() > 0;
    for (std::size_t d = 0; d < shape.size() && n > 0; ++d) {
      n += std::abs(strides[d]) * (shape[d] - 1);
    }
    return n;
  }
};

// ---- parameters of test suites

// "f32" and the like: names of tests must be identifiers.
inline std::string test_name(DType t) { return name_of(t); }
inline std::string test_name(std::string isa) {
  if (isa.rfind("x86-64-", 0) == 0) isa = isa.substr(7);
  std::replace(isa.begin(), isa.end(), '-', '_');
  return isa;
}
// Those that are available, and levels without what this CPU has beyond them.
inline std::vector<std::string> every_isa() {
  const std::string initial = get_isa();
  std::vector<std::string> all = available_isas();
  for (const std::string& isa : available_isas()) {
    try {
      set_isa(isa + "-base");
      all.push_back(isa + "-base");
    } catch (const value_error&) {  // there is nothing beyond it
    }
  }
  set_isa(initial);
  return all;
}

}  // namespace testing
}  // namespace normcore
