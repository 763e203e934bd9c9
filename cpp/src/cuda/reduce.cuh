// Sums over the threads that share a row: a part of a warp, warps of a block, or the blocks of a
// cluster. The order is fixed, and every thread gets the same bits. What only a device has
// (barriers of a cluster, the shared memory of another block) is behind functions here.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <cstdint>

namespace normcore::cuda {

// The dynamic shared memory of the block.
__device__ inline double* shared_memory() {
#if defined(NORMCORE_SHARED_MEMORY)  // kernels run on the host, in the tests
  return NORMCORE_SHARED_MEMORY;
#else
  extern __shared__ double memory[];
  return memory;
#endif
}

__device__ inline int cluster_rank() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return int(cooperative_groups::this_cluster().block_rank());
#else
  return 0;
#endif
}
__device__ inline void cluster_barrier() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cooperative_groups::this_cluster().sync();
#endif
}
// Of all blocks of a cooperative launch.
__device__ inline void grid_barrier() {
#if defined(__CUDA_ARCH__)
  cooperative_groups::this_grid().sync();
#endif
}
// Where block `rank` of the cluster has what this block has at p in shared memory.
template <class T>
__device__ const T* of_block(T* p, int rank) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  return cooperative_groups::this_cluster().map_shared_rank(p, rank);
#else
  (void)rank;
  return p;
#endif
}

// The threads that share a row. Their number is a power of two, so that shifts take the place of
// divisions.
struct Team {
  int log_threads = 0;        // in this block
  int log_cluster = 0;        // blocks
  double* scratch = nullptr;  // shared: kMostSums values for each warp, twice, then a cluster's

  static constexpr int kMostSums = 2;
  static constexpr int kMostWarps = 32;
  static constexpr int kDoubles = (2 * kMostWarps + 2) * kMostSums;

  __device__ int threads() const { return 1 << log_threads; }
  __device__ int cluster() const { return 1 << log_cluster; }
  __device__ int warps() const { return 1 << (log_threads - 5); }  // of a team of whole warps
  __device__ int lanes() const { return log_threads < 5 ? 1 << log_threads : 32; }  // in a warp
  // This thread among those of its block, and of all blocks.
  __device__ int thread() const { return int(threadIdx.x) & (threads() - 1); }
  __device__ int index() const { return thread() + (log_cluster ? cluster_rank() : 0) * threads(); }
  __device__ int size() const { return 1 << (log_threads + log_cluster); }
  // This team among those of its block.
  __device__ int number() const { return int(threadIdx.x) >> log_threads; }
  __device__ int teams() const { return int(blockDim.x) >> log_threads; }
};

// The row of this thread's team where every team has one.
__device__ inline std::int64_t first_row(const Team& team) {
  return std::int64_t(blockIdx.x >> team.log_cluster) * team.teams() + team.number();
}

// Whether the flag, which all threads of a team agree on, is set in any team that shares barriers
// or a warp with this one.
__device__ inline bool any_in_reach(bool flag, const Team& team) {
  if (team.log_threads <= 5) return __any_sync(0xffffffffu, flag) != 0;
  if (team.threads() == int(blockDim.x)) return flag;
  return __syncthreads_or(flag) != 0;
}

struct Sum {
  template <class C>
  __device__ C operator()(C a, C b) const {
    return a + b;
  }
};
struct Largest {
  template <class C>
  __device__ C operator()(C a, C b) const {
    return a > b ? a : b;
  }
};

// Replaces v by the sums over the team, or what `join` makes of them. `phase` counts the calls:
// neighbours use different scratch, so that one barrier a call is enough.
template <int K, class C, class Join = Sum>
__device__ void team_sum(C (&v)[K], const Team& team, int& phase, Join join = {}) {
  static_assert(K <= Team::kMostSums);
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    if (d >= team.lanes()) continue;
#pragma unroll
    for (int k = 0; k < K; ++k) v[k] = join(v[k], __shfl_xor_sync(0xffffffffu, v[k], d));
  }
  if (team.log_threads > 5) {
    C* slots = reinterpret_cast<C*>(team.scratch + phase % 2 * Team::kMostWarps * Team::kMostSums);
    const int warp = int(threadIdx.x) / 32, lane = int(threadIdx.x) % 32, warps = team.warps();
    if (lane == 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) slots[warp * K + k] = v[k];
    }
    __syncthreads();
    // Every warp joins those of its team, a lane each.
    const int mine = (warp & -warps) + (lane & (warps - 1));
#pragma unroll
    for (int k = 0; k < K; ++k) v[k] = slots[mine * K + k];
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
      if (d >= warps) continue;
#pragma unroll
      for (int k = 0; k < K; ++k) v[k] = join(v[k], __shfl_xor_sync(0xffffffffu, v[k], d));
    }
  }
  if (team.log_cluster > 0) {
    C* slot = reinterpret_cast<C*>(team.scratch + 2 * Team::kMostWarps * Team::kMostSums +
                                   phase % 2 * Team::kMostSums);
    if (threadIdx.x == 0) {
#pragma unroll
      for (int k = 0; k < K; ++k) slot[k] = v[k];
    }
    cluster_barrier();
#pragma unroll
    for (int k = 0; k < K; ++k) {
      v[k] = of_block(slot, 0)[k];
      for (int b = 1; b < team.cluster(); ++b) v[k] = join(v[k], of_block(slot, b)[k]);
    }
  }
  ++phase;
}

}  // namespace normcore::cuda
