// How a formula is written once for both backends: for a type M that says what it computes with.
// Numbers<C> (numbers.h) are numbers one by one, cpu::VectorMath<C> vectors of them. Either has
//   Value         what is computed: a number or a vector
//   Number        float or double: parameters
//   fma(a, b, c), sqrt(v), log(v), abs(v), sign(v), power(v, exponent) for v >= 0
// and comparisons of values choose between values: v == 0 ? a : b.
//
// Kernels of the CPU include this: nothing of the standard library here, see cpu/simd.h.
#pragma once

#include "normcore/export.h"

// In line, so that a vector never travels by a convention of another instruction set.
#define NORMCORE_FORMULA [[gnu::always_inline]] NORMCORE_HD inline
