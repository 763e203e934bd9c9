// Tiny kernels with a fault in each, and the same ones without: what the emulation takes for an
// order between threads is what a device takes for one.
#include <cooperative_groups.h>
#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "reports.h"

namespace {

double global[1024];

// Reports of one launch.
int races_of(unsigned grid, unsigned block, unsigned cluster, const std::function<void()>& kernel) {
  const int before = races::reports();
  emulation::run({dim3(grid), dim3(block), cluster, 4096}, kernel);
  return races::reports() - before;
}

double& mine() { return NORMCORE_SHARED_MEMORY[threadIdx.x]; }
double& of_thread(unsigned t) { return NORMCORE_SHARED_MEMORY[t]; }
double& result() { return global[blockIdx.x * blockDim.x + threadIdx.x]; }

TEST(Blocks, AreOrderedByBarriers) {
  EXPECT_EQ(races_of(3, 64, 1,
                     [] {
                       mine() = threadIdx.x;
                       __syncthreads();
                       result() = of_thread(63 - threadIdx.x);
                     }),
            0);
}
TEST(Blocks, NeedABarrierBetweenWriteAndRead) {
  EXPECT_GT(races_of(1, 64, 1,
                     [] {
                       mine() = threadIdx.x;
                       result() = of_thread(63 - threadIdx.x);
                     }),
            0);
}
TEST(Blocks, NeedABarrierBetweenReadAndWrite) {
  EXPECT_GT(races_of(1, 64, 1,
                     [] {
                       if (threadIdx.x == 0) of_thread(0) = 1;
                       __syncthreads();
                       result() = of_thread(0);
                       if (threadIdx.x == 0) of_thread(0) = 2;
                     }),
            0);
}
TEST(Blocks, AreOrderedByVotes) {
  EXPECT_EQ(races_of(1, 64, 1,
                     [] {
                       mine() = threadIdx.x;
                       __syncthreads_or(0);
                       result() = of_thread(63 - threadIdx.x);
                     }),
            0);
}
TEST(Warps, AreOrderedByBarriers) {
  EXPECT_EQ(races_of(1, 32, 1,
                     [] {
                       mine() = threadIdx.x;
                       __syncwarp();
                       result() = of_thread(31 - threadIdx.x);
                     }),
            0);
}
TEST(Warps, AreNotOrderedByShuffles) {
  EXPECT_GT(races_of(1, 32, 1,
                     [] {
                       mine() = threadIdx.x;
                       __shfl_xor_sync(~0u, 1, 1);
                       result() = of_thread(31 - threadIdx.x);
                     }),
            0);
}
TEST(Warps, AreNotOrderedWithEachOther) {
  EXPECT_GT(races_of(1, 64, 1,
                     [] {
                       mine() = threadIdx.x;
                       __syncwarp();
                       result() = of_thread(63 - threadIdx.x);
                     }),
            0);
}
TEST(Grids, DoNotOrderBlocks) {
  EXPECT_GT(races_of(2, 64, 1,
                     [] {
                       if (threadIdx.x == 5) global[7] = blockIdx.x;
                     }),
            0);
  EXPECT_GT(races_of(2, 64, 1,
                     [] {
                       if (threadIdx.x == blockIdx.x) global[8] = blockIdx.x;
                     }),
            0);
}
TEST(Grids, OrderLaunchesAndTheHost) {
  std::fill_n(global, 128, 0);
  EXPECT_EQ(races_of(2, 64, 1, [] { result() = 1; }), 0);
  EXPECT_EQ(races_of(2, 64, 1, [] { global[threadIdx.x + 64 * (1 - blockIdx.x)] += 1; }), 0);
  const int before = races::reports();
  for (int i = 0; i < 128; ++i) EXPECT_EQ(global[i], 2);
  EXPECT_EQ(races::reports(), before);
}
TEST(Grids, GiveEveryBlockSharedMemoryOfItsOwn) {
  EXPECT_EQ(races_of(4, 32, 1,
                     [] {
                       mine() = blockIdx.x;
                       result() = mine();
                     }),
            0);
}

// The first thread of each block leaves its rank for the other one.
void leave_rank() {
  if (threadIdx.x == 0) of_thread(0) = cooperative_groups::this_cluster().block_rank();
}
void take_rank_of_other() {
  const auto cluster = cooperative_groups::this_cluster();
  result() = *cluster.map_shared_rank(NORMCORE_SHARED_MEMORY, int(1 - cluster.block_rank()));
}
TEST(Clusters, AreOrderedByBarriers) {
  EXPECT_EQ(races_of(4, 64, 2,
                     [] {
                       leave_rank();
                       cooperative_groups::this_cluster().sync();
                       take_rank_of_other();
                       cooperative_groups::this_cluster().sync();
                     }),
            0);
}
TEST(Clusters, NeedABarrierBeforeTheyLeave) {
  EXPECT_GT(races_of(4, 64, 2,
                     [] {
                       leave_rank();
                       cooperative_groups::this_cluster().sync();
                       take_rank_of_other();
                     }),
            0);
}
TEST(Clusters, AreNotOrderedByABlocksBarrier) {
  EXPECT_GT(races_of(2, 64, 2,
                     [] {
                       leave_rank();
                       __syncthreads();
                       take_rank_of_other();
                       cooperative_groups::this_cluster().sync();
                     }),
            0);
}

}  // namespace
