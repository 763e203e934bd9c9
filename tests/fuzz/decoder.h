// A fuzzer's bytes as choices. Where the bytes have run out every choice is the first one, which is
// the harmless one, so that short inputs are valid calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>

namespace fuzz {

class Decoder {
 public:
  Decoder(const std::uint8_t* data, std::size_t size) : next_(data), end_(data + size) {}

  int byte() { return next_ < end_ ? *next_++ : 0; }
  // 0 <= result < n <= 65536.
  int below(int n) {
    if (n <= 256) return byte() % n;
    const int high = byte();
    return (256 * high + byte()) % n;
  }
  bool one_in(int n) { return below(n) == n - 1; }
  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[below(static_cast<int>(values.size()))];
  }

 private:
  const std::uint8_t* next_;
  const std::uint8_t* end_;
};

// Numbers to fill arrays with, from a seed of a few bytes.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}
  std::uint64_t next() {  // splitmix64
    std::uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

 private:
  std::uint64_t state_;
};

}  // namespace fuzz
