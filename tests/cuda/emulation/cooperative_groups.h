// Blocks that wait for each other, on the host, for tests alone.
#pragma once

#include <cuda_runtime.h>

namespace cooperative_groups {

struct cluster_group {
  unsigned block_rank() const { return emulation::here->rank; }
  void sync() const { emulation::cluster_barrier(); }
  template <class T>
  T* map_shared_rank(T* p, int rank) const {
    const auto offset =
        reinterpret_cast<char*>(p) - reinterpret_cast<char*>(emulation::here->shared);
    return reinterpret_cast<T*>(reinterpret_cast<char*>(emulation::shared_of(unsigned(rank))) +
                                offset);
  }
};
inline cluster_group this_cluster() { return {}; }

struct grid_group {
  void sync() const { emulation::cluster_barrier(); }
};
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups
