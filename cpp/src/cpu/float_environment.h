// The floating-point environment in which results are the same bits everywhere: rounding to the
// nearest, subnormal numbers kept, no traps. A caller may have another one (torch's
// set_flush_denormal, a library linked with -ffast-math, fesetround), and threads have one each.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <cstdint>
#else
#include <cfenv>
#endif

namespace normcore::cpu {

// Sets it for the calling thread, and at the end puts back what was there.
class FloatEnvironment {
 public:
  FloatEnvironment() : before_(read()) {
    changed_ = !is_default(before_);
    if (changed_) write_default();
    barrier();
  }
  ~FloatEnvironment() {
    barrier();
    if (changed_) write(before_);
  }
  FloatEnvironment(const FloatEnvironment&) = delete;
  FloatEnvironment& operator=(const FloatEnvironment&) = delete;

 private:
#if defined(__x86_64__)
  using State = unsigned;  // MXCSR; nothing here computes on the x87
  static constexpr State kDefault = 0x1f80, kRaised = 0x3f;
  static State read() { return _mm_getcsr(); }
  static void write(State state) { _mm_setcsr(state); }
  static void write_default() { write(kDefault); }
  static bool is_default(State state) { return (state & ~kRaised) == kDefault; }
#elif defined(__aarch64__)
  using State = std::uint64_t;  // FPCR, without the flags of what was raised
  static constexpr State kDefault = 0;
  static State read() {
    State state;
    asm volatile("mrs %0, fpcr" : "=r"(state));
    return state;
  }
  static void write(State state) { asm volatile("msr fpcr, %0" ::"r"(state)); }
  static void write_default() { write(kDefault); }
  static bool is_default(State state) { return state == kDefault; }
#else
  // Its members are the system's own: as if it were always another one.
  using State = std::fenv_t;
  static State read() {
    State state;
    std::fegetenv(&state);
    return state;
  }
  static void write(const State& state) { std::fesetenv(&state); }
  static void write_default() { std::fesetenv(FE_DFL_ENV); }
  static bool is_default(const State&) { return false; }
#endif
  // Compilers do not know that arithmetic depends on the environment, but they keep loads and
  // stores on their side of this.
  static void barrier() { asm volatile("" ::: "memory"); }

  State before_;
  bool changed_;
};

}  // namespace normcore::cpu
