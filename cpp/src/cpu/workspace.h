// Scratch memory of a thread: a stack of aligned arrays that is kept from call to call, so that
// steady-state calls allocate nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "cpu/poison.h"
#include "normcore/dtype.h"

namespace normcore::cpu {

class Workspace {
 public:
  static constexpr std::size_t kAlignment = 64;
  static constexpr std::size_t kFirstChunk = std::size_t(1) << 18;
  // What outlives a call, of all chunks together.
  static constexpr std::size_t kKept = std::size_t(1) << 25;

  // The calling thread's.
  static Workspace& local() {
    static thread_local Workspace instance;
    return instance;
  }

  // Has the first chunk ready.
  void warm() {
    if (chunks_.empty()) Scope(*this).take<char>(1);
  }

  // Everything taken while a Scope lives is given back at its end. It begins at a place in a chunk
  // and not at an address: one within it that began at the same place may have left another chunk
  // there.
  class Scope {
   public:
    explicit Scope(Workspace& w) : w_(w), chunk_(w.chunk_), used_(w.used()) {}
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;
    ~Scope() { w_.release(chunk_, used_); }

    template <class T>
    T* take(Index n) {
      return static_cast<T*>(w_.take(static_cast<std::size_t>(n) * sizeof(T)));
    }
    template <class T>
    T* take_filled(Index n, T value) {
      T* p = take<T>(n);
      for (Index i = 0; i < n; ++i) p[i] = value;
      return p;
    }

   private:
    Workspace& w_;
    std::size_t chunk_, used_;
  };

 private:
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, std::align_val_t(kAlignment)); }
  };
  struct Chunk {
    std::unique_ptr<std::byte, Free> data;
    std::size_t size;
  };

  void* take(std::size_t wanted) {
    const std::size_t bytes = (wanted + kAlignment - 1) / kAlignment * kAlignment + kRedZone;
    if (bytes > room()) make_room(bytes);
    void* p = next_;
    next_ += bytes;
    unpoison(p, wanted);
    return p;
  }
  std::size_t room() const { return static_cast<std::size_t>(end_ - next_); }
  // Of the current chunk.
  std::size_t used() const {
    return next_ ? static_cast<std::size_t>(next_ - chunks_[chunk_].data.get()) : 0;
  }

  // Goes on to the next chunk that is large enough.
  [[gnu::noinline]] void make_room(std::size_t bytes) {
    while (bytes > room() && chunk_ + 1 < chunks_.size()) go_to(chunk_ + 1);
    if (bytes <= room()) return;
    // Twice the last one, so that growing demands leave few chunks behind.
    std::size_t size = chunks_.empty() ? kFirstChunk : 2 * chunks_.back().size;
    if (size > kKept / 2) size = kKept / 2;
    if (size < bytes) size = bytes;
    auto* p = static_cast<std::byte*>(::operator new(size, std::align_val_t(kAlignment)));
    poison(p, size);
    chunks_.push_back({std::unique_ptr<std::byte, Free>(p), size});
    go_to(chunks_.size() - 1);
  }
  void go_to(std::size_t chunk) {
    chunk_ = chunk;
    next_ = chunks_[chunk].data.get();
    end_ = next_ + chunks_[chunk].size;
  }

  void release(std::size_t chunk, std::size_t used) {
    if constexpr (kRedZone > 0) poison_from(chunk, used);
    if (chunk == 0 && used == 0) return reset();
    if (chunk_ != chunk) go_to(chunk);
    next_ = chunks_[chunk].data.get() + used;
  }
  // What was taken behind the first `used` bytes of that chunk.
  void poison_from(std::size_t chunk, std::size_t used) const {
    for (std::size_t i = chunk; i <= chunk_ && i < chunks_.size(); ++i) {
      const std::byte* data = chunks_[i].data.get();
      const std::byte* first = data + (i == chunk ? used : 0);
      const std::byte* end = i == chunk_ ? next_ : data + chunks_[i].size;
      poison(first, static_cast<std::size_t>(end - first));
    }
  }
  // Nothing is in use any more.
  void reset() {
    std::size_t kept = 0;
    for (std::size_t i = chunks_.size(); i-- > 0;) {
      if (kept + chunks_[i].size <= kKept) {
        kept += chunks_[i].size;
      } else {
        chunks_.erase(chunks_.begin() + static_cast<std::ptrdiff_t>(i));
      }
    }
    if (!chunks_.empty()) return go_to(0);
    chunk_ = 0;
    next_ = end_ = nullptr;
  }

  std::vector<Chunk> chunks_;
  std::size_t chunk_ = 0;
  std::byte* next_ = nullptr;  // in chunk chunk_
  std::byte* end_ = nullptr;
};

}  // namespace normcore::cpu
