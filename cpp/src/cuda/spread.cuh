// Spread that is no variance (src/pipeline/spread.h), on the device: sweeps that tally powers of
// the deviations or the largest of them, and the small steps on one entry per pool between them.
#pragma once

#include "cuda/columns.cuh"
#include "cuda/solve.cuh"
#include "pipeline/step.h"

namespace normcore::cuda {

inline constexpr int kMostTallies = 5;

// Called, not inlined: orders beyond 4 are rare, and a kernel has a power for each of many
// elements.
template <class C>
__device__ __attribute__((noinline)) C power_of(C base, C exponent) {
  return pow(base, exponent);
}

// What a cell's elements need: u = (x - center - low) * unit, and what is known of the spread.
template <class C>
struct SpreadCell {
  C center, low, unit, threshold, tie;
  C order;  // 0: by the largest

  __device__ C centred(C x) const { return (x - center - low) * unit; }
  __device__ static C sign_of(C u) { return u > 0 ? C(1) : u < 0 ? C(-1) : C(0); }
  // |u|^(order - 1)
  __device__ C power(C m) const {
    const C e = order - 1;
    if (e == 0) return 1;
    if (e == 1) return m;
    if (e == 2) return m * m;
    if (e == 3) return m * m * m;
    return power_of(m, e);
  }
  __device__ C slope(C u) const {
    const C m = u < 0 ? -u : u;
    if (order > 0) return sign_of(u) * power(m);
    return sign_of(u) * (m > threshold ? C(1) : m == threshold ? tie : C(0));
  }
  // What is summed of an element, see cpu/kernels.h; its size where `peak` is asked for.
  __device__ void terms(C u, bool peak, C (&out)[kMostTallies]) const {
    const C m = u < 0 ? -u : u, s = sign_of(u);
    for (C& v : out) v = 0;
    if (peak) {
      out[0] = m;
    } else if (order > 0) {
      const C slope = power(m);
      out[0] = slope * m;
      out[1] = s * slope;
    } else if (m > threshold) {
      out[0] = 1;
      out[1] = m;
      out[2] = s;
    } else if (m == threshold) {
      out[3] = 1;
      out[4] = s;
    }
  }
};

// By coefficient cell.
template <class C>
struct SpreadTable {
  C *center, *low, *unit, *threshold, *tie;
  C order;

  __device__ SpreadCell<C> of(Index at) const {
    return {center[at], low[at], unit[at], threshold[at], tie[at], order};
  }
  template <class T, bool kWhole>
  __device__ void of(const Tile<T, kWhole>& tile, Index at, SpreadCell<C> (&out)[kPack<T>]) const {
    constexpr int V = kPack<T>;
    auto take = [&](const C* table, C SpreadCell<C>::* member) {
      C values[V];
      tile.coefficients(table, at, values);
#pragma unroll
      for (int e = 0; e < V; ++e) out[e].*member = values[e];
    };
    take(center, &SpreadCell<C>::center);
    take(low, &SpreadCell<C>::low);
    take(unit, &SpreadCell<C>::unit);
    take(threshold, &SpreadCell<C>::threshold);
    take(tie, &SpreadCell<C>::tie);
#pragma unroll
    for (int e = 0; e < V; ++e) out[e].order = order;
  }
};

// sums: [kMostTallies, cells, pieces]; with kPeak the largest in the first.
template <class T, int P, Form kForm, bool kPeak>
__global__ void __launch_bounds__(512)
    cell_tally(Geometry g, View x, Team team, SpreadTable<Compute<T>> table, double* sums) {
  using C = Compute<T>;
  const Piece piece = my_piece<kForm>(g, team);
  const SpreadCell<C> f = table.of(g.coefficient_of(piece.cell));
  const Index to = piece.cell * g.pieces + piece.index;
  const Index parts = g.outer * g.cells * g.pieces;
  const T* start = x.cell_start<const T>(g, piece.cell);
  using Join = std::conditional_t<kPeak, Largest, Sum>;
  constexpr Join join;
  if constexpr (kForm != Form::lone) {
    team.scratch = shared_memory();
    int phase = 0;
    const T* row = start + piece.first;
    const int n = piece.n;
    RowPacks<T, P, kForm == Form::whole> held;
    held.template load<false>(row, n, team);
    C acc[kMostTallies] = {0, 0, 0, 0, 0};
    held.each(n, team, [&](C x_i) {
      C v[kMostTallies];
      f.terms(f.centred(x_i), kPeak, v);
      for (int k = 0; k < kMostTallies; ++k) acc[k] = join(acc[k], v[k]);
    });
    for (int k = 0; k < (kPeak ? 1 : kMostTallies); k += Team::kMostSums) {
      C pair[Team::kMostSums];
      for (int j = 0; j < Team::kMostSums; ++j) pair[j] = k + j < kMostTallies ? acc[k + j] : C(0);
      team_sum(pair, team, phase, join);
      if (piece.n > 0 && team.index() == 0) {
        for (int j = 0; j < Team::kMostSums && k + j < kMostTallies; ++j) {
          sums[(k + j) * parts + to] = double(pair[j]);
        }
      }
    }
  } else if (piece.n > 0) {
    double acc[kMostTallies] = {0, 0, 0, 0, 0};
    for (Index s = piece.first; s < piece.first + piece.n; ++s) {
      C v[kMostTallies];
      f.terms(f.centred(widen(start[x.step(g, s)])), kPeak, v);
      for (int k = 0; k < kMostTallies; ++k) acc[k] = join(acc[k], double(v[k]));
    }
    for (int k = 0; k < (kPeak ? 1 : kMostTallies); ++k) sums[k * parts + to] = acc[k];
  }
}

// dx = p * dy + q * h(u) + r
template <class T, int P, Form kForm>
__global__ void __launch_bounds__(512)
    cell_slope_grad(Geometry g, View dy, View x, View dx, Team team,
                    GradientCoefficients<Compute<T>> f, SpreadTable<Compute<T>> table) {
  using C = Compute<T>;
  const Piece piece = my_piece<kForm>(g, team);
  const Index at = g.coefficient_of(piece.cell);
  const SpreadCell<C> spread = table.of(at);
  const C p_c = f.p[at], q = f.q[at], r = f.r[at];
  const T* dy_start = dy.cell_start<const T>(g, piece.cell);
  const T* x_start = x.cell_start<const T>(g, piece.cell);
  T* to = dx.cell_start<T>(g, piece.cell);
  auto value = [&](C dy_i, C x_i) {
    const C h = spread.slope(spread.centred(x_i));
    return fused(p_c, dy_i, fused(q, h, r));
  };
  if constexpr (kForm != Form::lone) {
    const int n = piece.n;
    RowPacks<T, P, kForm == Form::whole> x_held, dy_held;
    x_held.load(x_start + piece.first, n, team);
    dy_held.load(dy_start + piece.first, n, team);
    dy_held.each_pack(n, team, [&](int p, C(&dx_p)[kPack<T>], int left) {
      C x_p[kPack<T>];
      x_held.pack[p].widen(x_p);
#pragma unroll
      for (int e = 0; e < kPack<T>; ++e) {
        if (kForm == Form::whole || e < left) dx_p[e] = value(dx_p[e], x_p[e]);
      }
      dy_held.pack[p] = Pack<T>::narrowed(dx_p);
    });
    dy_held.store(to + piece.first, n, team);
  } else {
    for (Index s = piece.first; s < piece.first + piece.n; ++s) {
      to[dx.step(g, s)] =
          narrow<T>(value(widen(dy_start[dy.step(g, s)]), widen(x_start[x.step(g, s)])));
    }
  }
}

// As cell_tally, by tiles.
template <class T, bool kWhole, bool kPeak>
__global__ void __launch_bounds__(kTileThreads)
    tile_tally(Geometry g, TileShape shape, View x, SpreadTable<Compute<T>> table, double* sums) {
  using C = Compute<T>;
  constexpr int V = kPack<T>, N = kTilePacksOfMany, K = kPeak ? 1 : kMostTallies;
  using Join = std::conditional_t<kPeak, Largest, Sum>;
  const Tile<T, kWhole> tile(g, shape, false);
  const TileRows<const T> from(tile, g, x);
  SpreadCell<C> f[V];
  table.of(tile, tile.coefficient(g), f);
  C acc[K][V] = {};
  tile.template each_rows<N>([&](int r) {
    Pack<T> held[N];
    from.template load<N, false>(tile, r, held);
#pragma unroll
    for (int p = 0; p < N; ++p) {
      if (r + (p << tile.log_rows) >= tile.rows) continue;
      C x_p[V];
      held[p].widen(x_p);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        C v[kMostTallies];
        f[e].terms(f[e].centred(x_p[e]), kPeak, v);
#pragma unroll
        for (int k = 0; k < K; ++k) acc[k][e] = Join{}(acc[k][e], v[k]);
      }
    }
  });
  const Index parts = g.outer * g.cells * g.pieces;
  join_tile(tile, acc, Join{},
            [&](int k, int cell, double v) { sums[k * parts + tile.part(g, cell)] = v; });
}

// As cell_slope_grad, by tiles.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kTileThreads)
    tile_slope_grad(Geometry g, TileShape shape, View dy, View x, View dx,
                    GradientCoefficients<Compute<T>> f, SpreadTable<Compute<T>> table) {
  using C = Compute<T>;
  constexpr int V = kPack<T>, N = kTilePacksOfMany;
  const Tile<T, kWhole> tile(g, shape, true);
  const TileRows<const T> dy_rows(tile, g, dy), x_rows(tile, g, x);
  const TileRows<T> to(tile, g, dx);
  SpreadCell<C> spread[V];
  C p_c[V], q[V], r_c[V];
  const Index at = tile.coefficient(g);
  table.of(tile, at, spread);
  tile.coefficients(f.p, at, p_c);
  tile.coefficients(f.q, at, q);
  tile.coefficients(f.r, at, r_c);
  tile.template each_rows<N>([&](int r) {
    Pack<T> dy_held[N], x_held[N];
    dy_rows.template load<N, true>(tile, r, dy_held);
    x_rows.template load<N, true>(tile, r, x_held);
#pragma unroll
    for (int p = 0; p < N; ++p) {
      C d[V], x_p[V];
      dy_held[p].widen(d);
      x_held[p].widen(x_p);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const C h = spread[e].slope(spread[e].centred(x_p[e]));
        d[e] = fused(p_c[e], d[e], fused(q[e], h, r_c[e]));
      }
      dy_held[p] = Pack<T>::narrowed(d);
    }
    to.store(tile, r, dy_held);
  });
}

// ---- between the sweeps, per coefficient cell, which is an entry of the pool

// Centre and unit of u; found.var is a variance, whose root counts as `least` at least, or the
// spread itself.
template <class Method, class C>
__global__ void prepare_spread(Index cells, double n, PoolSource found, bool is_variance,
                               double least, SpreadTable<C> t) {
  const Index cell = my_index();
  if (cell >= cells) return;
  const double mean = found.mean(cell), deviation = found.var(cell);
  double size = is_variance ? std::sqrt(deviation) : deviation;
  if (is_variance && size < least) size = least;
  t.center[cell] = center_of<Method::raw, C>(mean, deviation, n);
  t.low[cell] = C(from_center<Method::raw>(mean, t.center[cell]));
  t.unit[cell] = C(unit_of<C>(1 / size));
  t.threshold[cell] = t.tie[cell] = 0;
}

// The pieces' results joined for every coefficient cell: out [cells, kMostTallies].
template <bool kPeak>
__global__ void join_tallies(Summers by, Geometry g, const double* sums, double* out) {
  const Index cell = by.entry();
  if (cell >= g.coefficient_cells()) return;
  using Join = std::conditional_t<kPeak, Largest, Sum>;
  constexpr Join join;
  const Index parts = g.outer * g.cells * g.pieces;
  const Index mine = (g.shared_rows ? g.outer : 1) * g.pieces;
  for (int k = 0; k < (kPeak ? 1 : kMostTallies); ++k) {
    double value = 0;
    for (Index i = by.lane(); i < mine; i += by.lanes) {
      const auto [o, piece] = g.by_pieces(i);
      const Index at = (cell + o * g.cells) * g.pieces + piece;
      value = join(value, sums[k * parts + at]);
    }
    if (by.lanes > 1) {
      for (int d = 16; d > 0; d /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, d));
    }
    if (by.lane() == 0) out[cell * kMostTallies + k] = value;
  }
}

// The threshold where it is the one largest: what was found, or the spread that is known.
template <class C>
__global__ void take_peak(Index cells, const double* tallies, Source spread, SpreadTable<C> t) {
  const Index cell = my_index();
  if (cell >= cells) return;
  t.threshold[cell] =
      C(tallies ? tallies[cell * kMostTallies] : spread(cell) * double(t.unit[cell]));
}

// A step of the search for the k-th largest. `tallies` null: the first.
template <class C>
__global__ void narrow_brackets(Index cells, double n, double k, const double* tallies,
                                Bracket<C>* brackets, SpreadTable<C> t) {
  const Index cell = my_index();
  if (cell >= cells) return;
  if (tallies) {
    brackets[cell].narrow(tallies[cell * kMostTallies], k);
  } else {
    brackets[cell] = Bracket<C>(n, k);
  }
  t.threshold[cell] = brackets[cell].middle();
}

template <class C>
__global__ void finish_spread(Index cells, SpreadKind kind, double n, const double* tallies,
                              Source var, SpreadTable<C> t, double* spread) {
  const Index cell = my_index();
  if (cell >= cells) return;
  const double v = var(cell);
  const double of_u = spread_of(kind, n, tallies + cell * kMostTallies, double(t.threshold[cell]));
  // Comparisons pass a NaN over, a sum does not. Where there is one the variance is not finite.
  const double nothing = kind.order == 0 ? v - v : 0;
  spread[cell] = told_by_variance(kind, v) ? spread_of_variance(kind, n, v)
                 : nothing == 0            ? of_u / double(t.unit[cell])
                                           : nothing / nothing;
}

// q and r of dx = p * dy + q * h + r, and the share of ties.
template <class Method, class C>
__global__ void finish_slopes(Index cells, SpreadKind kind, double n, const double* tallies,
                              Source spread, const double* dmean, const double* dspread,
                              SpreadTable<C> t, C* q, C* r) {
  const Index cell = my_index();
  if (cell >= cells) return;
  const double of_u = spread(cell) * double(t.unit[cell]);
  const Slopes s = slopes_of(kind, n, tallies + cell * kMostTallies, of_u);
  const Share share = share_of_slopes<Method::raw>({dmean[cell], dspread[cell]}, s, n);
  t.tie[cell] = C(s.tie);
  q[cell] = C(share.q);
  r[cell] = C(share.r);
}

}  // namespace normcore::cuda
