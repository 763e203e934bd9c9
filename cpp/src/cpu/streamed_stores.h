// Stores past the caches are not ordered with others: a thread waits for its own before anything
// tells another thread that they are done. Once, at the end of what it does: a wait after every
// tile, for all the memory that is on its way, costs batch norm of (32, 64, 56, 56) a sixth.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace normcore::cpu {

inline void settle_streamed_stores() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace normcore::cpu
