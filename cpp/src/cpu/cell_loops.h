// Loops over the cells of a block by vectors of double as wide as the CPU has them. The pipeline is
// compiled once, for the least instruction set, and what is inlined into a loop is compiled for the
// loop's own. Of short rows a cell is a few vectors: layer norm of (65536, 64) takes 0.87 of the
// time.
#pragma once

#include "normcore/dtype.h"

namespace normcore::cpu {

// Loops read and write more arrays than a compiler cares to compare: none of them overlap.
#if defined(__GNUC__) && !defined(__clang__)
#define NORMCORE_APART _Pragma("GCC ivdep")
#else
#define NORMCORE_APART
#endif

template <class F>
[[gnu::always_inline]] inline void each_cell_here(Index n, const F& f) {
  const F own = f;  // nothing that a store could change
  NORMCORE_APART
  for (Index cell = 0; cell < n; ++cell) own(cell);
}
#undef NORMCORE_APART

template <class F>
[[gnu::noinline]] void each_cell_by_least(Index n, const F& f) {
  each_cell_here(n, f);
}
#ifdef __x86_64__
#ifdef __clang__
#define NORMCORE_AVX512 "avx512f,avx512dq,avx512vl"
#else
#define NORMCORE_AVX512 "avx512f,avx512dq,avx512vl,prefer-vector-width=512"
#endif
template <class F>
[[gnu::noinline, gnu::target("avx2")]] void each_cell_by_avx2(Index n, const F& f) {
  each_cell_here(n, f);
}
template <class F>
[[gnu::noinline, gnu::target(NORMCORE_AVX512)]] void each_cell_by_avx512(Index n, const F& f) {
  each_cell_here(n, f);
}
#undef NORMCORE_AVX512
#endif

// f(cell), which is to be inlined, for [0, n), in vectors of so many bytes.
template <class F>
void each_cell([[maybe_unused]] Index vector_bytes, Index n, const F& f) {
  if (n == 1) return f(Index(0));  // small calls are counted in nanoseconds
#ifdef __x86_64__
  if (vector_bytes == 64) return each_cell_by_avx512(n, f);
  if (vector_bytes == 32) return each_cell_by_avx2(n, f);
#endif
  each_cell_by_least(n, f);
}

}  // namespace normcore::cpu
