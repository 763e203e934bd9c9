// Who works on the entries of tables: a thread each, or the lanes of a warp that sum.
#pragma once

#include "cuda/geometry.cuh"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"

namespace normcore::cuda {

// A thread for each of n entries, and the entry of this one.
inline Launch one_each(Index n, int threads = 256) {
  return {ceil_div(n, Index(threads)), threads};
}
__device__ inline Index my_index() { return Index(blockIdx.x) * blockDim.x + threadIdx.x; }

inline constexpr int kSolveThreads = 128;

// The threads that sum for one entry: 32 or 1, by the number of terms; or other lanes of a warp.
struct Summers {
  int lanes;
  explicit Summers(Index terms) : lanes(terms < 32 ? 1 : 32) {}
  __device__ explicit Summers(const Team& team) : lanes(team.lanes()) {}

  __device__ Index entry() const { return my_index() / lanes; }
  __device__ int lane() const { return int(threadIdx.x) % lanes; }
  template <class... D>
  __device__ void sum(D&... v) const {
    for (int d = lanes / 2; d > 0; d /= 2) ((v += __shfl_xor_sync(0xffffffffu, v, d)), ...);
  }
};
inline Launch each_by(const Summers& by, Index n) { return one_each(n * by.lanes, kSolveThreads); }

}  // namespace normcore::cuda
