// The ladder of the row kernels: how many threads share a row, from the length of the row and the
// size of its elements alone, so that the bits of a row do not depend on how many there are.
#pragma once

#include <cstdint>

namespace normcore::cuda {

struct RowPolicy {
  int packs = 0;           // of 16 bytes that a thread holds of each operand: 1, 2, 4 or 8
  int threads = 0;         // of a block for one row
  int rows_per_block = 0;  // side by side; 1 where blocks of a cluster share a row
  int cluster = 0;         // blocks for one row

  int block_threads() const { return threads * rows_per_block; }
  explicit operator bool() const { return packs > 0; }
};

// `packs_of_row` counts the packs that a row of any alignment may touch. `most_packs` is what the
// kernel can hold per thread. False where no ladder step holds the row: it is to be streamed.
RowPolicy row_policy(std::int64_t packs_of_row, int most_packs, int most_cluster);

}  // namespace normcore::cuda
