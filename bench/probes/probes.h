// Kernels that only tests and benchmarks call, made like those of the library and not a part of it:
// the functions of vector_math.h over arrays, and the multiply-adds that a core can do.
#pragma once

#include "cpu/kernels.h"

namespace normcore::probes {

using cpu::Index;

// As the kernels have them in vectors.
template <class C>
struct Elementary {
  void (*exp)(const C* x, C* y, Index n);
  void (*log)(const C* x, C* y, Index n);
  void (*pow)(const C* x, C exponent, C* y, Index n);
};

struct ProbeTable {
  const char* isa;
  Elementary<float> f32;
  Elementary<double> f64;
  // Multiply-adds in registers: `n` rounds of them, and how many floating-point operations they
  // were. The yardstick of what is bound by arithmetic; out: a number.
  double (*multiply_adds)(Index n, float* out);
};

// Those of the instruction set that cpu::kernels() is of.
const ProbeTable& probes();

}  // namespace normcore::probes
