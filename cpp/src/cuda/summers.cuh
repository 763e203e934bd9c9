// Who works on the entries of small tables: a thread alone, or the lanes of a warp that sum.
#pragma once

#include "cuda/geometry.cuh"

namespace normcore::cuda {

inline constexpr int kSolveThreads = 128;

// The entry that this thread alone works on.
__device__ inline Index my_cell() { return Index(blockIdx.x) * blockDim.x + threadIdx.x; }

// The threads that sum for one entry: 32 or 1, by the number of terms.
struct Summers {
  int lanes;
  explicit Summers(Index terms) : lanes(terms < 32 ? 1 : 32) {}

  __device__ Index entry() const { return my_cell() / lanes; }
  __device__ int lane() const { return int(threadIdx.x) % lanes; }
  template <class... D>
  __device__ void sum(D&... v) const {
    if (lanes == 1) return;
    for (int d = 16; d > 0; d /= 2) ((v += __shfl_xor_sync(0xffffffffu, v, d)), ...);
  }
};

}  // namespace normcore::cuda
