// Memory for large results. Fresh memory of the system comes page by page as it is written, which
// outweighs a kernel: results of 4 MiB and more ask for huge pages, as NumPy's arrays do.
#pragma once

#include <cstddef>
#include <cstdint>

#ifdef __linux__
#include <sys/mman.h>
#endif

namespace normcore::python {

inline constexpr std::size_t kHugeBytes = std::size_t{4} << 20;

inline void ask_for_huge_pages([[maybe_unused]] void* data, std::size_t bytes) {
  if (bytes < kHugeBytes) return;
#ifdef __linux__
  constexpr std::uintptr_t kPage = 4096;
  const auto first = (reinterpret_cast<std::uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const auto last = (reinterpret_cast<std::uintptr_t>(data) + bytes) & ~(kPage - 1);
  // No more than advice: where it is not taken nothing is lost.
  (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#endif
}

}  // namespace normcore::python
