// Cells that are neighbours in memory, element for element: channels-last, and whatever is reduced
// along an axis that is not innermost. A block takes a tile: some 128 bytes of cells, and of each
// the elements of one piece, which are rows of the tile. A thread holds a pack of cells, with its
// sums and coefficients in registers, and goes down every so many rows; the threads of a column of
// the tile join their sums in shared memory, in a fixed order. The pieces' tables are those of
// cells.cuh.
//
// kWhole: all packs are whole and lie on their boundary. Otherwise elements are moved one by one,
// neighbouring threads neighbouring cells; which rows a thread takes is the same, and so are the
// bits.
#pragma once

#include "cuda/cells.cuh"

namespace normcore::cuda {

inline constexpr int kTileThreads = 256;
inline constexpr int kMostAcross = 8;     // threads side by side: 128 bytes
inline constexpr int kRowsOfThread = 16;  // of a piece
// Packs of each operand that a thread loads before it uses the first.
inline constexpr int kTilePacks = 8, kTilePacksOfMany = 4;

// Chosen on the host.
struct TileShape {
  int log_across;     // threads side by side
  int log_rows;       // and below each other
  Division by_tiles;  // side by side
};

// The share of a thread.
template <class T, bool kWhole>
struct Tile {
  static constexpr int V = kPack<T>;

  Index outer;      // row of the table
  unsigned strip;   // piece
  Index first;      // element of the cells where the strip begins
  int rows;         // of the strip
  int row, column;  // of the thread in the block
  int log_across, log_rows;
  int cell, cells;  // first cell of the thread, of how many
  int step;         // from one cell of the thread to its next

  // The index-th of all.
  __device__ Tile(const Geometry& g, const TileShape& shape, unsigned index) : Tile(g, shape) {
    const auto [line, tile] = shape.by_tiles(index);
    const auto [o, piece] = g.by_pieces(line);
    step = kWhole ? 1 : across();
    strip = piece;
    first = strip * g.piece;
    rows = int(g.elements_of(strip));
    move_to(o, tile);
  }
  // For a kernel that says itself which rows these are, of which tiles, and that sums over cells: a
  // thread has neighbouring ones, whatever the alignment, for the same order.
  __device__ Tile(const Geometry& g, const TileShape& shape) {
    log_across = shape.log_across;
    log_rows = shape.log_rows;
    column = int(threadIdx.x) & (across() - 1);
    row = int(threadIdx.x) >> log_across;
    step = 1;
    cells = int(g.cells);
  }
  __device__ void move_to(unsigned o, unsigned tile) {
    outer = o;
    cell = (int(tile) * V << log_across) + (step == 1 ? column * V : column);
  }

  __device__ int across() const { return 1 << log_across; }
  __device__ int rows_at_once() const { return 1 << log_rows; }
  __device__ bool has(int e) const { return cell + e * step < cells; }
  // Rows of the strip that threads of block row r take.
  __device__ int rows_of(int r) const { return r < rows ? ((rows - 1 - r) >> log_rows) + 1 : 0; }
  __device__ Index coefficient(const Geometry& g) const {
    return (g.shared_rows ? 0 : outer * g.cells) + cell;
  }
  // Of cell `c` in the tables of pieces.
  __device__ Index part(const Geometry& g, int c) const {
    return (outer * g.cells + c) * g.pieces + strip;
  }

  // The coefficients of this thread's cells, from a table of coefficient cells.
  template <class C>
  __device__ void coefficients(const C* table, Index at, C (&out)[V]) const {
#pragma unroll
    for (int e = 0; e < V; e += kWhole ? kPack<C> : 1) {
      if constexpr (kWhole) {
        Pack<C> pack{};
        load_words<false>(table + at + e, cell < cells, pack.bits);
        C f[kPack<C>];
        pack.widen(f);
#pragma unroll
        for (int j = 0; j < kPack<C>; ++j) out[e + j] = f[j];
      } else {
        out[e] = has(e) ? table[at + e * step] : C(0);
      }
    }
  }

  // Where this thread begins in an operand, which goes on `stride` elements from row to row.
  template <class U>
  __device__ U* start(const Geometry& g, const View& v) const {
    return static_cast<U*>(v.data) + cell + v.row_offset(g, unsigned(outer)) +
           (first + row) * stride(g, v);
  }
  __device__ static Index stride(const Geometry& g, const View& v) {
    return g.space_dims == 0 ? 0 : v.space[g.space_dims - 1];  // its space is one
  }

  template <bool kStream>
  __device__ Pack<T> load(const T* from, bool inside) const {
    Pack<T> pack{};
    if constexpr (kWhole) {
      load_words<kStream>(from, inside && cell < cells, pack.bits);
    } else {
      T elements[V];
#pragma unroll
      for (int e = 0; e < V; ++e) {
        elements[e] = inside && has(e) ? from[e * step] : narrow<T>(Compute<T>(0));
      }
      memcpy(&pack, elements, 16);
    }
    return pack;
  }
  __device__ void store(T* to, bool inside, const Pack<T>& pack) const {
    if (!inside) return;
    if constexpr (kWhole) {
      if (cell < cells) store_words(to, pack.bits);
    } else {
      T elements[V];
      memcpy(elements, &pack, 16);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if (has(e)) to[e * step] = elements[e];
      }
    }
  }

  // f(first of N rows of this thread's, as many rows apart as the block has) until all are done.
  template <int N, class F>
  __device__ void each_rows(F f) const {
    for (int r = row; r < rows; r += N << log_rows) f(r);
  }
};

// Of a kernel with a block for each tile. Backwards: the last first, for what the sweep before has
// left in the cache.
__device__ inline unsigned tile_of_block() { return blockIdx.x; }
__device__ inline unsigned tile_of_block_backwards() { return gridDim.x - 1 - blockIdx.x; }

// Rows of an operand as a thread of a tile goes down them.
template <class U>
struct TileRows {
  U* start;
  Index step;  // elements between the thread's rows

  template <class T, bool kWhole>
  __device__ TileRows(const Tile<T, kWhole>& tile, const Geometry& g, const View& v)
      : start(v.data ? tile.template start<U>(g, v) : nullptr),
        step(tile.stride(g, v) << tile.log_rows) {}

  template <int N, bool kStream, class T, bool kWhole>
  __device__ void load(const Tile<T, kWhole>& tile, int r, Pack<T> (&held)[N]) const {
    const U* from = start + Index((r - tile.row) >> tile.log_rows) * step;
#pragma unroll
    for (int p = 0; p < N; ++p) {
      held[p] = tile.template load<kStream>(from + p * step, r + (p << tile.log_rows) < tile.rows);
    }
  }
  template <int N, class T, bool kWhole>
  __device__ void store(const Tile<T, kWhole>& tile, int r, const Pack<T> (&held)[N]) const {
    U* to = start + Index((r - tile.row) >> tile.log_rows) * step;
#pragma unroll
    for (int p = 0; p < N; ++p) {
      tile.store(to + p * step, r + (p << tile.log_rows) < tile.rows, held[p]);
    }
  }
};

// Shared memory of a tile's fold of K numbers of type N for each cell of a thread.
template <class N>
constexpr int fold_bytes(int numbers, int pack, int threads) {
  return numbers * pack * threads * int(sizeof(N));
}

// What the threads of a column of the tile have of a cell comes to one warp. take(entries, lane,
// lanes, e) makes of the entries entry(k, r), of block rows r = lane, lane + lanes, ..., the
// column's result; the lanes `across` apart in a warp share a cell.
template <int K, class N, class T, bool kWhole, class Take>
__device__ void fold_tile(const Tile<T, kWhole>& tile, const N (&mine)[K][kPack<T>], Take take) {
  constexpr int V = kPack<T>;
  N* slots = reinterpret_cast<N*>(shared_memory());
  const int threads = int(blockDim.x), thread = int(threadIdx.x);
#pragma unroll
  for (int k = 0; k < K; ++k) {
#pragma unroll
    for (int e = 0; e < V; ++e) slots[(k * V + e) * threads + thread] = mine[k][e];
  }
  __syncthreads();
  const int lane = thread % 32, column = lane & (tile.across() - 1);
  for (int e = thread / 32; e < V; e += threads / 32) {
    const int c = tile.cell - (kWhole ? (tile.column - column) * V : tile.column - column);
    auto entry = [&](int k, int r) {
      return slots[(k * V + e) * threads + (r << tile.log_across) + column];
    };
    take(entry, lane >> tile.log_across, 32 >> tile.log_across, c + e * tile.step);
  }
}
// Of the lanes of a warp that share a cell.
template <class Join, class T, bool kWhole>
__device__ double join_lanes(const Tile<T, kWhole>& tile, double v, Join join) {
  for (int d = 16; d >= tile.across(); d /= 2) {
    v = join(v, __shfl_xor_sync(0xffffffffu, v, d));
  }
  return v;
}

// What join makes of K numbers of every cell, in float64; write(k, cell, value).
template <int K, class C, class T, bool kWhole, class Join, class Write>
__device__ void join_tile(const Tile<T, kWhole>& tile, const C (&mine)[K][kPack<T>], Join join,
                          Write write) {
  fold_tile(tile, mine, [&](auto entry, int lane, int lanes, int cell) {
#pragma unroll
    for (int k = 0; k < K; ++k) {
      double v = 0;
      for (int r = lane; r < tile.rows_at_once(); r += lanes) v = join(v, double(entry(k, r)));
      v = join_lanes(tile, v, join);
      if (lane == 0 && cell < tile.cells) write(k, cell, v);
    }
  });
}

// Sums of the rows of one thread count from the first of them: large means lose nothing.
template <bool kRaw, class T, bool kWhole>
__device__ void moments_of_tile(const Tile<T, kWhole>& tile, const Geometry& g, const View& x,
                                double* mean, double* m2) {
  using C = Compute<T>;
  constexpr int V = kPack<T>, N = kTilePacks;
  const TileRows<const T> from(tile, g, x);
  C center[V] = {}, sum[V] = {}, squares[V] = {}, size[V] = {};
  tile.template each_rows<N>([&](int r) {
    Pack<T> held[N];
    from.template load<N, false>(tile, r, held);
    if (!kRaw && r == tile.row) held[0].widen(center);
#pragma unroll
    for (int p = 0; p < N; ++p) {
      if (r + (p << tile.log_rows) >= tile.rows) continue;
      C v[V];
      held[p].widen(v);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        const C d = kRaw ? v[e] : v[e] - center[e];
        if (!kRaw) sum[e] += d;
        squares[e] = fused(d, d, squares[e]);
        size[e] += d < 0 ? -d : d;
      }
    }
  });
  double moments[2][V];
  const double n = double(tile.rows_of(tile.row)), inverse = n > 0 ? 1 / n : 0;
#pragma unroll
  for (int e = 0; e < V; ++e) {
    double s = double(sum[e]), ss = double(squares[e]);
    // Rare: float64 has room for the square of any float.
    if (sizeof(C) == 4 && !squares_are_safe(squares[e]) && size[e] != 0 && tile.has(e)) {
      s = ss = 0;
      const T* at = from.start + e * tile.step;
      for (int r = tile.row; r < tile.rows; r += tile.rows_at_once(), at += from.step) {
        const double d = double(widen(*at)) - double(center[e]);
        s += d;
        ss += d * d;
      }
      if (kRaw) s = 0;
    }
    const double rest = s * inverse, within = ss - s * rest;
    moments[0][e] = double(center[e]) + rest;
    moments[1][e] = within < 0 ? 0 : within;
  }
  fold_tile(tile, moments, [&](auto entry, int lane, int lanes, int cell) {
    auto each = [&](auto f) {
      for (int r = lane; r < tile.rows_at_once() && r < tile.rows; r += lanes) {
        f(entry(0, r), entry(1, r), double(tile.rows_of(r)));
      }
    };
    // From the first mean on: equal means have exactly themselves for a mean.
    double middle = 0, all = 0;
    if (!kRaw) {
      const double first = entry(0, 0);
      each([&](double m, double, double count) { middle += (m - first) * count; });
      middle = first + join_lanes(tile, middle, Sum{}) / double(tile.rows);
    }
    each([&](double m, double ss, double count) {
      const double d = kRaw ? 0 : m - middle;
      all += ss + count * (d * d);
    });
    all = join_lanes(tile, all, Sum{});
    if (lane == 0 && cell < tile.cells) {
      mean[tile.part(g, cell)] = middle;
      m2[tile.part(g, cell)] = all;
    }
  });
}
template <bool kRaw, class T, bool kWhole>
__global__ void __launch_bounds__(kTileThreads)
    tile_moments(Geometry g, TileShape shape, View x, double* mean, double* m2) {
  moments_of_tile<kRaw>(Tile<T, kWhole>(g, shape, tile_of_block()), g, x, mean, m2);
}

// As cell_apply.
template <class T, bool kWhole, class F>
__device__ void apply_tile(const Tile<T, kWhole>& tile, const Geometry& g, const View& x,
                           const View& y, const F& f, const Compute<T>* weight,
                           const Compute<T>* bias) {
  using C = Compute<T>;
  constexpr int V = kPack<T>, N = kTilePacks;
  const TileRows<const T> from(tile, g, x);
  const TileRows<T> to(tile, g, y);
  C a[V], center[V], b[V];
  f.of_tile(tile, tile.coefficient(g), a, center, b);
  tile.template each_rows<N>([&](int r) {
    Pack<T> held[N];
    from.template load<N, true>(tile, r, held);
#pragma unroll
    for (int p = 0; p < N; ++p) {
      const int row = r + (p << tile.log_rows);
      C v[V];
      held[p].widen(v);
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] = fused(a[e], v[e] - center[e], b[e]);
      if (weight && row < tile.rows) {
        const C w = weight[tile.first + row], shift = bias[tile.first + row];
#pragma unroll
        for (int e = 0; e < V; ++e) v[e] = fused(w, v[e], shift);
      }
      held[p] = Pack<T>::narrowed(v);
    }
    to.store(tile, r, held);
  });
}
template <class T, bool kWhole, class F>
__global__ void __launch_bounds__(kTileThreads)
    tile_apply(Geometry g, TileShape shape, View x, View y, F f, const Compute<T>* weight,
               const Compute<T>* bias) {
  apply_tile(Tile<T, kWhole>(g, shape, tile_of_block_backwards()), g, x, y, f, weight, bias);
}

// As cell_add.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kTileThreads)
    tile_add(Geometry g, TileShape shape, View x, View residual, View h) {
  using C = Compute<T>;
  constexpr int V = kPack<T>, N = kTilePacksOfMany;
  const Tile<T, kWhole> tile(g, shape, tile_of_block());
  const TileRows<const T> from(tile, g, x), other(tile, g, residual);
  const TileRows<T> to(tile, g, h);
  tile.template each_rows<N>([&](int r) {
    Pack<T> held[N], others[N];
    from.template load<N, true>(tile, r, held);
    other.template load<N, true>(tile, r, others);
#pragma unroll
    for (int p = 0; p < N; ++p) {
      C v[V], w[V];
      held[p].widen(v);
      others[p].widen(w);
#pragma unroll
      for (int e = 0; e < V; ++e) v[e] += w[e];
      held[p] = Pack<T>::narrowed(v);
    }
    to.store(tile, r, held);
  });
}

// As cell_sums.
template <class T, bool kWhole>
__device__ void sums_of_tile(const Tile<T, kWhole>& tile, const Geometry& g, const View& dy,
                             const View& x, const Compute<T>* centers, const Compute<T>* units,
                             const Compute<T>* weight, double* dy_u, double* dy_1) {
  using C = Compute<T>;
  constexpr int V = kPack<T>, N = kTilePacksOfMany;
  const TileRows<const T> x_rows(tile, g, x), dy_rows(tile, g, dy);
  C center[V], unit[V], sums[2][V] = {};
  const Index at = tile.coefficient(g);
  tile.coefficients(centers, at, center);
  tile.coefficients(units, at, unit);
  tile.template each_rows<N>([&](int r) {
    Pack<T> x_held[N], dy_held[N];
    x_rows.template load<N, false>(tile, r, x_held);
    dy_rows.template load<N, false>(tile, r, dy_held);
#pragma unroll
    for (int p = 0; p < N; ++p) {
      const int row = r + (p << tile.log_rows);
      if (row >= tile.rows) continue;
      C x_p[V], dy_p[V];
      x_held[p].widen(x_p);
      dy_held[p].widen(dy_p);
      if (weight) {
        const C w = weight[tile.first + row];
#pragma unroll
        for (int e = 0; e < V; ++e) dy_p[e] *= w;
      }
#pragma unroll
      for (int e = 0; e < V; ++e) {
        sums[0][e] = fused(dy_p[e], (x_p[e] - center[e]) * unit[e], sums[0][e]);
        sums[1][e] += dy_p[e];
      }
    }
  });
  join_tile(tile, sums, Sum{},
            [&](int k, int cell, double v) { (k == 0 ? dy_u : dy_1)[tile.part(g, cell)] = v; });
}
template <class T, bool kWhole>
__global__ void __launch_bounds__(kTileThreads)
    tile_sums(Geometry g, TileShape shape, View dy, View x, const Compute<T>* centers,
              const Compute<T>* units, const Compute<T>* weight, double* dy_u, double* dy_1) {
  sums_of_tile(Tile<T, kWhole>(g, shape, tile_of_block()), g, dy, x, centers, units, weight, dy_u,
               dy_1);
}

// As cell_grad.
template <bool kMasked, class T, bool kWhole>
__device__ void grad_of_tile(const Tile<T, kWhole>& tile, const Geometry& g, const View& dy,
                             const View& x, const View& dh, const View& dx,
                             const GradientCoefficients<Compute<T>>& f,
                             const ByElement<Compute<T>, kMasked>& by_element) {
  using C = Compute<T>;
  constexpr int V = kPack<T>, N = kTilePacksOfMany;
  const bool through_statistics = f.q != nullptr, has_dh = dh.data != nullptr;
  const TileRows<const T> dy_rows(tile, g, dy), x_rows(tile, g, x), dh_rows(tile, g, dh);
  const TileRows<T> to(tile, g, dx);
  C p_c[V], q[V] = {}, r_c[V] = {}, center[V], unit[V];
  const Index at = tile.coefficient(g);
  tile.coefficients(f.p, at, p_c);
  tile.coefficients(f.center, at, center);
  tile.coefficients(f.unit, at, unit);
  if (through_statistics) tile.coefficients(f.q, at, q);
  if (f.r) tile.coefficients(f.r, at, r_c);
  const C* along = nullptr;
  if constexpr (kMasked) {
    along = by_element.template at<const C>(g, unsigned(tile.outer), 0);
  } else {
    along = by_element;
  }
  tile.template each_rows<N>([&](int r) {
    Pack<T> dy_held[N], x_held[N] = {}, dh_held[N] = {};
    dy_rows.template load<N, true>(tile, r, dy_held);
    if (through_statistics) x_rows.template load<N, true>(tile, r, x_held);
    if (has_dh) dh_rows.template load<N, true>(tile, r, dh_held);
#pragma unroll
    for (int p = 0; p < N; ++p) {
      const int row = r + (p << tile.log_rows);
      C d[V], x_p[V];
      dy_held[p].widen(d);
      if constexpr (kMasked) {
        const C m = row < tile.rows ? along[by_element.step(g, tile.first + row)] : C(0);
        x_held[p].widen(x_p);
#pragma unroll
        for (int e = 0; e < V; ++e) {
          const C u = (x_p[e] - center[e]) * unit[e];
          d[e] =
              masked_grad(p_c[e] * d[e], through_statistics ? fused(q[e], u, r_c[e]) : r_c[e], m);
        }
        dy_held[p] = Pack<T>::narrowed(d);
        continue;
      }
      if (along) {
        const C w = row < tile.rows ? along[tile.first + row] : C(0);
#pragma unroll
        for (int e = 0; e < V; ++e) d[e] = p_c[e] * (w * d[e] - r_c[e]);
      } else {
#pragma unroll
        for (int e = 0; e < V; ++e) d[e] = fused(p_c[e], d[e], r_c[e]);
      }
      if (through_statistics) {
        x_held[p].widen(x_p);
#pragma unroll
        for (int e = 0; e < V; ++e) d[e] = fused(q[e], (x_p[e] - center[e]) * unit[e], d[e]);
      }
      if (has_dh) {
        C extra[V];
        dh_held[p].widen(extra);
#pragma unroll
        for (int e = 0; e < V; ++e) d[e] += extra[e];
      }
      dy_held[p] = Pack<T>::narrowed(d);
    }
    to.store(tile, r, dy_held);
  });
}
template <class T, bool kWhole, bool kMasked>
__global__ void __launch_bounds__(kTileThreads)
    tile_grad(Geometry g, TileShape shape, View dy, View x, View dh, View dx,
              GradientCoefficients<Compute<T>> f, ByElement<Compute<T>, kMasked> by_element) {
  grad_of_tile<kMasked>(Tile<T, kWhole>(g, shape, tile_of_block_backwards()), g, dy, x, dh, dx, f,
                        by_element);
}

// As parameter_sums: a block takes so many rows that a thread has N of them, and goes along a run
// of the tiles.
template <class T, bool kWhole>
__global__ void __launch_bounds__(kTileThreads)
    tile_parameter_sums(Geometry g, TileShape shape, View dy, View x, Coefficients<Compute<T>> f,
                        Compute<T>* dweight, Compute<T>* dbias) {
  using C = Compute<T>;
  constexpr int V = kPack<T>, N = kTilePacksOfMany;
  Tile<T, kWhole> tile(g, shape);
  tile.first = Index(blockIdx.x) * (N << tile.log_rows);
  const Index left = g.count - tile.first;
  tile.rows = int(left < (N << tile.log_rows) ? left : N << tile.log_rows);
  double sums[2][N] = {};
  const Index lines = g.outer * shape.by_tiles.divisor, runs = gridDim.y, run = blockIdx.y;
  const Index end = (run + 1) * lines / runs;
  for (Index line = run * lines / runs; line < end; ++line) {
    const auto [o, at] = shape.by_tiles(line);
    tile.move_to(o, at);
    Pack<T> dy_held[N], x_held[N];
    TileRows<const T>(tile, g, dy).template load<N, false>(tile, tile.row, dy_held);
    TileRows<const T>(tile, g, x).template load<N, false>(tile, tile.row, x_held);
    C a[V], center[V], b[V];  // 0 beyond the cells
    f.of_tile(tile, tile.coefficient(g), a, center, b);
#pragma unroll
    for (int p = 0; p < N; ++p) {
      C dy_p[V], x_p[V], of_pack[2] = {0, 0};
      dy_held[p].widen(dy_p);
      x_held[p].widen(x_p);
#pragma unroll
      for (int e = 0; e < V; ++e) {
        of_pack[0] = fused(dy_p[e], fused(a[e], x_p[e] - center[e], b[e]), of_pack[0]);
        of_pack[1] += dy_p[e];
      }
      sums[0][p] += double(of_pack[0]);
      sums[1][p] += double(of_pack[1]);
    }
  }
#pragma unroll
  for (int p = 0; p < N; ++p) {
    for (int d = tile.across() / 2; d > 0; d /= 2) {
      for (auto& of : sums) of[p] += __shfl_xor_sync(0xffffffffu, of[p], d);
    }
    const Index s = tile.row + (p << tile.log_rows);
    if (tile.column > 0 || s >= tile.rows) continue;
    dweight[run * g.count + tile.first + s] = C(sums[0][p]);
    dbias[run * g.count + tile.first + s] = C(sums[1][p]);
  }
}

}  // namespace normcore::cuda
