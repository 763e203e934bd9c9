// The row family: a row is read once, stays in registers, and gives its statistics, its solved
// coefficients and its result. Layer and RMS normalization; a row is one cell of the plan.
//
// kWhole: all rows begin on a boundary of 16 bytes and are whole packs, and so are the parameters;
// no lane looks at single elements. kCluster: several blocks share a row.
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

// Parameters by element: both of the elements' type, where `narrow` says so, or of its compute
// type.
struct RowParameters {
  ElementValues weight, bias;
  double weight_offset;
  bool narrow;
};

struct RowsForward {
  Index rows;
  int n;
  double inverse_n;
  RowsIn x, residual;  // residual.data null: none
  RowsOut y, h;
  RowParameters parameters;
  StatisticsColumns out;
};

// Statistics that a forward call left, `step` apart. mean null: none.
struct SavedStatistics {
  const double* mean;
  const double* var;
  Index step;
};

template <class C>
struct RowsBackward {
  Index rows;
  int n;
  double inverse_n;
  RowsIn dy, x, dh;  // dh.data null: none
  RowsOut dx;
  RowParameters parameters;
  SavedStatistics saved;
  C* dweight;  // [blocks, n]: every block's part; null: not wanted
  C* dbias;
};

// What a thread holds of a row: packs team.size() apart.
template <class T, int P, bool kWhole>
struct RowPacks {
  using C = Compute<T>;
  static constexpr int V = kPack<T>;
  Pack<T> pack[P];

  // The first element of pack p.
  __device__ static int at(int p, const Team& team) { return (p * team.size() + team.index()) * V; }
  // Zeros beyond the end. kStream: read for the last time.
  template <bool kStream = true>
  __device__ void load(const T* row, int n, const Team& team) {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      if constexpr (kWhole) {
        pack[p] = {};
        load_words<kStream>(row + at(p, team), at(p, team) < n, pack[p].bits);
      } else {
        pack[p] = load_pack(row, at(p, team), n);
      }
    }
  }
  // The same in two steps: begun, and when the copies are there, taken from where they are.
  // `slots`: P packs for each thread of the block.
  __device__ static void begin_load(uint4* slots, const T* row, int n, const Team& team) {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      copy_words_async(&slots[p * blockDim.x + threadIdx.x], row + at(p, team), at(p, team) < n);
    }
  }
  __device__ void take(const uint4* slots) {
#pragma unroll
    for (int p = 0; p < P; ++p) pack[p].bits = slots[p * blockDim.x + threadIdx.x];
  }
  __device__ void store(T* row, int n, const Team& team) const {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      if constexpr (kWhole) {
        if (at(p, team) < n) store_words(row + at(p, team), pack[p].bits);
      } else {
        store_pack_by_warp(row, at(p, team), n, pack[p], team.lanes());
      }
    }
  }
  // f(p, values, left) for each pack that has elements of the row: the first `left` of them, or all
  // of whole packs.
  template <class F>
  __device__ void each_pack(int n, const Team& team, F f) const {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int left = n - at(p, team);
      if (left <= 0) continue;
      C v[V];
      pack[p].widen(v);
      f(p, v, left);
    }
  }
  // f(value) for all elements.
  template <class F>
  __device__ void each(int n, const Team& team, F f) const {
    each_pack(n, team, [&](int, const C(&v)[V], int left) {
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if (kWhole || e < left) f(v[e]);
      }
    });
  }
  // f(value) for all elements, and for the zeros beyond them.
  template <class F>
  __device__ void each_and_zeros(F f) const {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      C v[V];
      pack[p].widen(v);
#pragma unroll
      for (int e = 0; e < V; ++e) f(v[e]);
    }
  }
};

// Statistics of `count` elements that a team holds, and the centre that they count from.
// each(f) calls f(value) for this thread's share, each_and_zeros(f) also for zeros that it holds
// beyond them; a team that is not `active` has none.
template <bool kRaw, class C, class Each, class EachAndZeros>
__device__ Stats held_statistics(Each each, EachAndZeros each_and_zeros, double count,
                                 double inverse_count, bool active, const Team& team, int& phase,
                                 C& center) {
  center = 0;
  double squares, rest = 0;
  bool safe;
  if constexpr (kRaw) {
    C sum[1] = {0};
    each_and_zeros([&](C v) { sum[0] = fused(v, v, sum[0]); });
    team_sum(sum, team, phase);
    safe = squares_are_safe(sum[0]);
    squares = double(sum[0]);
  } else {
    C sum[1] = {0};
    each_and_zeros([&](C v) { sum[0] += v; });
    team_sum(sum, team, phase);
    center = C(double(sum[0]) * inverse_count);
    C sums[2] = {0, 0};  // of the deviations and of their squares
    each([&](C v) {
      const C d = v - center;
      sums[0] += d;
      sums[1] = fused(d, d, sums[1]);
    });
    team_sum(sums, team, phase);
    safe = squares_are_safe(sums[1]);
    squares = double(sums[1]);
    rest = double(sums[0]) * inverse_count;
  }
  // Rare, and dear: but all teams that wait for each other must do the same.
  const bool unsafe = active && !safe;
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
  const double var = squares * inverse_count - rest * rest;
  C counted;
  Stats s = counted_from_center<kRaw>(double(center) + rest, var < 0 ? 0 : var, count, &counted);
  // In float64 the sum above has lost what the mean has below its last place.
  if (!kRaw) s.mean = (double(center) - double(counted)) + rest;
  center = counted;
  return s;
}

// Of a row of n.
template <bool kRaw, class T, int P, bool kWhole>
__device__ Stats row_statistics(const RowPacks<T, P, kWhole>& x, int count, double inverse_count,
                                int n, const Team& team, int& phase, Compute<T>& center) {
  return held_statistics<kRaw>([&](auto f) { x.each(n, team, f); },
                               [&](auto f) { x.each_and_zeros(f); }, count, inverse_count, n > 0,
                               team, phase, center);
}

// A team of this block, as the kernel takes it.
template <bool kCluster>
__device__ Team here(Team team) {
  team.scratch = shared_memory();
  if (!kCluster) team.log_cluster = 0;
  return team;
}

template <class Method, class T, int P, bool kWhole, bool kCluster>
__global__ void __launch_bounds__(512)
    rows_forward(RowsForward a, typename Method::Params params, Team shape) {
  using C = Compute<T>;
  constexpr int V = kPack<T>;
  const Team team = here<kCluster>(shape);
  int phase = 0;
  const Index row = first_row(team);
  // All threads stay for the barriers: a team beyond the last row works on nothing.
  const int n = row < a.rows ? a.n : 0;
  const Index r = row < a.rows ? row : 0;
  RowPacks<T, P, kWhole> x;
  x.load(a.x.template row<T>(r), n, team);
  if (a.residual.data) {
    RowPacks<T, P, kWhole> other;
    other.load(a.residual.template row<T>(r), n, team);
#pragma unroll
    for (int p = 0; p < P; ++p) {
      C v[V], w[V];
      x.pack[p].widen(v);
      other.pack[p].widen(w);
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] += w[e];
      x.pack[p] = Pack<T>::narrowed(v);
    }
    x.store(a.h.template row<T>(r), n, team);
  }
  C center;
  const Stats stats[1] = {row_statistics<Method::raw>(x, a.n, a.inverse_n, n, team, phase, center)};
  const Coef f = Method::coefficients(stats, params, 0);
  if (a.out && row < a.rows && team.index() == 0) {
    write_statistics(a.out, row, double(center) + stats[0].mean, stats[0].var,
                     Method::rstd(stats[0], params, 0));
  }
  const C scale = C(f.a), shift = C(f.b);
  auto apply = [&]<class W>(W) {
    const C offset = C(a.parameters.weight_offset);
    x.each_pack(n, team, [&](int p, C(&v)[V], int) {
      C weight[V], bias[V];
      load_parameters<kWhole, W>(a.parameters.weight, x.at(p, team), n, weight);
      load_parameters<kWhole, W>(a.parameters.bias, x.at(p, team), n, bias);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        v[e] = fused(weight[e] + offset, fused(scale, v[e] - center, shift), bias[e]);
      }
      x.pack[p] = Pack<T>::narrowed(v);
    });
  };
  if (a.parameters.narrow) {
    apply(T{});
  } else {
    apply(C{});
  }
  x.store(a.y.template row<T>(r), n, team);
  // The blocks of a cluster read each other's shared memory: none may leave before the last.
  if (kCluster) cluster_barrier();
}

// Shared memory of rows_backward beyond the team's. First, of whole rows, what is on its way: x and
// dy of the next ones, and dh; in the end, where several teams of a block have gradients of the
// parameters, a table of rows of warps, or of teams that are larger.
template <class C>
int backward_bytes(int log_threads, int block_threads, int n, int packs, bool has_dh) {
  const int groups = block_threads >> (log_threads < 5 ? 5 : log_threads);
  const int table = groups > 1 ? groups * n * int(sizeof(C)) : 0;
  return std::max(table, (has_dh ? 3 : 2) * packs * block_threads * 16);
}

// The sum over the teams of a block of what each holds by element of a row, in a fixed order: first
// over the teams of a warp, then over warps, or teams that are larger, through shared memory.
template <class T, int P>
__device__ void sum_over_teams(Compute<T> (&v)[P * kPack<T>], int n, const Team& team,
                               Compute<T>* table, Compute<T>* out) {
  using C = Compute<T>;
  constexpr int V = kPack<T>;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
    if (d < team.lanes()) continue;
#pragma unroll
    for (int j = 0; j < P * V; ++j) v[j] += __shfl_xor_sync(0xffffffffu, v[j], d);
  }
  const int log_group = team.log_threads < 5 ? 5 : team.log_threads;
  const int groups = int(blockDim.x) >> log_group, group = int(threadIdx.x) >> log_group;
  C* to = groups > 1 ? table + group * n : out;
  if (int(threadIdx.x & ((1 << log_group) - 1)) < team.threads()) {  // the first team of a warp
#pragma unroll
    for (int p = 0; p < P; ++p) {
      const int first = RowPacks<T, P, true>::at(p, team);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if (first + e < n) to[first + e] = v[p * V + e];
      }
    }
  }
  if (groups == 1) return;
  __syncthreads();
  for (int i = int(threadIdx.x); i < n; i += int(blockDim.x)) {
    C sum = table[i];
    for (int g = 1; g < groups; ++g) sum += table[g * n + i];
    out[i] = sum;
  }
  __syncthreads();
}

// Teams walk the rows with the stride of the grid. Each block sums its rows' gradients of the
// parameters, in registers and then over its teams; `sum_parameter_rows` adds up the blocks. What
// is not centred has no bias.
template <class Method, class T, int P, bool kWhole, bool kCluster>
__global__ void __launch_bounds__(512)
    rows_backward(RowsBackward<Compute<T>> a, typename Method::Params params, Team shape) {
  using C = Compute<T>;
  constexpr int V = kPack<T>;
  using Packs = RowPacks<T, P, kWhole>;
  const Team team = here<kCluster>(shape);
  int phase = 0;
  const int teams = team.teams();
  const Index block = Index(blockIdx.x >> team.log_cluster);
  const Index stride = Index(gridDim.x >> team.log_cluster) * teams;
  // A thread has the same columns of all rows.
  C weight[P * V], dweight[P * V], dbias[P * V];
  auto load_weights = [&]<class W>(W) {
#pragma unroll
    for (int p = 0; p < P; ++p) {
      C w[V];
      load_parameters<kWhole, W>(a.parameters.weight, Packs::at(p, team), a.n, w);
#pragma unroll
      for (int e = 0; e < V; ++e) weight[p * V + e] = w[e] + C(a.parameters.weight_offset);
    }
  };
  if (a.parameters.narrow) {
    load_weights(T{});
  } else {
    load_weights(C{});
  }
#pragma unroll
  for (int j = 0; j < P * V; ++j) dweight[j] = dbias[j] = 0;

  auto* x_slots = reinterpret_cast<uint4*>(team.scratch + Team::kDoubles);
  uint4* dy_slots = x_slots + P * blockDim.x;
  uint4* dh_slots = dy_slots + P * blockDim.x;
  auto begin_row = [&](Index row) {
    const int n = row < a.rows ? a.n : 0;
    const Index r = row < a.rows ? row : 0;
    Packs::begin_load(x_slots, a.x.template row<T>(r), n, team);
    Packs::begin_load(dy_slots, a.dy.template row<T>(r), n, team);
    end_of_copies();
  };
  if (kWhole) begin_row(block * teams + team.number());
  for (Index first = block * teams; first < a.rows; first += stride) {
    const Index row = first + team.number();
    const bool active = row < a.rows;
    const int n = active ? a.n : 0;
    const Index r = active ? row : 0;
    Packs x, dy;
    if constexpr (kWhole) {
      wait_for_copies<0>();
      x.take(x_slots);
      dy.take(dy_slots);
      if (a.dh.data) Packs::begin_load(dh_slots, a.dh.template row<T>(r), n, team);
      end_of_copies();
      // The next row is on its way while this one is worked on.
      begin_row(row + stride);
    } else {
      x.load(a.x.template row<T>(r), n, team);
      dy.load(a.dy.template row<T>(r), n, team);
    }

    Stats stats[1];
    C center = 0;
    if (a.saved.mean) {
      stats[0] = counted_from_center<Method::raw>(
          a.saved.mean[r * a.saved.step], a.saved.var[r * a.saved.step], double(a.n), &center);
    } else {
      stats[0] = row_statistics<Method::raw>(x, a.n, a.inverse_n, n, team, phase, center);
    }
    const Coef f = Method::coefficients(stats, params, 0);
    const double unit = unit_of(f.a);
    const C unit_c = C(unit), a_c = C(f.a), b_c = C(f.b);
    C sums[2] = {0, 0};  // dy * u and dy, with the weight in dy
    x.each_pack(n, team, [&](int p, const C(&x_i)[V], int left) {
      C dy_i[V];
      dy.pack[p].widen(dy_i);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if (!kWhole && e >= left) continue;
        const C d = x_i[e] - center, g = weight[p * V + e] * dy_i[e];
        sums[0] = fused(g, d * unit_c, sums[0]);
        sums[1] += g;
        if (a.dweight) {
          dweight[p * V + e] = fused(dy_i[e], fused(a_c, d, b_c), dweight[p * V + e]);
          if (!Method::raw) dbias[p * V + e] += dy_i[e];
        }
      }
    });
    team_sum(sums, team, phase);
    StatsGrad ds[1];
    NoGradients none;
    const double dy_u = double(sums[0]), dy_1 = double(sums[1]);
    Method::pullback(stats, params, 0, coefficient_gradient(1, dy_u, dy_1, unit), ds, none);
    const Share share = Share::by_element<Method::raw>(ds[0].var, dy_1, stats[0], f.a);
    const C q = C(share.q * inverse_of_unit(unit)), rest = C(share.r);

    Packs dh;
    if constexpr (kWhole) {
      wait_for_copies<1>();
    } else if (a.dh.data) {
      dh.load(a.dh.template row<T>(r), n, team);
    }
    x.each_pack(n, team, [&](int p, const C(&x_i)[V], int) {
      C dx[V];
      dy.pack[p].widen(dx);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const C u = (x_i[e] - center) * unit_c;
        // The product is rounded as in its sum, so that equal ones leave nothing.
        dx[e] = fused(a_c, weight[p * V + e] * dx[e] - rest, q * u);
      }
      if (a.dh.data) {
        C extra[V];
        if constexpr (kWhole) dh.pack[p].bits = dh_slots[p * blockDim.x + threadIdx.x];
        dh.pack[p].widen(extra);
#pragma unroll
        for (int e = 0; e < V; ++e) dx[e] += extra[e];
      }
      dy.pack[p] = Pack<T>::narrowed(dx);
    });
    dy.store(a.dx.template row<T>(r), n, team);
  }

  if (a.dweight) {
    if (kWhole) {  // the table lies where rows were to come
      wait_for_copies<0>();
      __syncthreads();
    }
    C* table = reinterpret_cast<C*>(team.scratch + Team::kDoubles);
    sum_over_teams<T, P>(dweight, a.n, team, table, a.dweight + block * a.n);
    if constexpr (!Method::raw) {
      sum_over_teams<T, P>(dbias, a.n, team, table, a.dbias + block * a.n);
    }
  }
  if (kCluster) cluster_barrier();
}

// out[j] = sum over the rows of a table [rows, n], each column in an order that rows alone decides;
// blockIdx.y: which of the two. A block takes 32 columns; its warps take every kSumWarps-th row.
inline constexpr int kSumWarps = 8;

template <class C>
struct ParameterSums {
  const C* table;
  Column out;
};
template <class C>
__global__ void sum_parameter_rows(ParameterSums<C> weight, ParameterSums<C> bias, Index rows,
                                   Index n) {
  double* sums = shared_memory();      // [kSumWarps, 32]
  const bool first = blockIdx.y == 0;  // a reference to either would put both into local memory
  const C* table = first ? weight.table : bias.table;
  const Column out{first ? weight.out.data : bias.out.data,
                   first ? weight.out.dtype : bias.out.dtype,
                   first ? weight.out.stride : bias.out.stride};
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const Index j = Index(blockIdx.x) * 32 + lane;
  double sum = 0;
  if (out.data && j < n) {
    for (Index r = warp; r < rows; r += kSumWarps) sum += double(table[r * n + j]);
  }
  sums[warp * 32 + lane] = sum;
  __syncthreads();
  if (out.data && warp == 0 && j < n) {
    for (int w = 1; w < kSumWarps; ++w) sum += sums[w * 32 + lane];
    put(out, j, sum);
  }
}

}  // namespace normcore::cuda
