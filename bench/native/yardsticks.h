// What everything is measured by: time, the copy of memory, the multiply-adds of a core.
#pragma once

#include <algorithm>
#include <chrono>
#include <vector>

#include "normcore/dtype.h"

namespace normcore::bench {

template <class F>
double seconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Seconds of a call, timed as a loop of `loops`; the first call brings back its data and threads.
template <class F>
double seconds_of_one(Index loops, F&& f) {
  f();
  return seconds([&] {
           for (Index i = 0; i < loops; ++i) f();
         }) /
         double(loops);
}

// Calls that make a loop which the clock can time.
template <class F>
Index loops_for(F&& f) {
  f();
  Index loops = 1;
  while (loops < (1 << 20)) {
    const double t = seconds([&] {
      for (Index i = 0; i < loops; ++i) f();
    });
    if (t > 50e-6) break;
    loops *= 2;
  }
  return loops;
}

inline double median(std::vector<double> values) {
  const auto middle = values.begin() + std::ptrdiff_t(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return values.empty() ? 0 : *middle;
}

// Seconds of copying `bytes` of traffic, half of them read, with the better of plain and streamed
// stores and all threads, between tensors of `tensor_bytes`.
double copy_seconds(const char* src, char* dst, Index tensor_bytes, double bytes);

// Floating-point operations a second that the threads reach where nothing but arithmetic counts.
double peak_flops(int threads);

// Of the last level.
double cache_bytes();

}  // namespace normcore::bench
