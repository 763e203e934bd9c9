// How a kernel becomes a benchmark: by the place of its pointer in the table of kernels, and a call
// of it on a tile in the first-level cache. What was registered is ticked off in the table, so that
// a kernel without a benchmark is found when the program starts.
#pragma once

#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "memory.h"
#include "options.h"
#include "yardsticks.h"

namespace normcore::bench {

// Arrays of the tile's size that a kernel reads or writes: of elements, of the compute type, and of
// doubles.
struct Traffic {
  double stored, compute = 0, wide = 0;
};

// As the plan makes them: four long rows, or a column tile.
constexpr Index rows_of(int orientation) { return orientation == cpu::kRows ? 4 : 32; }
constexpr Index kElements = 2048;

// The operands of a kernel. Coefficients are 0.5 (a power of two, as some must be), and there are
// enough for any orientation.
template <class C>
struct Tile {
  Tile(DType dtype, int orientation_in)
      : orientation(orientation_in),
        rows(rows_of(orientation)),
        cols(kElements / rows / (sizeof(C) == 8 ? 2 : 1)),
        arrays{Memory(size(), dtype), Memory(size(), dtype), Memory(size(), dtype)},
        x{arrays[0].get(), cols},
        dy{arrays[1].get(), cols},
        y{arrays[2].get(), cols, false},
        weights(size(), DTypeOf<C>::value),
        mask{weights.get(), cols},
        coefficients(std::size_t(size()), C(0.5)),
        c(coefficients.data()) {
    for (auto& s : sums) s.resize(std::size_t(size()));
    // With room for a window's further rows, and for whole vectors.
    for (auto& b : buffers) b.assign(std::size_t(2 * size() + 1024), C(0));
  }
  Index size() const { return rows * cols; }
  double* sum(int i) { return sums[i].data(); }
  C* buffer(int i) { return buffers[i].data(); }

  int orientation;
  Index rows, cols;
  Memory arrays[3];
  cpu::In x, dy;
  cpu::Out y;
  Memory weights;
  cpu::In mask;
  std::vector<C> coefficients;
  const C* c;
  std::vector<double> sums[5];
  std::vector<C> buffers[4];
};

// Times `call`, which moves `bytes` within the first-level cache or does `flops` there.
template <class F>
void run_kernel(benchmark::State& state, double bytes, double flops, F&& call) {
  const Memory src(Index(bytes / 2), DType::kBFloat16), dst(Index(bytes / 2), DType::kBFloat16);
  const cpu::KernelTable& table = cpu::kernels();
  auto copy = [&] { table.copy(src.get(), dst.get(), std::size_t(bytes / 2), false); };
  const Index loops = loops_for(call), copies = loops_for(copy);
  std::vector<double> ratios;
  for (int round = 0; round < 7; ++round) {
    ratios.push_back(seconds_of_one(loops, call) / seconds_of_one(copies, copy));
  }
  for (auto _ : state) {
    call();
    benchmark::ClobberMemory();
  }
  state.SetBytesProcessed(int64_t(bytes) * int64_t(state.iterations()));
  state.counters["roofline"] = median(ratios);
  if (flops > 0) {
    state.counters["flops"] =
        benchmark::Counter(flops * double(state.iterations()), benchmark::Counter::kIsRate);
  }
}

class KernelRegistry {
 public:
  explicit KernelRegistry(const Options& options)
      : options_(options), covered_(sizeof(cpu::KernelTable) / sizeof(void*)) {}

  const Options& options() const { return options_; }

  // Ticks off a member of the table that is in use.
  template <class T>
  void cover(const T& member) {
    static_assert(sizeof(T) % sizeof(void*) == 0, "the table is made of words");
    const std::size_t first = place_of(member) / sizeof(void*);
    for (std::size_t i = 0; i < sizeof(T) / sizeof(void*); ++i) covered_[first + i] = true;
  }

  // Throws where a member of the table has not been ticked off.
  void check() const {
    for (std::size_t i = 0; i < covered_.size(); ++i) {
      if (covered_[i]) continue;
      throw value_error("word " + std::to_string(i) + " of cpu::KernelTable has no benchmark, " +
                        "expected one in bench/native/kernels.cc for every kernel");
    }
  }

  // Bytes from the table's beginning, the same in every instruction set's.
  template <class T>
  static std::size_t place_of(const T& member) {
    return std::size_t(reinterpret_cast<const char*>(&member) -
                       reinterpret_cast<const char*>(&cpu::kernels()));
  }
  template <class T>
  static const T& at(std::size_t place) {
    return *reinterpret_cast<const T*>(reinterpret_cast<const char*>(&cpu::kernels()) + place);
  }

  // body(state), once per instruction set, with the set in use.
  template <class F>
  void add(const std::string& name, F body) const {
    for (const Setting& s : options_.one_threaded()) {
      benchmark::RegisterBenchmark(("kernel/" + name + s.suffix).c_str(),
                                   [s, body](benchmark::State& state) {
                                     s.select();
                                     body(state);
                                   });
    }
  }

 private:
  const Options& options_;
  std::vector<bool> covered_;
};

// The kernels of one part of the table, all of an element type: C computes.
template <class C, class Part>
class Group {
 public:
  Group(KernelRegistry& registry, const std::string& prefix, DType dtype, const Part& part)
      : registry_(registry), prefix_(prefix), dtype_(dtype), part_(part) {
    for (const DType t : registry.options().dtypes) wanted_ = wanted_ || t == dtype;
  }

  // call(kernel, tile), in both orientations.
  template <class F, class Call>
  void add(const char* name, F (Part::*member)[2], Traffic traffic, Call call) {
    add_one(std::string(name) + "/rows", (part_.*member)[cpu::kRows], cpu::kRows, traffic, call);
    add_one(std::string(name) + "/columns", (part_.*member)[cpu::kCols], cpu::kCols, traffic, call);
  }
  // Of kernels for rows that differ in what they do: a name for each.
  template <class F, class Call>
  void add(const char* const (&names)[2][2], F (Part::*member)[2][2], Traffic traffic, Call call) {
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 2; ++j) {
        add_one(names[i][j], (part_.*member)[i][j], cpu::kRows, traffic, call);
      }
    }
  }
  // The same of a kernel that knows one orientation or none.
  template <class F, class Call>
  void add(const char* name, F Part::* member, Traffic traffic, Call call) {
    add_one(name, part_.*member, cpu::kRows, traffic, call);
  }

 private:
  template <class F, class Call>
  void add_one(const std::string& name, const F& kernel, int orientation, Traffic traffic,
               Call call) {
    registry_.cover(kernel);
    if (!wanted_) return;
    const std::size_t place = KernelRegistry::place_of(kernel);
    registry_.add(prefix_ + name + "/" + short_name(dtype_),
                  [=, dtype = dtype_](benchmark::State& state) {
                    Tile<C> tile(dtype, orientation);
                    const double element = traffic.stored * double(size_of(dtype)) +
                                           traffic.compute * sizeof(C) + traffic.wide * 8;
                    const F f = KernelRegistry::at<F>(place);
                    run_kernel(state, element * double(tile.size()), 0, [&] { call(f, tile); });
                  });
  }

  KernelRegistry& registry_;
  std::string prefix_;
  DType dtype_;
  const Part& part_;
  bool wanted_ = false;
};

// In kernels_mixing.cc.
template <class C>
void add_mixing(KernelRegistry& registry, const cpu::MixingKernels<C>& kernels);
template <class C>
void add_mix(KernelRegistry& registry, DType dtype, const cpu::PixelKernels<C>& kernels);

}  // namespace normcore::bench
