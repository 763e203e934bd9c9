// Chooses the kernels for this CPU, once.
#include "cpu/dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#if defined(NORMCORE_X86_KERNELS)
#include <cpuid.h>
#endif

#include "cpu/parallel.h"
#include "cpu/running_call.h"
#include "normcore/context.h"
#include "normcore/errors.h"
#include "plan/tuning.h"

namespace normcore {
namespace cpu {

#if defined(NORMCORE_X86_KERNELS)
namespace v2 {
extern const KernelTable kTable;
}
namespace v3 {
extern const KernelTable kTable;
}
namespace v4 {
extern const KernelTable kTable;
}
#elif defined(NORMCORE_NEON_KERNELS)
namespace neon {
extern const KernelTable kTable;
}
#else
namespace generic {
extern const KernelTable kTable;
}
#endif

namespace {

#if defined(NORMCORE_X86_KERNELS)
// Which __builtin_cpu_supports does not know before Clang 16. That the system keeps the registers
// of AVX it says of avx2.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}
#endif

// Best first. Empty on a CPU below all that were built.
std::vector<const KernelTable*> supported_tables() {
  std::vector<const KernelTable*> tables;
#if defined(NORMCORE_X86_KERNELS)
  __builtin_cpu_init();
  [[maybe_unused]] const bool v2 =
      __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  [[maybe_unused]] const bool v3 = v2 && __builtin_cpu_supports("avx2") &&
                                   __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
                                   __builtin_cpu_supports("bmi2") && has_f16c();
  [[maybe_unused]] const bool v4 =
      v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl");
#if defined(NORMCORE_X86_V4)
  if (v4) tables.push_back(&v4::kTable);
#endif
#if defined(NORMCORE_X86_V3)
  if (v3) tables.push_back(&v3::kTable);
#endif
#if defined(NORMCORE_X86_V2)
  if (v2) tables.push_back(&v2::kTable);
#endif
#elif defined(NORMCORE_NEON_KERNELS)
  tables.push_back(&neon::kTable);
#else
  tables.push_back(&generic::kTable);
#endif
  return tables;
}

const KernelTable* find_table(const std::string& name) {
  for (const KernelTable* t : supported_tables()) {
    const std::string isa = t->isa;
    if (isa == name || isa == "x86-64-" + name) return t;
  }
  return nullptr;
}

std::string available_names() {
  std::string names;
  for (const std::string& isa : available_isas()) names += (names.empty() ? "" : ", ") + isa;
  return names;
}

const KernelTable* choose(const std::string& name, const char* where) {
  if (const KernelTable* t = find_table(name)) return t;
  throw value_error(std::string(where) + " is '" + name + "', expected one of " +
                    available_names());
}

const KernelTable* initial_table() {
  const auto tables = supported_tables();
  if (tables.empty()) {
    throw value_error("this CPU lacks " + std::string(NORMCORE_LEAST_ISA) +
                      ", which normcore needs");
  }
  const char* forced = std::getenv("NORMCORE_ISA");
  return forced && *forced ? choose(forced, "NORMCORE_ISA") : tables.front();
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{initial_table()};
  return table;
}

}  // namespace

const KernelTable& chosen_kernels() { return *current().load(std::memory_order_relaxed); }
const KernelTable& kernels() {
  const RunningCall* call = RunningCall::current();
  return call ? call->kernels() : chosen_kernels();
}

void parallel_copy(const void* src, void* dst, Index bytes, bool stream) {
  const Index task_bytes = tuning::kUnitBytes;
  const KernelTable& table = kernels();
  parallel_for((bytes + task_bytes - 1) / task_bytes, threads_for(2 * bytes, 0),
               2 * bytes <= tuning::kStickyBytes, [&](Index task) {
                 const Index at = task * task_bytes;
                 table.copy(static_cast<const char*>(src) + at, static_cast<char*>(dst) + at,
                            static_cast<std::size_t>(std::min(task_bytes, bytes - at)), stream);
               });
  settle_streamed_stores();
}

}  // namespace cpu

std::string get_isa() { return cpu::chosen_kernels().isa; }
void set_isa(const std::string& name) { cpu::current() = cpu::choose(name, "name"); }
std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const cpu::KernelTable* t : cpu::supported_tables()) names.emplace_back(t->isa);
  return names;
}

const char* compiler() { return NORMCORE_COMPILER; }

}  // namespace normcore
