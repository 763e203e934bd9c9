// The cells of bench/shapes.json: every method forward and backward, through the C++ API, beside a
// copy of the least traffic.
#include "cells.h"

#include <benchmark/benchmark.h>

#include <algorithm>
#include <cstring>
#include <list>

#include "call.h"
#include "options.h"
#include "yardsticks.h"

namespace normcore::bench {

const std::vector<Cell>& cells() {
  static const std::vector<Cell> list = {
#include "cells.inc"
  };
  return list;
}

namespace {

Cell cut_down(Cell cell) {
  const bool images = cell.shape.size() > 2;
  for (std::size_t i = 0; i < cell.shape.size(); ++i) {
    const Index most = !images ? 64 : i == 0 ? 2 : 8;
    if (!images || i != 1) cell.shape[i] = std::min(cell.shape[i], most);
  }
  return cell;
}

std::string name_of(const Cell& cell) {
  std::string name = cell.op;
  if (*cell.variant) name += std::string("/") + cell.variant;
  for (std::size_t i = 0; i < cell.shape.size(); ++i) {
    name += i ? 'x' : '/';
    name += std::to_string(cell.shape[i]);
  }
  if (cell.shape.size() > 2) name += std::string("/") + cell.layout;
  if (!std::strcmp(cell.layout, "C") && cell.axis() != -1) {
    name += "/axis=" + std::to_string(cell.axis());
  }
  return name;
}

void run_cell(benchmark::State& state, const CellVariant& c, const Setting& setting) {
  setting.select();
  const Call call(c.cell, c.dtype, setting.threads);
  const bool backward = c.backward;
  const double bytes = call.traffic_bytes(backward);
  const double copy = call.copy_seconds(bytes);
  const Index loops = loops_for([&] { call.run(backward); });
  double total = 0;
  while (state.KeepRunningBatch(loops)) {
    const double t = seconds([&] {
      for (Index i = 0; i < loops; ++i) call.run(backward);
    });
    state.SetIterationTime(t);
    total += t;
  }
  const double one = total / double(state.iterations());
  state.SetBytesProcessed(int64_t(bytes) * int64_t(state.iterations()));
  state.counters["roofline"] = one / copy;
  if (const double flops = call.mixing_flops(backward); flops > 0) {
    state.counters["fma_share"] = flops / one / peak_flops(setting.threads);
  }
}

}  // namespace

std::vector<CellVariant> variants(const Options& options) {
  static std::list<Cell> kept;  // as long as the benchmarks
  std::vector<CellVariant> all;
  for (const Cell& listed : cells()) {
    const Cell& cell = kept.emplace_back(options.tiny ? cut_down(listed) : listed);
    for (const DType dtype : options.dtypes) {
      for (const bool backward : {false, true}) {
        if (backward && !cell.has_backward) continue;
        all.push_back({cell, dtype, backward, name_of(cell)});
        all.back().name += std::string("/") + short_name(dtype);
        all.back().name += backward ? "/backward" : "/forward";
      }
    }
  }
  return all;
}

void register_cells(const Options& options) {
  for (const Setting& setting : options.settings()) {
    for (const CellVariant& c : variants(options)) {
      benchmark::RegisterBenchmark((c.name + setting.suffix).c_str(), [=](benchmark::State& state) {
        run_cell(state, c, setting);
      })->UseManualTime();
    }
  }
}

}  // namespace normcore::bench
