// The arrays that benchmarks work on.
#pragma once

#include <memory>
#include <vector>

#include "normcore/tensor.h"

namespace normcore::bench {

// Memory of some elements, filled with numbers from 0.5 to 1.5 and aligned as large arrays of NumPy
// are: 16 bytes behind a cache line.
class Memory {
 public:
  Memory(Index elements, DType dtype);
  char* get() const { return static_cast<char*>(data_.get()) + 16; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(get());
  }

 private:
  std::unique_ptr<void, void (*)(void*)> data_;
};

// A contiguous view.
Tensor view(void* data, DType dtype, const std::vector<Index>& shape);

Index count(const std::vector<Index>& shape);

}  // namespace normcore::bench
