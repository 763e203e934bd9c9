#include "cpu/explain.h"

#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "cpu/dispatch.h"

namespace normcore {

void explain(const char* op, const Plan& p, int threads) {
  static const bool verbose = [] {
    const char* v = std::getenv("NORMCORE_VERBOSE");
    return v && std::strcmp(v, "0") != 0 && *v;
  }();
  if (!verbose) return;
  std::fprintf(
      stderr, "normcore: %s [%lld, %lld] x %lld %s, %s %lld x %lld%s%s, %s, %d thread%s (%s)\n", op,
      static_cast<long long>(p.outer), static_cast<long long>(p.cells),
      static_cast<long long>(p.count), p.layout == Layout::rows ? "rows" : "columns",
      p.fused ? "fused blocks" : "two sweeps", static_cast<long long>(p.block_outer),
      static_cast<long long>(p.block_cells), p.access[kX].direct ? "" : ", gathered",
      p.stream ? ", streamed" : "", cpu::kernels().isa, threads, threads == 1 ? "" : "s", p.reason);
}

}  // namespace normcore
