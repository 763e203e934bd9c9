// The native benchmark: every method and every kernel, and what they are measured by.
//   normcore_benchmarks [--isa=v3,v4|all] [--threads=1,2|all] [--dtypes=f32,bf16,f16,f64]
//   [--tiny=1]
//                       [Google Benchmark's own options]
// docs/benchmarks.md says what the numbers mean.
#include <benchmark/benchmark.h>

#include <cstdio>
#include <fstream>

#include "options.h"

namespace {

using namespace normcore;

std::string machine() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown";
}

void add_context(const bench::Options& options) {
  std::string isas, threads;
  for (const std::string& isa : options.isas) isas.append(isas.empty() ? "" : ",").append(isa);
  for (const int n : options.threads) {
    threads.append(threads.empty() ? "" : ",").append(std::to_string(n));
  }
  benchmark::AddCustomContext("machine", machine());
  benchmark::AddCustomContext("normcore", NORMCORE_VERSION);
  benchmark::AddCustomContext("compiler", compiler());
  benchmark::AddCustomContext("isa", isas);
  benchmark::AddCustomContext("threads", threads);
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const bench::Options options = bench::take_options(&argc, argv);
    add_context(options);
    bench::register_cells(options);
#ifdef NORMCORE_BENCH_ONEDNN
    bench::register_onednn(options);
#endif
    bench::register_kernels(options);
    bench::register_overhead(options);
    bench::register_yardsticks(options);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "normcore_benchmarks: %s\n", e.what());
    return 1;
  }
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
