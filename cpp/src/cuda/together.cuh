// Tiles of a tensor that the second-level cache holds: both sweeps, and the small steps between
// them, in one launch of as many blocks as the device runs at once, which wait for each other. A
// block takes every so many tiles, and in the second sweep the last of them first. The steps are
// those of columns.cuh and solve.cuh.
#pragma once

#include "cuda/columns.cuh"
#include "cuda/solve.cuh"

namespace normcore::cuda {

__device__ inline Index threads_of_grid() { return Index(gridDim.x) * blockDim.x; }

// f(index) for the tiles of this block, in order and backwards.
template <class F>
__device__ void each_tile(unsigned tiles, F f) {
  for (unsigned i = blockIdx.x; i < tiles; i += gridDim.x) f(i);
}
template <class F>
__device__ void each_tile_backwards(unsigned tiles, F f) {
  if (blockIdx.x >= tiles) return;
  const unsigned left = (tiles - 1 - blockIdx.x) / gridDim.x;
  for (unsigned n = left + 1; n > 0; --n) f(blockIdx.x + (n - 1) * gridDim.x);
}

template <class Method, class T, bool kWhole>
__global__ void __launch_bounds__(kTileThreads)
    tiles_forward(Geometry g, TileShape shape, unsigned tiles, View x, View y, Summers by,
                  PoolShape pool, double* mean, double* m2, typename Method::Params params,
                  Source weight, Source bias, StatisticsColumns out, ForwardTable<Compute<T>> to) {
  using Tile = Tile<T, kWhole>;
  each_tile(tiles, [&](unsigned i) {
    moments_of_tile<Method::raw>(Tile(g, shape, i), g, x, mean, m2);
    __syncthreads();  // the next one's lie in the same memory
  });
  grid_barrier();
  for (Index e = by.entry(); e < pool.entries(); e += threads_of_grid() / by.lanes) {
    pool_and_solve_entry<Method>(by, g, pool, e, mean, m2, params, weight, bias, out, to);
  }
  grid_barrier();
  const Coefficients<Compute<T>> f{to.a, to.center, to.shift};
  each_tile_backwards(
      tiles, [&](unsigned i) { apply_tile(Tile(g, shape, i), g, x, y, f, nullptr, nullptr); });
}

// dweight and dbias where a channel has several coefficient cells; data null: not wanted, or the
// solver's.
template <class Method, class T, bool kWhole>
__global__ void __launch_bounds__(kTileThreads)
    tiles_backward(TileShape shape, unsigned tiles, View dy, View x, View dx, Team team,
                   GradientSolver<Method, Compute<T>> s, Summers by, Column dweight, Column dbias) {
  using Tile = Tile<T, kWhole>;
  const Geometry& g = s.g;
  const GradientTable<Compute<T>>& t = s.t;
  for (Index cell = my_index(); cell < g.coefficient_cells(); cell += threads_of_grid()) {
    solve_backward_of(cell, g, s.pools, s.params, s.weight, t);
  }
  grid_barrier();
  each_tile(tiles, [&](unsigned i) {
    sums_of_tile(Tile(g, shape, i), g, dy, x, t.center, t.unit_c, nullptr, s.dy_u, s.dy_1);
    __syncthreads();  // the next one's lie in the same memory
  });
  grid_barrier();
  team.scratch = shared_memory();
  int phase = 0;
  const Index entries = s.pools.shape[0].entries();
  for (Index first = Index(blockIdx.x) * team.teams(); first < entries;
       first += Index(gridDim.x) * team.teams()) {
    s.solve(team, first + team.number(), phase);
  }
  grid_barrier();
  for (Index k = by.entry(); (dweight.data || dbias.data) && k < g.cells;
       k += threads_of_grid() / by.lanes) {
    gradients_of_channel(by, k, g, t, s.sum_u, s.sum_1, dweight, dbias);
  }
  const GradientCoefficients<Compute<T>> f{t.p, ShiftsOnly<Method> ? nullptr : t.q, t.r, t.center,
                                           t.unit_c};
  each_tile_backwards(tiles, [&](unsigned i) {
    grad_of_tile<false>(Tile(g, shape, i), g, dy, x, View{}, dx, f, nullptr);
  });
}

}  // namespace normcore::cuda
