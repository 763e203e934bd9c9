// The ladder of the CUDA row kernels, which is decided on the host.
#include "cuda/policy.h"

#include <gtest/gtest.h>

namespace normcore::cuda {
namespace {

std::int64_t capacity(const RowPolicy& p) { return std::int64_t(p.packs) * p.threads * p.cluster; }

TEST(RowPolicies, HoldTheRowAndLittleMore) {
  for (const int most_packs : {2, 4, 8}) {
    for (std::int64_t packs = 1; packs <= 512 * most_packs * 16; ++packs) {
      const RowPolicy p = row_policy(packs, most_packs, 16);
      ASSERT_TRUE(p) << packs;
      EXPECT_GE(capacity(p), packs);
      EXPECT_LE(p.packs, most_packs);
      // Half the packs or half the threads would not do, but for the smallest teams.
      if (p.packs > 1) {
        EXPECT_LT(capacity(p) / 2, packs);
      }
      EXPECT_EQ(p.packs & (p.packs - 1), 0);
      EXPECT_EQ(p.threads & (p.threads - 1), 0);
      EXPECT_LE(p.block_threads(), 512);
      EXPECT_GE(p.block_threads(), 128);
      EXPECT_TRUE(p.cluster == 1 || p.rows_per_block == 1);
    }
  }
}

TEST(RowPolicies, GrowFromPartsOfAWarpToClusters) {
  EXPECT_EQ(row_policy(8, 8, 16).threads, 8);  // 64 elements of 16 bits
  EXPECT_EQ(row_policy(16, 8, 16).threads, 16);
  EXPECT_EQ(row_policy(96, 8, 16).threads, 32);   // 768
  EXPECT_EQ(row_policy(512, 8, 16).threads, 64);  // 4096
  EXPECT_EQ(row_policy(4096, 8, 16).cluster, 1);  // 32768
  EXPECT_EQ(row_policy(8192, 8, 16).cluster, 2);
  EXPECT_EQ(row_policy(32768, 8, 16).cluster, 8);  // 262144
}

TEST(RowPolicies, LeaveRowsTooLongForTheDeviceToTheStreamingKernels) {
  EXPECT_FALSE(row_policy(512 * 8 + 1, 8, 1));
  EXPECT_TRUE(row_policy(512 * 8 * 16, 8, 16));
  EXPECT_FALSE(row_policy(512 * 8 * 16 + 1, 8, 16));
}

}  // namespace
}  // namespace normcore::cuda
