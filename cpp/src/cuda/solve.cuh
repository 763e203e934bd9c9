// The small steps between the sweeps, on the device so that no call waits for the host: merge the
// pieces, pool the cells, ask the method, and the same way back. They run on tables of one entry
// per cell or pool; a warp, or for a short sum a thread, sums for each entry, in a fixed order.
#pragma once

#include "cuda/columns.cuh"
#include "cuda/summers.cuh"
#include "pipeline/step.h"

namespace normcore::cuda {

struct Pooled {
  double mean, var;
};
// What is asked of the statistics of an entry, whose first channel is `channel`.
template <class Method>
__device__ void write_entry(const StatisticsColumns& out, Index entry, const Pooled& p,
                            double count, const typename Method::Params& params, Index channel) {
  const double rstd = out.rstd.data ? Method::rstd({0, p.var, count}, params, channel) : 0;
  write_statistics(out, entry, p.mean, p.var, rstd);
}
// The statistics of an entry of a pool from the moments of its cells' pieces: the means' mean, then
// the spread within and between them. `m2_scale`: what makes sums of squares of m2.
__device__ inline Pooled pooled(const Summers& by, const Geometry& g, const PoolShape& pool,
                                bool raw, Index entry, const Source& mean, const Source& m2,
                                double m2_scale) {
  const Index parts = pool.cells_of_entry(g) * g.pieces;
  auto each = [&](auto f) {
    for (Index i = by.lane(); i < parts; i += by.lanes) {
      const auto [m, piece] = g.by_pieces(i);
      f(pool.cell_of(g, entry, m) * g.pieces + piece, double(g.elements_of(piece)));
    }
  };
  if (parts == 0) return {0, 0};
  // From the first mean on: equal means have exactly themselves for a mean.
  double center = 0;
  if (!raw) {
    const double first = mean(pool.cell_of(g, entry, 0) * g.pieces);
    const double share = 1 / pool.count;
    each([&](Index at, double n) { center += (mean(at) - first) * (n * share); });
    by.sum(center);
    center += first;
  }
  double squares = 0;
  each([&](Index at, double n) {
    const double d = raw ? 0 : mean(at) - center;
    squares += m2(at) * m2_scale + n * (d * d);
  });
  by.sum(squares);
  return {center, squares / pool.count};
}
[[maybe_unused]] static __global__ void pool_pieces(Summers by, Geometry g, PoolShape pool,
                                                    bool raw, Source mean, Source m2,
                                                    double m2_scale, double* pool_mean,
                                                    double* pool_var) {
  const Index entry = by.entry();
  if (entry >= pool.entries()) return;
  const Pooled p = pooled(by, g, pool, raw, entry, mean, m2, m2_scale);
  if (by.lane() == 0) {
    pool_mean[entry] = p.mean;
    pool_var[entry] = p.var;
  }
}

// Of a pool.
struct PoolSource {
  Source mean, var;
};

// The statistics that a method reads, per pool.
template <class Method>
struct PoolTables {
  static constexpr int P = kPoolCount<Method>;
  PoolShape shape[P];
  Source mean[P];
  Source var[P];

  __device__ double mean_of(int i, Index entry) const { return mean[i](entry); }
  __device__ double var_of(int i, Index entry) const { return var[i](entry); }

  // What the method sees of a cell, and the centre that it counts from.
  template <class C>
  __device__ C stats_of(const Geometry& g, Index cell, Stats (&stats)[P]) const {
    C center = 0;
    for (int i = P - 1; i >= 0; --i) {
      const Index e = shape[i].entry_of(g, cell);
      if (i == P - 1)
        center = center_of<Method::raw, C>(mean_of(i, e), var_of(i, e), shape[i].size());
      stats[i] = {from_center<Method::raw>(mean_of(i, e), center), var_of(i, e), shape[i].size()};
    }
    return center;
  }
};

template <class C>
struct ForwardTable {
  C* a;
  C* center;
  C* shift;

  __device__ void put(Index cell, C of, const Applied<C>& y) const {
    a[cell] = y.a;
    center[cell] = of;
    shift[cell] = y.shift;
  }
};

// The arrays of the Params of a method that prepares them.
template <class Method>
__global__ void prepare_params(typename Method::Params params, double* numbers) {
  Method::prepare(params, numbers);
}

// y = a * (x - center) + shift of every cell, weight and bias of the channels included.
template <class Method, class C>
__global__ void solve_forward(Geometry g, PoolTables<Method> pools, typename Method::Params params,
                              Source weight, Source bias, ForwardTable<C> to) {
  const Index cell = my_index();
  if (cell >= g.coefficient_cells()) return;
  Stats stats[kPoolCount<Method>];
  const C center = pools.template stats_of<C>(g, cell, stats);
  const Index k = cell % g.cells;
  const Coef f = Method::coefficients(stats, params, k);
  to.put(cell, center, applied<C>(f, weight(k), bias(k)));
}

// The same for a method of one pool, from the pieces: its statistics are pooled, and what is asked
// of them is written, in the same launch.
template <class Method, class C>
__device__ void pool_and_solve_entry(const Summers& by, const Geometry& g, const PoolShape& pool,
                                     Index entry, const double* mean, const double* m2,
                                     const typename Method::Params& params, const Source& weight,
                                     const Source& bias, const StatisticsColumns& out,
                                     const ForwardTable<C>& to) {
  const Pooled p = pooled(by, g, pool, Method::raw, entry, {mean}, {m2}, 1);
  const Index first = pool.cell_of(g, entry, 0);
  if (out && by.lane() == 0) {
    write_entry<Method>(out, entry, p, pool.count, params, first % g.cells);
  }
  if (!to.a) return;
  C center;
  const Stats stats[1] = {counted_from_center<Method::raw>(p.mean, p.var, pool.count, &center)};
  const Index cells = g.shared_rows ? 1 : pool.cells_of_entry(g);
  for (Index m = by.lane(); m < cells; m += by.lanes) {
    const Index cell = pool.cell_of(g, entry, m), k = cell % g.cells;
    to.put(cell, center, applied<C>(Method::coefficients(stats, params, k), weight(k), bias(k)));
  }
}
template <class Method, class C>
__global__ void pool_and_solve(Summers by, Geometry g, PoolShape pool, const double* mean,
                               const double* m2, typename Method::Params params, Source weight,
                               Source bias, StatisticsColumns out, ForwardTable<C> to) {
  const Index entry = by.entry();
  if (entry >= pool.entries()) return;
  pool_and_solve_entry<Method>(by, g, pool, entry, mean, m2, params, weight, bias, out, to);
}

// The coefficients of statistics that are given by channel, from the caller's own arrays: a kernel
// that applies them solves its cells itself.
template <class Method, class C>
struct GivenCoefficients {
  Source mean, var, weight, bias;
  double count;
  typename Method::Params params;

  // The rows of the table share coefficients: at is a channel.
  __device__ void of_cell(Index at, C& a, C& center, C& b) const {
    const Stats stats[1] = {counted_from_center<Method::raw>(mean(at), var(at), count, &center)};
    const Applied<C> y = applied<C>(Method::coefficients(stats, params, at), weight(at), bias(at));
    a = y.a;
    b = y.shift;
  }
  template <class Tile, int V>
  __device__ void of_tile(const Tile& tile, Index at, C (&a)[V], C (&center)[V], C (&b)[V]) const {
#pragma unroll 1
    for (int e = 0; e < V; ++e) {
      C values[3] = {0, 0, 0};
      if (tile.has(e)) of_cell(at + e * tile.step, values[0], values[1], values[2]);
#pragma unroll
      for (int j = 0; j < V; ++j) {
        if (j != e) continue;
        a[j] = values[0];
        center[j] = values[1];
        b[j] = values[2];
      }
    }
  }
};

// The coefficients of pools within a sample, from the moments of their few pieces: a kernel that
// applies them pools its cells itself, by the lanes of a team in a warp together, and who has the
// first piece of a pool writes what is asked of its statistics.
template <class Method, class C>
struct PooledCoefficients {
  PoolShape pool;
  const double *mean, *m2;
  typename Method::Params params;
  Source weight, bias;
  StatisticsColumns out;

  __device__ void of_piece(const Geometry& g, const Team& team, const Piece& piece, C& a, C& center,
                           C& b) const {
    const Index entry = pool.entry_of(g, piece.cell), k = g.by_cells(piece.cell).rest;
    const Pooled p = pooled(Summers(team), g, pool, Method::raw, entry, {mean}, {m2}, 1);
    const Stats stats[1] = {counted_from_center<Method::raw>(p.mean, p.var, pool.count, &center)};
    const bool first = piece.index == 0 && piece.cell == pool.cell_of(g, entry, 0);
    if (out && first && piece.n > 0 && team.index() == 0) {
      write_entry<Method>(out, entry, p, pool.count, params, k);
    }
    const Applied<C> y = applied<C>(Method::coefficients(stats, params, k), weight(k), bias(k));
    a = y.a;
    b = y.shift;
  }
};

// The statistics of pool i for who asks.
template <class Method>
__global__ void export_statistics(Geometry g, PoolTables<Method> pools, int i,
                                  typename Method::Params params, StatisticsColumns out) {
  const PoolShape& shape = pools.shape[i];
  const Index e = my_index();
  if (e >= shape.entries()) return;
  write_entry<Method>(out, e, {pools.mean_of(i, e), pools.var_of(i, e)}, shape.size(), params,
                      shape.cell_of(g, e, 0) % g.cells);
}

template <class Method, class C>
__device__ void solve_backward_of(Index cell, const Geometry& g, const PoolTables<Method>& pools,
                                  const typename Method::Params& params, const Source& weight,
                                  const GradientTable<C>& t) {
  Stats stats[kPoolCount<Method>];
  t.center[cell] = pools.template stats_of<C>(g, cell, stats);
  const Index k = cell % g.cells;
  t.solve(cell, Method::coefficients(stats, params, k), weight(k));
}
template <class Method, class C>
__global__ void solve_backward(Geometry g, PoolTables<Method> pools, typename Method::Params params,
                               Source weight, GradientTable<C> t) {
  const Index cell = my_index();
  if (cell < g.coefficient_cells()) solve_backward_of(cell, g, pools, params, weight, t);
}

// The sums of dy * u and dy of a coefficient cell, from those of its pieces.
struct CellSums {
  double u, one;
};
__device__ inline CellSums sums_of_cell(const Summers& by, const Geometry& g, Index cell,
                                        const double* dy_u, const double* dy_1) {
  CellSums sum{0, 0};
  for (Index i = by.lane(); i < g.coefficient_pieces(); i += by.lanes) {
    const Index at = g.coefficient_piece(cell, i);
    sum.u += dy_u[at];
    sum.one += dy_1[at];
  }
  by.sum(sum.u, sum.one);
  return sum;
}
// Of every coefficient cell.
[[maybe_unused]] static __global__ void sum_pieces(Summers by, Geometry g, const double* dy_u,
                                                   const double* dy_1, double* sum_u,
                                                   double* sum_1) {
  const Index cell = by.entry();
  if (cell >= g.coefficient_cells()) return;
  const CellSums sum = sums_of_cell(by, g, cell, dy_u, dy_1);
  if (by.lane() == 0) {
    sum_u[cell] = sum.u;
    sum_1[cell] = sum.one;
  }
}

// dweight = sum dy * (a * (x - center) + b), dbias = sum dy of the channels.
template <class C>
__device__ void gradients_of_channel(const Summers& by, Index k, const Geometry& g,
                                     const GradientTable<C>& t, const double* sum_u,
                                     const double* sum_1, const Column& dweight,
                                     const Column& dbias) {
  double dw = 0, db = 0;
  for (Index o = by.lane(); o < g.coefficient_rows(); o += by.lanes) {
    const Index cell = o * g.cells + k;
    dw += weight_gradient(t.coefficients(cell), sum_u[cell], sum_1[cell], t.unit[cell]);
    db += sum_1[cell];
  }
  by.sum(dw, db);
  if (by.lane() == 0) {
    if (dweight.data) put(dweight, k, dw);
    if (dbias.data) put(dbias, k, db);
  }
}
template <class C>
__global__ void channel_gradients(Summers by, Geometry g, GradientTable<C> t, const double* sum_u,
                                  const double* sum_1, Column dweight, Column dbias) {
  const Index k = by.entry();
  if (k < g.cells) gradients_of_channel(by, k, g, t, sum_u, sum_1, dweight, dbias);
}

// Gradients of the statistics of each pool, by cell.
template <class Method>
struct CellGradients {
  double* mean[kPoolCount<Method>];
  double* var[kPoolCount<Method>];
  double* params;  // [kParameterCount, cells]; null: not wanted
};

template <class Method, class C>
__global__ void pull_back(Geometry g, PoolTables<Method> pools, typename Method::Params params,
                          Source weight, GradientTable<C> t, const double* sum_u,
                          const double* sum_1, CellGradients<Method> d) {
  const Index cell = my_index();
  if (cell >= g.coefficient_cells()) return;
  Stats stats[kPoolCount<Method>];
  pools.template stats_of<C>(g, cell, stats);
  const Index k = cell % g.cells;
  const CoefGrad gradient = coefficient_gradient(weight(k), sum_u[cell], sum_1[cell], t.unit[cell]);
  StatsGrad ds[kPoolCount<Method>] = {};
  typename Method::ParamsGrad dp;
  Method::pullback(stats, params, k, gradient, ds, dp);
  if constexpr (kParameterCount<Method> > 0) {
    double values[kParameterCount<Method>];
    memcpy(values, &dp, sizeof(values));
    for (int i = 0; d.params && i < kParameterCount<Method>; ++i) {
      d.params[i * g.coefficient_cells() + cell] = values[i];
    }
  }
  for (int i = 0; i < kPoolCount<Method>; ++i) {
    d.mean[i][cell] = ds[i].mean;
    d.var[i][cell] = ds[i].var;
  }
}

// Sums over the cells of every entry of a pool.
[[maybe_unused]] static __global__ void sum_pool(Summers by, Geometry g, PoolShape pool,
                                                 const double* cell_mean, const double* cell_var,
                                                 double* mean, double* var) {
  const Index entry = by.entry();
  if (entry >= pool.entries()) return;
  // Rows that share coefficients have shared their sums already.
  const Index cells = g.shared_rows ? 1 : pool.cells_of_entry(g);
  double m = 0, v = 0;
  for (Index i = by.lane(); i < cells; i += by.lanes) {
    const Index cell = g.shared_rows ? entry : pool.cell_of(g, entry, i);
    m += cell_mean[cell];
    v += cell_var[cell];
  }
  by.sum(m, v);
  if (by.lane() == 0) {
    mean[entry] = m;
    var[entry] = v;
  }
}

// Whether a pool is of a single element, and its results are zero whatever that is.
template <class Method>
__device__ bool gives_zero(const PoolShape& pool) {
  return !pool.counted && is_always_zero<Method>(pool.count);
}

// q and r of dx, from the gradients of the pools; with weights by element `sum_1` is given.
template <class Method, class C>
__global__ void share_out(Geometry g, PoolTables<Method> pools, int first_computed,
                          CellGradients<Method> pooled, const double* sum_1, GradientTable<C> t) {
  const Index cell = my_index();
  if (cell >= g.coefficient_cells()) return;
  Share share;
  for (int i = first_computed; i < kPoolCount<Method>; ++i) {
    const PoolShape& shape = pools.shape[i];
    const Index e = shape.entry_of(g, cell);
    const Stats stats{from_center<Method::raw>(pools.mean_of(i, e), t.center[cell]),
                      pools.var_of(i, e), shape.size()};
    if (sum_1) {
      share = Share::by_element<Method::raw>(pooled.var[i][e], sum_1[cell], stats, t.a[cell]);
    } else {
      share.template add<Method::raw>({pooled.mean[i][e], pooled.var[i][e]}, stats);
    }
  }
  t.share(cell, share);
  if (gives_zero<Method>(pools.shape[0])) t.p[cell] = t.q[cell] = t.r[cell] = 0;
}

// From the sums of the pieces to q and r of dx for a method of one pool without parameters of its
// own, in one launch: a team of warps takes an entry of the pool, a warp one of its cells at a
// time.
template <class Method, class C>
struct GradientSolver {
  Geometry g;
  PoolTables<Method> pools;
  typename Method::Params params;
  Source weight;
  bool by_element;  // weights are
  bool given;       // no statistics have gradients
  GradientTable<C> t;
  double *dy_u, *dy_1;    // of the pieces
  double *sum_u, *sum_1;  // of the cells
  // Where a channel has one coefficient cell; data null: not wanted.
  Column dweight, dbias;
  // Where the gradients of the pool go, which ends it, if they are wanted.
  CellGradients<Method> pooled;

  // All teams of a block together; beyond the last entry with nothing to do.
  __device__ void solve(const Team& team, Index entry, int& phase) const {
    const PoolShape& pool = pools.shape[0];
    const bool active = entry < pool.entries();
    const Index cells = !active ? 0 : g.shared_rows ? 1 : pool.cells_of_entry(g);
    double d[2] = {0, 0};  // gradients of the pool's statistics: lane 0 has those of its warp's
    for (Index m = team.thread() / 32; m < cells; m += team.warps()) {
      sum_cell(team, pool.cell_of(g, entry, m), d);
    }
    if (given) return;
    __syncwarp();
    team_sum(d, team, phase);
    if (pooled.mean[0]) {
      if (active && team.thread() == 0) {
        pooled.mean[0][entry] = d[0];
        pooled.var[0][entry] = d[1];
      }
      return;
    }
    for (Index m = team.thread(); m < cells; m += team.threads()) {
      const Index cell = pool.cell_of(g, entry, m);
      Stats stats[1];
      pools.template stats_of<C>(g, cell, stats);
      Share share;
      if (by_element) {
        share = Share::by_element<Method::raw>(d[1], sum_1[cell], stats[0], t.a[cell]);
      } else {
        share.template add<Method::raw>({d[0], d[1]}, stats[0]);
      }
      t.share(cell, share);
      if (gives_zero<Method>(pool)) t.p[cell] = t.q[cell] = t.r[cell] = 0;
    }
  }

 private:
  // By a warp, whose first lane adds to d.
  __device__ void sum_cell(const Team& team, Index cell, double (&d)[2]) const {
    const Summers warp(team);
    const auto [u, one] = sums_of_cell(warp, g, cell, dy_u, dy_1);
    if (warp.lane() > 0) return;
    const Index k = cell % g.cells;
    sum_u[cell] = u;
    sum_1[cell] = one;
    if (dweight.data) {
      put(dweight, k, weight_gradient(t.coefficients(cell), u, one, t.unit[cell]));
    }
    if (dbias.data) put(dbias, k, one);
    if (given) return;
    Stats stats[1];
    pools.template stats_of<C>(g, cell, stats);
    StatsGrad ds[1] = {};
    typename Method::ParamsGrad none;
    Method::pullback(stats, params, k, coefficient_gradient(weight(k), u, one, t.unit[cell]), ds,
                     none);
    d[0] += ds[0].mean;
    d[1] += ds[0].var;
  }
};
template <class Method, class C>
__global__ void solve_gradients(Team team, GradientSolver<Method, C> solver) {
  team.scratch = shared_memory();
  int phase = 0;
  solver.solve(team, first_row(team), phase);
}

}  // namespace normcore::cuda
