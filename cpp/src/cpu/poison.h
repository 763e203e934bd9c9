// What AddressSanitizer is told of scratch memory, which a workspace hands out from large chunks:
// only what is taken may be touched, to the byte, and something out of bounds lies behind it. What
// is taken holds NaNs, so that reading what was never written shows. Nothing of it is in other
// builds.
#pragma once

#include <cstddef>
#include <cstring>

#if defined(__SANITIZE_ADDRESS__)
#define NORMCORE_POISON 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define NORMCORE_POISON 1
#endif
#endif
#if defined(NORMCORE_POISON)
#include <sanitizer/asan_interface.h>
#endif

namespace normcore::cpu {

#if defined(NORMCORE_POISON)
// Out of bounds behind every array.
inline constexpr std::size_t kRedZone = 64;

inline void poison(const void* p, std::size_t bytes) {
  if (p) __asan_poison_memory_region(p, bytes);
}
inline void unpoison(void* p, std::size_t bytes) {
  if (!p) return;
  __asan_unpoison_memory_region(p, bytes);
  std::memset(p, 0xff, bytes);
}
#else
inline constexpr std::size_t kRedZone = 0;

inline void poison(const void*, std::size_t) {}
inline void unpoison(void*, std::size_t) {}
#endif

}  // namespace normcore::cpu
