#include "cuda/policy.h"

namespace normcore::cuda {
namespace {

constexpr int kSmallestTeam = 8;    // threads: 128 bytes at a time of the shortest rows
constexpr int kLargestTeam = 512;   // of one block; two such blocks fit a multiprocessor
constexpr int kBlockThreads = 128;  // where teams are smaller

}  // namespace

RowPolicy row_policy(std::int64_t packs_of_row, int most_packs, int most_cluster) {
  RowPolicy p;
  for (int cluster = 1; cluster <= most_cluster; cluster *= 2) {
    for (int threads = cluster == 1 ? kSmallestTeam : kLargestTeam; threads <= kLargestTeam;
         threads *= 2) {
      // A team grows to a warp before its threads take more than one pack.
      const int packs = threads < 32 ? 1 : most_packs;
      if (packs_of_row > std::int64_t(packs) * threads * cluster) continue;
      p.packs = 1;
      while (std::int64_t(p.packs) * threads * cluster < packs_of_row) p.packs *= 2;
      p.threads = threads;
      p.rows_per_block = threads < kBlockThreads ? kBlockThreads / threads : 1;
      p.cluster = cluster;
      return p;
    }
  }
  return p;
}

}  // namespace normcore::cuda
