// Spread that is no variance (src/pipeline/spread.h), on the device: sweeps that tally powers of
// the deviations or the largest of them, and the small steps on one entry per pool between them.
//
// The k-th largest takes two sweeps. k elements or more reach the k-th largest of the peaks of the
// pieces: the second sweep tallies what lies above it and keeps that in a list, from which a block
// for each pool selects. Where a pool has fewer pieces than k, or more lies above than a list
// holds, the block reads the pool itself: right for any data, at the speed of one block.
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
  __device__ bool above(C u) const { return (u < 0 ? -u : u) > threshold; }
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

// Called, not inlined: rare.
template <class C>
__device__ __attribute__((noinline)) void keep_outlier(C u, C* values, unsigned* found,
                                                       Index room) {
  const unsigned at = atomicAdd(found, 1u);
  if (at < room) values[at] = u;
}

// Lists of what lies above the threshold, by coefficient cell, in no order. values null: none.
template <class C>
struct Outliers {
  C *values, *sorted;  // [cells, room]
  unsigned* found;     // [cells]; more than `room` where a list is not complete
  Index room;

  __device__ void keep(Index cell, C u) const {
    keep_outlier(u, values + cell * room, found + cell, room);
  }
  // Of a thread's row of a tile, those whose bits are set; its elements and cells are `step` apart.
  template <class T>
  __device__ __attribute__((noinline)) void keep_row(unsigned which, const T* row, int step,
                                                     int cells, Index first,
                                                     const SpreadTable<C>& table) const {
#pragma unroll 1
    for (int e = 0; which >> e != 0; ++e) {
      if ((which >> e & 1) == 0 || e * step >= cells) continue;
      const Index cell = first + e * step;
      keep(cell, table.of(cell).centred(widen(row[e * step])));
    }
  }
};

// Joins all numbers of the threads of a team.
template <int K, class C, class Join>
__device__ void join_team(C (&v)[K], const Team& team, int& phase, Join join) {
  for (int k = 0; k < K; k += Team::kMostSums) {
    C pair[Team::kMostSums];
    for (int j = 0; j < Team::kMostSums; ++j) pair[j] = k + j < K ? v[k + j] : C(0);
    team_sum(pair, team, phase, join);
    for (int j = 0; j < Team::kMostSums && k + j < K; ++j) v[k + j] = pair[j];
  }
}

// sums: [kMostTallies, cells, pieces]; with kPeak the largest in the first. What is above the
// threshold is kept in `list`.
template <class T, int P, Form kForm, bool kPeak>
__global__ void __launch_bounds__(512)
    cell_tally(Geometry g, View x, Team team, SpreadTable<Compute<T>> table,
               Outliers<Compute<T>> list, double* sums) {
  using C = Compute<T>;
  constexpr int K = kPeak ? 1 : kMostTallies;
  const Piece piece = my_piece<kForm>(g, team);
  const Index coefficient = g.coefficient_of(piece.cell);
  const SpreadCell<C> f = table.of(coefficient);
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
    C acc[K] = {};
    held.each(n, team, [&](C x_i) {
      const C u = f.centred(x_i);
      C v[kMostTallies];
      f.terms(u, kPeak, v);
      for (int k = 0; k < K; ++k) acc[k] = join(acc[k], v[k]);
      if (!kPeak && list.values && f.above(u)) list.keep(coefficient, u);
    });
    join_team(acc, team, phase, join);
    if (piece.n > 0 && team.index() == 0) {
      for (int k = 0; k < K; ++k) sums[k * parts + to] = double(acc[k]);
    }
  } else if (piece.n > 0) {
    double acc[K] = {};
    for (Index s = piece.first; s < piece.first + piece.n; ++s) {
      const C u = f.centred(widen(start[x.step(g, s)]));
      C v[kMostTallies];
      f.terms(u, kPeak, v);
      for (int k = 0; k < K; ++k) acc[k] = join(acc[k], double(v[k]));
      if (!kPeak && list.values && f.above(u)) list.keep(coefficient, u);
    }
    for (int k = 0; k < K; ++k) sums[k * parts + to] = acc[k];
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
    tile_tally(Geometry g, TileShape shape, View x, SpreadTable<Compute<T>> table,
               Outliers<Compute<T>> list, double* sums) {
  using C = Compute<T>;
  constexpr int V = kPack<T>, N = kTilePacksOfMany, K = kPeak ? 1 : kMostTallies;
  using Join = std::conditional_t<kPeak, Largest, Sum>;
  const Tile<T, kWhole> tile(g, shape, tile_of_block());
  const TileRows<const T> from(tile, g, x);
  SpreadCell<C> f[V];
  const Index coefficient = tile.coefficient(g);
  table.of(tile, coefficient, f);
  C acc[K][V] = {};
  tile.template each_rows<N>([&](int r) {
    Pack<T> held[N];
    from.template load<N, false>(tile, r, held);
#pragma unroll
    for (int p = 0; p < N; ++p) {
      if (r + (p << tile.log_rows) >= tile.rows) continue;
      C x_p[V];
      held[p].widen(x_p);
      unsigned outliers = 0;
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const C u = f[e].centred(x_p[e]);
        C v[kMostTallies];
        f[e].terms(u, kPeak, v);
#pragma unroll
        for (int k = 0; k < K; ++k) acc[k][e] = Join{}(acc[k][e], v[k]);
        outliers |= unsigned(!kPeak && f[e].above(u)) << e;
      }
      if (!kPeak && list.values && outliers) {
        const Index row = (r - tile.row) >> tile.log_rows;
        list.keep_row(outliers, from.start + (row + p) * from.step, tile.step,
                      tile.cells - tile.cell, coefficient, table);
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
  const Tile<T, kWhole> tile(g, shape, tile_of_block_backwards());
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
  for (int k = 0; k < (kPeak ? 1 : kMostTallies); ++k) {
    double value = 0;
    for (Index i = by.lane(); i < g.coefficient_pieces(); i += by.lanes) {
      value = join(value, sums[k * parts + g.coefficient_piece(cell, i)]);
    }
    if (by.lanes > 1) {
      for (int d = 16; d > 0; d /= 2) value = join(value, __shfl_xor_sync(0xffffffffu, value, d));
    }
    if (by.lane() == 0) out[cell * kMostTallies + k] = value;
  }
}

// The threshold where it is the one largest: what was found, or the spread that is known. Nothing
// is above it.
template <class C>
__global__ void take_peak(Index cells, double* tallies, Source spread, SpreadTable<C> t) {
  const Index cell = my_index();
  if (cell >= cells) return;
  double* of_cell = tallies + cell * kMostTallies;
  t.threshold[cell] = C(spread ? spread(cell) * double(t.unit[cell]) : of_cell[0]);
  for (int i = 0; i < kMostTallies; ++i) of_cell[i] = 0;
}

// ---- the k-th largest, by a block for each coefficient cell

inline constexpr int kLogSelectThreads = 8, kSelectThreads = 1 << kLogSelectThreads;
inline constexpr int kLogDigits = 11;

// In the shared memory of the block.
struct Selection {
  static constexpr int kDigits = 1 << kLogDigits, kOfThread = kDigits / kSelectThreads;
  double scratch[Team::kDoubles];
  Index of_threads[kSelectThreads];
  Index rank;
  int digit;
  unsigned low[kDigits], high[kDigits];  // how many numbers have a digit

  __device__ void count(unsigned d) {
    if (atomicAdd(low + d, 1u) == 0xffffffffu) atomicAdd(high + d, 1u);
  }
  __device__ Index counted(int d) const { return (Index(high[d]) << 32) + low[d]; }
};

// Puts into s the digit of the k-th largest, and its rank among those of that digit; a digit < 0
// where there are fewer than k.
__device__ inline void choose_digit(Selection& s, Index k) {
  const int thread = int(threadIdx.x);
  Index mine = 0;
  for (int i = 0; i < Selection::kOfThread; ++i) {
    mine += s.counted(thread * Selection::kOfThread + i);
  }
  s.of_threads[thread] = mine;
  if (thread == 0) s.digit = -1;
  __syncthreads();
  if (thread < 32) {
    constexpr int kOfLane = kSelectThreads / 32;
    Index sum = 0;
    for (int i = 0; i < kOfLane; ++i) sum += s.of_threads[thread * kOfLane + i];
    Index reach = sum;  // of this lane and those above
    for (int d = 1; d < 32; d *= 2) {
      const Index other = __shfl_down_sync(0xffffffffu, reach, unsigned(d));
      if (thread + d < 32) reach += other;
    }
    const Index above = reach - sum;
    if (above < k && k <= reach) {
      Index left = k - above;
      int owner = thread * kOfLane + kOfLane - 1;
      while (left > s.of_threads[owner]) left -= s.of_threads[owner--];
      int d = owner * Selection::kOfThread + Selection::kOfThread - 1;
      while (left > s.counted(d)) left -= s.counted(d--);
      s.digit = d;
      s.rank = left;
    }
  }
  __syncthreads();
}

// The k-th largest of numbers, by a digit of their bits after the other, which order those that are
// not negative; 0 where there are fewer than k. each(f) is f(number) for those of this thread; a
// NaN is passed over.
template <class C, class Each>
__device__ C kth_largest(Selection& s, Index k, Each each) {
  using Bits = std::conditional_t<sizeof(C) == 4, std::uint32_t, std::uint64_t>;
  Bits found = 0;
  for (int rest = 8 * int(sizeof(C)) - 1; rest > 0;) {
    const int width = rest < kLogDigits ? rest : kLogDigits;
    rest -= width;
    for (int d = int(threadIdx.x); d < Selection::kDigits; d += kSelectThreads) {
      s.low[d] = s.high[d] = 0;
    }
    __syncthreads();
    each([&](C number) {
      if (!(number >= 0)) return;
      const Bits bits = std::bit_cast<Bits>(number) << 1 >> 1;  // -0 is 0
      if (bits >> rest >> width == found) s.count(unsigned(bits >> rest) & ((1u << width) - 1));
    });
    __syncthreads();
    choose_digit(s, k);
    if (s.digit < 0) return 0;
    found = (found << width) | Bits(s.digit);
    k = s.rank;
  }
  return std::bit_cast<C>(found);
}

// f(entry of the tables of pieces) for the pieces of a coefficient cell, by the threads of a block.
template <class F>
__device__ void each_part(const Geometry& g, Index cell, F f) {
  for (Index i = threadIdx.x; i < g.coefficient_pieces(); i += kSelectThreads) {
    f(g.coefficient_piece(cell, i));
  }
}

// f(element) for all of a coefficient cell, by the threads of a block.
template <class T, class F>
__device__ void each_element(const Geometry& g, const View& x, Index cell, F f) {
  constexpr int kAhead = 4;  // elements that a thread loads before it uses the first
  int log_across = 0;
  while (log_across < kLogSelectThreads && (Index(1) << log_across) < g.count) ++log_across;
  const Index across = Index(1) << log_across, rows = g.shared_rows ? g.outer : 1;
  for (Index o = threadIdx.x >> log_across; o < rows; o += kSelectThreads >> log_across) {
    const T* start = x.cell_start<const T>(g, cell + o * g.cells);
    for (Index s = threadIdx.x & (across - 1); s < g.count; s += kAhead * across) {
      T held[kAhead];
      for (int i = 0; i < kAhead; ++i) {
        if (s + i * across < g.count) held[i] = start[x.step(g, s + i * across)];
      }
      for (int i = 0; i < kAhead; ++i) {
        if (s + i * across < g.count) f(widen(held[i]));
      }
    }
  }
}

// The threshold that k elements or more reach: the k-th largest of the pieces' peaks.
template <class C>
__global__ void __launch_bounds__(kSelectThreads)
    reach_by_peaks(Geometry g, Index k, const double* peaks, SpreadTable<C> t, Outliers<C> list) {
  Selection& s = *reinterpret_cast<Selection*>(shared_memory());
  const Index cell = blockIdx.x;
  const C reached = kth_largest<C>(
      s, k, [&](auto number) { each_part(g, cell, [&](Index at) { number(C(peaks[at])); }); });
  if (threadIdx.x > 0) return;
  t.threshold[cell] = reached;
  list.found[cell] = 0;
}

// The k-th largest and its tallies: from the pieces' sums for a threshold that k elements or more
// reach, and the lists of what is above; from x alone where there are no lists.
template <class T>
__global__ void __launch_bounds__(kSelectThreads)
    select_largest(Geometry g, View x, Index k, const double* sums, Outliers<Compute<T>> list,
                   SpreadTable<Compute<T>> t, double* tallies) {
  using C = Compute<T>;
  Selection& selection = *reinterpret_cast<Selection*>(shared_memory());
  const Team team{kLogSelectThreads, 0, selection.scratch};
  int phase = 0;
  const Index cell = blockIdx.x;
  SpreadCell<C> f = t.of(cell);
  f.order = 0;
  double out[kMostTallies] = {0, 0, 0, 0, 0};
  bool listed = false;
  C reached = -1;
  auto select = [&] {
    if (list.values) {
      const Index parts = g.outer * g.cells * g.pieces;
      each_part(g, cell, [&](Index at) {
        for (int i = 0; i < kMostTallies; ++i) out[i] += sums[i * parts + at];
      });
      join_team(out, team, phase, Sum{});
      if (out[0] < double(k)) return;
      listed = out[0] <= double(list.room);
      reached = f.threshold;
    }
    const Index length = Index(out[0]);
    const C* values = list.values + cell * list.room;
    auto each = [&](auto use) {
      if (listed) {
        for (Index i = threadIdx.x; i < length; i += kSelectThreads) use(values[i]);
      } else {
        each_element<T>(g, x, cell, [&](C x_i) { use(f.centred(x_i)); });
      }
    };
    f.threshold = kth_largest<C>(selection, k, [&](auto number) {
      each([&](C u) {
        const C m = u < 0 ? -u : u;
        if (m > reached) number(m);
      });
    });
    for (double& v : out) v = 0;
    each([&](C u) {
      C v[kMostTallies];
      f.terms(u, false, v);
      for (int i = 0; i < kMostTallies; ++i) out[i] += double(v[i]);
    });
    join_team(out, team, phase, Sum{});
    if (!listed) return;
    // The list has no order, and the sum of its sizes has one: from the largest on.
    C* sorted = list.sorted + cell * list.room;
    for (Index i = threadIdx.x; i < length; i += kSelectThreads) {
      const C m = values[i] < 0 ? -values[i] : values[i];
      if (!f.above(m)) continue;
      Index rank = 0;
      for (Index j = 0; j < length; ++j) {
        const C other = values[j] < 0 ? -values[j] : values[j];
        rank += other > m || (other == m && j < i);
      }
      sorted[rank] = m;
    }
    __syncthreads();
    double sum[1] = {0};
    for (Index i = threadIdx.x; i < Index(out[0]); i += kSelectThreads) sum[0] += double(sorted[i]);
    join_team(sum, team, phase, Sum{});
    out[1] = sum[0];
  };
  select();
  if (threadIdx.x > 0) return;
  t.threshold[cell] = f.threshold;
  for (int i = 0; i < kMostTallies; ++i) tallies[cell * kMostTallies + i] = out[i];
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
