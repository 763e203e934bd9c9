#include "yardsticks.h"

#include <benchmark/benchmark.h>
#include <unistd.h>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "memory.h"
#include "options.h"
#include "probes.h"

namespace normcore::bench {

double peak_flops(int threads) {
  constexpr Index kRounds = 1 << 20;
  double best = 0;
  for (int run = 0; run < 5; ++run) {
    double flops = 0;
    const double t = seconds([&] {
      std::vector<double> of(std::size_t(threads) * 8);  // a cache line for each
      cpu::parallel_for(threads, threads, {.sticky = true}, [&](Index i) {
        float sink = 0.5f;
        of[std::size_t(i) * 8] = probes::probes().multiply_adds(kRounds, &sink) + 0 * double(sink);
      });
      for (const double f : of) flops += f;
    });
    best = std::max(best, flops / t);
  }
  return best;
}

double copy_seconds(const char* src, char* dst, Index tensor_bytes, double bytes) {
  double best = 1e9;
  for (const bool stream : {false, true}) {
    auto copy = [&] {
      for (double left = bytes / 2; left > 0; left -= double(tensor_bytes)) {
        cpu::parallel_copy(src, dst, Index(std::min(left, double(tensor_bytes))), stream);
      }
    };
    const Index loops = loops_for(copy);
    std::vector<double> times;
    for (int round = 0; round < 7; ++round) times.push_back(seconds_of_one(loops, copy));
    best = std::min(best, median(times));
  }
  return best;
}

double cache_bytes() {
  const long size = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return size > 0 ? double(size) : double(Index(1) << 25);
}

void register_yardsticks(const Options& options) {
  for (const Setting& s : options.settings()) {
    benchmark::RegisterBenchmark(("fma_peak" + s.suffix).c_str(), [s](benchmark::State& state) {
      s.select();
      double rate = 0;
      for (auto _ : state) rate = std::max(rate, peak_flops(s.threads));
      state.counters["flops"] = benchmark::Counter(rate);
    });
    for (const Index mib : {1, 4, 16, 64}) {
      for (const bool stream : {false, true}) {
        const std::string name =
            "copy/" + std::to_string(mib) + "MiB/" + (stream ? "streamed" : "plain") + s.suffix;
        benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
          s.select();
          const Index bytes = mib << 20;
          const Memory src(bytes / 4, DType::kFloat32), dst(bytes / 4, DType::kFloat32);
          for (auto _ : state) cpu::parallel_copy(src.get(), dst.get(), bytes, stream);
          state.SetBytesProcessed(2 * bytes * int64_t(state.iterations()));
        })->UseRealTime();
      }
    }
  }
}

}  // namespace normcore::bench
