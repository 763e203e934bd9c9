// Scratch memory of a thread: a stack of aligned arrays that is kept from call to call, so that
// steady-state calls allocate nothing.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "normcore/dtype.h"

namespace normcore::cpu {

class Workspace {
 public:
  static constexpr std::size_t kAlignment = 64;
  static constexpr std::size_t kFirstChunk = std::size_t(1) << 18;
  // What outlives a call; larger chunks are given back.
  static constexpr std::size_t kKept = std::size_t(1) << 24;

  // The calling thread's.
  static Workspace& local() {
    static thread_local Workspace instance;
    return instance;
  }

  // Has the first chunk ready.
  void warm() {
    if (chunks_.empty()) Scope(*this).take<char>(1);
  }

  // Everything taken while a Scope lives is given back at its end.
  class Scope {
   public:
    explicit Scope(Workspace& w) : w_(w), chunk_(w.chunk_), used_(w.used_) {}
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

  void* take(std::size_t bytes) {
    bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    while (chunk_ < chunks_.size() && used_ + bytes > chunks_[chunk_].size) {
      ++chunk_;
      used_ = 0;
    }
    if (chunk_ == chunks_.size()) {
      const std::size_t size = bytes > kFirstChunk ? bytes : kFirstChunk;
      auto* p = static_cast<std::byte*>(::operator new(size, std::align_val_t(kAlignment)));
      chunks_.push_back({std::unique_ptr<std::byte, Free>(p), size});
      used_ = 0;
    }
    void* p = chunks_[chunk_].data.get() + used_;
    used_ += bytes;
    return p;
  }

  void release(std::size_t chunk, std::size_t used) {
    chunk_ = chunk;
    used_ = used;
    if (chunk == 0 && used == 0) {
      while (!chunks_.empty() && chunks_.back().size > kKept) chunks_.pop_back();
    }
  }

  std::vector<Chunk> chunks_;
  std::size_t chunk_ = 0, used_ = 0;
};

}  // namespace normcore::cpu
