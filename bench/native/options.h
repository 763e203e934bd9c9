// What a run covers: the axes of the benchmark, and the benchmarks of each topic over them.
#pragma once

#include <string>
#include <vector>

#include "normcore/normcore.h"

namespace normcore::bench {

// A place on the axes of instruction sets and threads.
struct Setting {
  std::string isa;
  int threads;
  std::string suffix;  // of a benchmark's name: "/v3/threads:2", of the axes of several values

  void select() const {
    set_isa(isa);
    set_num_threads(threads);
  }
};

struct Options {
  std::vector<std::string> isas;
  std::vector<int> threads;
  std::vector<DType> dtypes;
  bool tiny;  // cells cut down: does everything run?

  std::vector<Setting> settings() const;      // isas x threads
  std::vector<Setting> one_threaded() const;  // isas
};

// Takes --isa, --threads, --dtypes and --tiny out of the arguments; throws value_error.
Options take_options(int* argc, char** argv);

const char* short_name(DType t);  // "f32"

// One function per topic, in the file of its name. Each registers benchmarks.
void register_cells(const Options& options);
void register_kernels(const Options& options);
void register_overhead(const Options& options);
void register_onednn(const Options& options);
void register_yardsticks(const Options& options);

}  // namespace normcore::bench
