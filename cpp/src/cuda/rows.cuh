// The row family: a row is read once, stays in registers, and gives its statistics, its solved
// coefficients and its result. Layer and RMS normalization; a row is one cell of the plan.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/reduce.cuh"
#include "pipeline/step.h"

namespace normcore::cuda {

// Rows of one operand, `stride` elements apart.
struct RowsIn {
  const void* data;
  Index stride;
  template <class T>
  __device__ const T* row(Index r) const {
    return static_cast<const T*>(data) + r * stride;
  }
};
struct RowsOut {
  void* data;
  Index stride;
  template <class T>
  __device__ T* row(Index r) const {
    return static_cast<T*>(data) + r * stride;
  }
};

struct RowStatistics {
  double* mean;
  double* var;
  double* rstd;
};

template <class C>
struct RowsForward {
  Index rows, n;
  RowsIn x, residual;  // residual.data null: none
  RowsOut y, h;
  const C* weight;  // [n]
  const C* bias;
  RowStatistics out;  // null: not wanted
};

template <class C>
struct RowsBackward {
  Index rows, n;
  RowsIn dy, x, dh;  // dh.data null: none
  RowsOut dx;
  const C* weight;
  const double* mean;  // of the forward call; null: from x
  const double* var;
  C* dweight;  // [blocks, n]: every block's part; null: not wanted
  C* dbias;
};

// What a thread holds of a row: packs team.size() apart.
template <class T, int P>
struct RowPacks {
  Pack<T> pack[P];

  __device__ void load(const T* row, Index n, const Team& team) {
#pragma unroll
    for (int p = 0; p < P; ++p) pack[p] = load_pack(row, at(p, team), n);
  }
  __device__ void store(T* row, Index n, const Team& team) const {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      store_pack_by_warp(row, at(p, team), n, pack[p], team.lanes());
    }
  }
  // The first element of pack p.
  __device__ static Index at(int p, const Team& team) {
    return Index(p * team.size() + team.index()) * kPack<T>;
  }
};

// f(pack, element of the pack, place in the row) for what a thread holds of a row of n.
template <class T, int P, class F>
__device__ void for_held(Index n, const Team& team, F f) {
#pragma unroll
  for (int p = 0; p < P; ++p) {
    const Index first = RowPacks<T, P>::at(p, team);
#pragma unroll
    for (int e = 0; e < kPack<T>; ++e) {
      const Index i = first + e;
      if (i < n) f(p, e, i);
    }
  }
}

// Statistics of `count` elements that a team holds, and the centre that they count from. each(f)
// calls f(value) for this thread's share; a team that is not `active` has none.
template <bool kRaw, class C, class Each>
__device__ Stats held_statistics(Each each, Index count, bool active, const Team& team, int& phase,
                                 C& center) {
  center = 0;
  if constexpr (!kRaw) {
    C sum[1] = {0};
    each([&](C v) { sum[0] += v; });
    team_sum(sum, team, phase);
    center = C(double(sum[0]) / double(count));
  }
  C sums[2] = {0, 0};  // of the deviations and of their squares
  each([&](C v) {
    const C d = v - center;
    sums[0] += d;
    sums[1] += d * d;
  });
  team_sum(sums, team, phase);
  double squares = double(sums[1]);
  // Rare, and dear: but all teams that wait for each other must do the same.
  const bool unsafe = active && !squares_are_safe(sums[1]);
  if (any_in_reach(unsafe, team)) {
    double wide[1] = {0};
    // float64 has room for the square of any float; its own extremes are scaled by a power of two.
    const double unit = sizeof(C) == 4 ? 1 : squares > 1 ? 0x1p-600 : 0x1p600;
    each([&](C v) {
      const double d = (double(v) - double(center)) * unit;
      wide[0] += d * d;
    });
    team_sum(wide, team, phase);
    if (unsafe) squares = wide[0] / unit / unit;
  }
  const double rest = kRaw ? 0 : double(sums[0]) / double(count);
  const double var = squares / double(count) - rest * rest;
  return counted_from_center<kRaw>(double(center) + rest, var < 0 ? 0 : var, double(count),
                                   &center);
}

// Of a row of n.
template <bool kRaw, class T, int P>
__device__ Stats row_statistics(const RowPacks<T, P>& x, Index count, Index n, const Team& team,
                                int& phase, Compute<T>& center) {
  auto each = [&](auto f) {
    for_held<T, P>(n, team, [&](int p, int e, Index) { f(widen(x.pack[p].at[e])); });
  };
  return held_statistics<kRaw>(each, count, n > 0, team, phase, center);
}

template <class Method, class T, int P>
__global__ void __launch_bounds__(512)
    rows_forward(RowsForward<Compute<T>> a, typename Method::Params params, Team team) {
  using C = Compute<T>;
  constexpr int V = kPack<T>;
  team.scratch = shared_memory();
  int phase = 0;
  const Index row = first_row(team);
  // All threads stay for the barriers: a team beyond the last row works on nothing.
  const Index n = row < a.rows ? a.n : 0;
  const Index r = row < a.rows ? row : 0;
  const T* x_row = a.x.template row<T>(r);
  RowPacks<T, P> x;
  x.load(x_row, n, team);
  if (a.residual.data) {
    RowPacks<T, P> other;
    other.load(a.residual.template row<T>(r), n, team);
    for_held<T, P>(n, team, [&](int p, int e, Index) {
      x.pack[p].at[e] = narrow<T>(widen(x.pack[p].at[e]) + widen(other.pack[p].at[e]));
    });
    x.store(a.h.template row<T>(r), n, team);
  }
  C center;
  const Stats stats[1] = {row_statistics<Method::raw>(x, a.n, n, team, phase, center)};
  const Coef f = Method::coefficients(stats, params, 0);
  if (row < a.rows && team.index() == 0 && a.out.mean) {
    a.out.mean[row] = double(center) + stats[0].mean;
    a.out.var[row] = stats[0].var;
    a.out.rstd[row] = Method::rstd(stats[0], params, 0);
  }
  const C scale = C(f.a), shift = C(f.b);
#pragma unroll
  for (int p = 0; p < P; ++p) {
    C weight[V], bias[V];
    load_parameters(a.weight, x.at(p, team), n, weight);
    load_parameters(a.bias, x.at(p, team), n, bias);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      const C v = scale * (widen(x.pack[p].at[e]) - center) + shift;
      x.pack[p].at[e] = narrow<T>(weight[e] * v + bias[e]);
    }
  }
  x.store(a.y.template row<T>(r), n, team);
  // The blocks of a cluster read each other's shared memory: none may leave before the last.
  if (team.cluster > 1) cluster_barrier();
}

// Teams walk the rows with the stride of the grid. Each block sums its rows' gradients of the
// parameters, in registers and then over its teams; `sum_rows` adds up the blocks.
template <class Method, class T, int P>
__global__ void __launch_bounds__(512)
    rows_backward(RowsBackward<Compute<T>> a, typename Method::Params params, Team team) {
  using C = Compute<T>;
  constexpr int V = kPack<T>;
  team.scratch = shared_memory();
  int phase = 0;
  const int teams = int(blockDim.x) / team.threads, my_team = int(threadIdx.x) / team.threads;
  const Index block = Index(blockIdx.x) / team.cluster;
  const Index blocks = Index(gridDim.x) / team.cluster;
  C dweight[P * V], dbias[P * V];
#pragma unroll
  for (int j = 0; j < P * V; ++j) dweight[j] = dbias[j] = 0;

  for (Index first = block * teams; first < a.rows; first += blocks * teams) {
    const Index row = first + my_team;
    const bool active = row < a.rows;
    const Index n = active ? a.n : 0, r = active ? row : 0;
    RowPacks<T, P> x, dy;
    x.load(a.x.template row<T>(r), n, team);
    dy.load(a.dy.template row<T>(r), n, team);

    Stats stats[1];
    C center = 0;
    if (a.mean) {
      stats[0] = counted_from_center<Method::raw>(a.mean[r], a.var[r], double(a.n), &center);
    } else {
      stats[0] = row_statistics<Method::raw>(x, a.n, n, team, phase, center);
    }
    const Coef f = Method::coefficients(stats, params, 0);
    const double unit = unit_of(f.a);
    const C unit_c = C(unit), a_c = C(f.a), b_c = C(f.b);
    auto inside = [&](int p, int e) { return x.at(p, team) + e < n; };
    // Beyond the row dy is zero, and times dy it must stay zero.
    auto deviation = [&](int p, int e) {
      return inside(p, e) ? widen(x.pack[p].at[e]) - center : C(0);
    };
    C sums[2] = {0, 0};  // dy * u and dy, with the weight in dy
#pragma unroll
    for (int p = 0; p < P; ++p) {
      C weight[V];
      load_parameters(a.weight, x.at(p, team), n, weight);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const C g = weight[e] * widen(dy.pack[p].at[e]);
        sums[0] += g * (deviation(p, e) * unit_c);
        sums[1] += g;
      }
    }
    team_sum(sums, team, phase);
    StatsGrad ds[1];
    NoGradients none;
    const double dy_u = double(sums[0]), dy_1 = double(sums[1]);
    Method::pullback(stats, params, 0, coefficient_gradient(1, dy_u, dy_1, unit), ds, none);
    const Share share = Share::by_element<Method::raw>(ds[0].var, dy_1, stats[0], f.a);
    const C q = C(share.q / unit), rest = C(share.r);

    RowPacks<T, P> dh;
    if (a.dh.data) dh.load(a.dh.template row<T>(r), n, team);
#pragma unroll
    for (int p = 0; p < P; ++p) {
      C weight[V];
      load_parameters(a.weight, x.at(p, team), n, weight);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const C dy_i = widen(dy.pack[p].at[e]), d = deviation(p, e);
        if (a.dweight && inside(p, e)) {  // a team without a row has no finite coefficients
          dweight[p * V + e] += dy_i * (a_c * d + b_c);
          dbias[p * V + e] += dy_i;
        }
        C dx = a_c * (weight[e] * dy_i - rest) + q * (d * unit_c);
        if (a.dh.data) dx += widen(dh.pack[p].at[e]);
        dy.pack[p].at[e] = narrow<T>(dx);
      }
    }
    dy.store(a.dx.template row<T>(r), n, team);
  }

  if (a.dweight) {
    // Teams of a block in turn: a fixed order.
    C* block_dweight = a.dweight + block * a.n;
    C* block_dbias = a.dbias + block * a.n;
    for (int t = 0; t < teams; ++t) {
      if (t == my_team) {
        for_held<T, P>(a.n, team, [&](int p, int e, Index i) {
          block_dweight[i] = (t == 0 ? C(0) : block_dweight[i]) + dweight[p * V + e];
          block_dbias[i] = (t == 0 ? C(0) : block_dbias[i]) + dbias[p * V + e];
        });
      }
      __syncthreads();
    }
  }
  if (team.cluster > 1) cluster_barrier();
}

// out[j] = sum over the rows of a table [rows, n], each column in an order that rows alone decides.
// A block takes 32 columns; its warps take every kSumWarps-th row.
inline constexpr int kSumWarps = 8;

template <class C>
__global__ void sum_rows(const C* table, Index rows, Index n, double* out) {
  double* sums = shared_memory();  // [kSumWarps, 32]
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const Index j = Index(blockIdx.x) * 32 + lane;
  double sum = 0;
  if (j < n) {
    for (Index r = warp; r < rows; r += kSumWarps) sum += double(table[r * n + j]);
  }
  sums[warp * 32 + lane] = sum;
  __syncthreads();
  if (warp == 0 && j < n) {
    for (int w = 1; w < kSumWarps; ++w) sum += sums[w * 32 + lane];
    out[j] = sum;
  }
}

}  // namespace normcore::cuda
