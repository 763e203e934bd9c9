// Chooses the kernels for this CPU, once, and answers for the settings of the process.
#include "cpu/dispatch.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "cpu/parallel.h"
#include "normcore/context.h"
#include "normcore/errors.h"
#include "tuning.h"
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

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
#else
namespace generic {
extern const KernelTable kTable;
}
#endif

namespace {

// Best first. Empty below x86-64-v2.
std::vector<const KernelTable*> supported_tables() {
  std::vector<const KernelTable*> tables;
#if defined(NORMCORE_X86_KERNELS)
  __builtin_cpu_init();
  const bool v2 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("popcnt");
  const bool v3 = v2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                  __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2") &&
                  __builtin_cpu_supports("f16c");
  const bool v4 = v3 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                  __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                  __builtin_cpu_supports("avx512vl");
  if (v4) tables.push_back(&v4::kTable);
  if (v3) tables.push_back(&v3::kTable);
  if (v2) tables.push_back(&v2::kTable);
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
  if (tables.empty()) throw value_error("this CPU lacks x86-64-v2 (SSE4.2), which normcore needs");
  const char* forced = std::getenv("NORMCORE_ISA");
  return forced && *forced ? choose(forced, "NORMCORE_ISA") : tables.front();
}

std::atomic<const KernelTable*>& current() {
  static std::atomic<const KernelTable*> table{initial_table()};
  return table;
}

std::atomic<int> thread_setting{0};
std::atomic<bool> threads_started{false};
// Set in a child that was forked after threads had been started: OpenMP's pool did not follow.
std::atomic<bool> pool_lost{false};

}  // namespace

const KernelTable& kernels() { return *current().load(std::memory_order_relaxed); }

void note_threads_started() {
#if defined(__unix__) || defined(__APPLE__)
  if (!threads_started.exchange(true)) {
    pthread_atfork(nullptr, nullptr, [] { pool_lost = true; });
  }
#endif
}

int threads_for(Index bytes, int wanted) {
  if (bytes < tuning::kSerialBytes || pool_lost.load(std::memory_order_relaxed)) return 1;
  return wanted > 0 ? wanted : get_num_threads();
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
}

}  // namespace cpu

int get_num_threads() {
  const int set = cpu::thread_setting.load(std::memory_order_relaxed);
  if (set > 0) return set;
#ifdef _OPENMP
  return omp_get_max_threads();
#else
  return 1;
#endif
}

void set_num_threads(int n) {
  if (n < 1) throw value_error("n is " + std::to_string(n) + ", expected at least 1");
  cpu::thread_setting = n;
}

std::string get_isa() { return cpu::kernels().isa; }
void set_isa(const std::string& name) { cpu::current() = cpu::choose(name, "name"); }
std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const cpu::KernelTable* t : cpu::supported_tables()) names.emplace_back(t->isa);
  return names;
}

bool has_openmp() {
#ifdef _OPENMP
  return true;
#else
  return false;
#endif
}
const char* compiler() { return NORMCORE_COMPILER; }

}  // namespace normcore
