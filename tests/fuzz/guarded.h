// Memory between two pages that nobody may touch: an array lies flush against one of them, so that
// a stray access past that end is a fault, whoever makes it and however it was compiled.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

namespace fuzz {

using Byte = unsigned char;

class Slot {
 public:
  static constexpr std::size_t kCapacity = std::size_t(1) << 22;

  Slot() {
    const std::size_t whole = kCapacity + 2 * page();
    void* p = mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) std::abort();
    begin_ = static_cast<Byte*>(p) + page();
    if (mprotect(begin_, kCapacity, PROT_READ | PROT_WRITE) != 0) std::abort();
  }
  Slot(const Slot&) = delete;  // mapped as long as the process lives
  Slot& operator=(const Slot&) = delete;

  Byte* begin() const { return begin_; }
  Byte* end() const { return begin_ + kCapacity; }

  // `bytes` of memory, flush with the end or else with the beginning. A page beyond their other
  // side is watched too.
  Byte* place(std::size_t bytes, bool at_end) {
    const std::size_t watched =
        std::min((bytes + page() - 1) / page() * page() + page(), kCapacity);
    window_ = at_end ? end() - watched : begin_;
    window_end_ = window_ + watched;
    std::memset(window_, 0x5c, watched);
    return at_end ? end() - bytes : begin_;
  }

  void remember() { before_.assign(window_, window_end_); }
  // What lay at p when remember() was called.
  const Byte* before(const Byte* p) const { return before_.data() + (p - window_); }
  bool watched(const Byte* p, std::size_t bytes) const {
    return p >= window_ && p + bytes <= window_end_;
  }
  bool unchanged() const { return std::memcmp(window_, before_.data(), before_.size()) == 0; }

 private:
  static std::size_t page() {
    static const auto size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return size;
  }

  Byte* begin_;
  Byte* window_ = nullptr;
  Byte* window_end_ = nullptr;
  std::vector<Byte> before_;
};

}  // namespace fuzz
