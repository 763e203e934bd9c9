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
namespace v4_bf16 {
extern const KernelSet<float> kTable;
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
// What the CPU has and the system lets programs use. Asked of the CPU itself: zig's runtime answers
// no to __builtin_cpu_supports, and Clang knows f16c from 16 on.
class Features {
 public:
  Features() {
    unsigned eax = 0, ebx = 0, edx = 0;
    __get_cpuid(1, &eax, &ebx, &first_, &edx);
    __get_cpuid_count(7, 0, &eax, &seventh_, &ebx, &edx);
    __get_cpuid_count(7, 1, &more_, &ebx, &ebx, &edx);
    __get_cpuid(0x80000001, &eax, &ebx, &extended_, &edx);
    if (first_ & bit_OSXSAVE) asm("xgetbv" : "=a"(kept_), "=d"(edx) : "c"(0));
  }
  bool v2() const { return has(first_, bit_SSE4_2 | bit_POPCNT); }
  bool v3() const {
    return v2() && has(first_, bit_AVX | bit_FMA | bit_F16C | bit_MOVBE) &&
           has(seventh_, bit_AVX2 | bit_BMI | bit_BMI2) && has(extended_, bit_LZCNT) &&
           has(kept_, kAvxRegisters);
  }
  bool v4() const {
    constexpr unsigned bits =
        bit_AVX512F | bit_AVX512BW | bit_AVX512CD | bit_AVX512DQ | bit_AVX512VL;
    return v3() && has(seventh_, bits) && has(kept_, kAvx512Registers);
  }
  bool v4_bf16() const { return v4() && has(more_, kAvx512Bf16); }

 private:
  // Of the registers that the system saves when it changes threads.
  static constexpr unsigned kAvxRegisters = 0x6, kAvx512Registers = 0xe6;
  static constexpr unsigned kAvx512Bf16 = 1u << 5;
  static bool has(unsigned word, unsigned bits) { return (word & bits) == bits; }
  unsigned first_ = 0, seventh_ = 0, more_ = 0, extended_ = 0, kept_ = 0;
};
#endif

#if defined(NORMCORE_X86_V4)
// With what the CPU has beyond the level, and the level alone.
const KernelTable& v4_with_bf16() {
  static const KernelTable table = [] {
    KernelTable t = v4::kTable;
    t.bf16 = v4_bf16::kTable;
    return t;
  }();
  return table;
}
const KernelTable& v4_base() {
  static const KernelTable table = [] {
    KernelTable t = v4::kTable;
    t.isa = "x86-64-v4-base";
    return t;
  }();
  return table;
}
#endif

// Best first. Empty on a CPU below all that were built.
std::vector<const KernelTable*> supported_tables() {
  std::vector<const KernelTable*> tables;
#if defined(NORMCORE_X86_KERNELS)
  [[maybe_unused]] const Features cpu;
#if defined(NORMCORE_X86_V4)
  if (cpu.v4()) tables.push_back(cpu.v4_bf16() ? &v4_with_bf16() : &v4::kTable);
#endif
#if defined(NORMCORE_X86_V3)
  if (cpu.v3()) tables.push_back(&v3::kTable);
#endif
#if defined(NORMCORE_X86_V2)
  if (cpu.v2()) tables.push_back(&v2::kTable);
#endif
#elif defined(NORMCORE_NEON_KERNELS)
  tables.push_back(&neon::kTable);
#else
  tables.push_back(&generic::kTable);
#endif
  return tables;
}

// Beside those: levels without what this CPU has beyond them.
std::vector<const KernelTable*> base_tables() {
#if defined(NORMCORE_X86_KERNELS) && defined(NORMCORE_X86_V4)
  if (Features().v4_bf16()) return {&v4_base()};
#endif
  return {};
}

const KernelTable* find_table(const std::string& name) {
  auto tables = supported_tables();
  for (const KernelTable* t : base_tables()) tables.push_back(t);
  for (const KernelTable* t : tables) {
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
               {.sticky = 2 * bytes <= tuning::kStickyBytes}, [&](Index task) {
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
