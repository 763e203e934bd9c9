// The blocks and units of work of the pipeline, and the statistics of a block: reduce and pool,
// once for all methods.
#pragma once

#include <algorithm>

#include "pipeline/arguments.h"
#include "pipeline/processes.h"
#include "plan/pool.h"

namespace normcore {

// A block of the table that is closed under all pools of the method.
struct Block {
  Index o0, on, k0, kn;
};

inline Block block_at(const Plan& plan, Index i) {
  const Index across = plan.cell_blocks();
  const auto [row, strip] = split(i, across);
  const Index o0 = row * plan.block_outer, k0 = strip * plan.block_cells;
  return {o0, std::min(plan.block_outer, plan.outer - o0), k0,
          std::min(plan.block_cells, plan.cells - k0)};
}

// The work units of a block: pieces of the table and of long cells, times strips of cells. Partial
// results have one row per piece.
struct Units {
  const Plan& plan;
  Block block;
  Index outer_pieces, space_pieces, strips;

  Units(const Plan& p, const Block& b)
      : plan(p),
        block(b),
        outer_pieces(ceil_div(b.on, p.piece_outer)),
        space_pieces(p.space_pieces()),
        strips(ceil_div(b.kn, p.unit_cells)) {}

  Index pieces() const { return outer_pieces * space_pieces; }
  Index count() const { return pieces() * strips; }
  Index piece_of(Index unit) const { return split(unit, strips).quotient; }
  Range range(Index unit) const {
    const auto [piece, strip] = split(unit, strips);
    const auto [row, part] = split(piece, space_pieces);
    const Index k = strip * plan.unit_cells, o = row * plan.piece_outer;
    const Index s = part * plan.piece_space;
    return {block.o0 + o,
            std::min(plan.piece_outer, block.on - o),
            block.k0 + k,
            std::min(plan.unit_cells, block.kn - k),
            s,
            std::min(plan.piece_space, plan.count - s)};
  }
};

// Within a fused block everything runs on one thread; otherwise the one block is spread over them.
template <class Backend, class F>
void for_units(const Backend& be, Index units, F&& f) {
  if (be.plan().fused) {
    for (Index i = 0; i < units; ++i) f(i);
  } else {
    be.parallel(units, f);
  }
}

// What the method sees of every cell of a block. Loops over cells take a copy of this and are flat:
// short rows have one cell for a few vectors, and compilers vectorize such loops.
template <class Method>
struct CellStats {
  static constexpr int P = kPoolCount<Method>;
  const double* mean[P];  // from the centre
  const double* var[P];
  double count[P];

  struct Pooled {
    Stats stats[P];
  };  // an array alone cannot be returned
  Pooled at(Index cell) const {
    Pooled result;
    for (int i = 0; i < P; ++i) result.stats[i] = {mean[i][cell], var[i][cell], count[i]};
    return result;
  }
};

template <class Method, class C>
struct Solved {
  PoolTable pools[kPoolCount<Method>];
  Index rows, row_step;  // of coefficients; row_step 0 where rows of the table share them
  C* center;
  CellStats<Method> cells;
};

// A pool of nothing: everything is normalized to 0, and no gradient comes back.
inline void forget(PoolTable& t) {
  t.count = 1;
  for (Index e = 0; e < t.rows * t.cols; ++e) {
    t.mean[e] = 0;
    t.var[e] = std::numeric_limits<double>::infinity();
  }
}

// Statistics of the pools of a block: reduce and pool, or take what is given.
template <class Method, class Backend, class Args>
void block_statistics(const Backend& be, const Args& args, const Block& b,
                      typename Backend::Scope& scope,
                      Solved<Method, typename Backend::Compute>& out) {
  using C = typename Backend::Compute;
  constexpr int P = kPoolCount<Method>;
  const Plan& plan = be.plan();
  const int computed = args.given_mean ? 1 : 0;  // pools from here on
  const Index rows = plan.merged_outer ? 1 : b.on;
  const double cell_count = double(plan.count) * double(plan.merged_outer ? b.on : 1);
  out.rows = rows;
  out.row_step = plan.merged_outer ? 0 : b.kn;
  for (int i = 0; i < P; ++i) {
    PoolTable& t = out.pools[i];
    const Extent extent =
        i < computed ? Extent::column : extent_of(Method::pools[i], plan.affinity);
    t = pool_shape(extent, plan, b.on, b.kn);
    t.mean = scope.template take<double>(t.rows * t.cols);
    t.var = scope.template take<double>(t.rows * t.cols);
    if (args.reach.mask && i >= computed) t.count = args.reach.own.sum;
  }
  out.center = scope.template take<C>(rows * b.kn);

  if (args.given_mean) {
    PoolTable& t = out.pools[0];
    for (Index k = 0; k < b.kn; ++k) {
      t.mean[k] = args.given_mean[b.k0 + k];
      t.var[k] = args.given_var[b.k0 + k];
    }
  }
  if (computed == P) {
    // nothing to compute
  } else if (args.saved_mean()) {
    PoolTable& t = out.pools[P - 1];
    const Index cols = plan.pool_cols(t.extent);
    for (Index o = 0; o < t.rows; ++o) {
      for (Index j = 0; j < t.cols; ++j) {
        const Index from = (b.o0 * (t.row_step > 0) + o) * cols + b.k0 / t.cell_div + j;
        t.mean[o * t.cols + j] = args.saved_mean()[from];
        t.var[o * t.cols + j] = args.saved_var()[from];
      }
    }
  } else {
    const Units units(plan, b);
    const Index pieces = units.pieces();
    double* mean = scope.template take<double>(pieces * b.kn);
    double* m2 = scope.template take<double>(pieces * b.kn);
    double* weight = args.reach.mask ? scope.template take<double>(pieces * b.kn) : nullptr;
    for_units(be, units.count(), [&](Index i) {
      const Range range = units.range(i);
      const Index at = units.piece_of(i) * b.kn + (range.k0 - b.k0);
      if (weight) {
        be.reduce_masked(range, args.reach.mask, args.x, weight + at, mean + at, m2 + at);
      } else {
        be.reduce(range, Method::raw, args.x, mean + at, m2 + at);
      }
    });
    // Pieces of one row of the table follow each other: merge them into its first.
    const Index per_row = plan.merged_outer ? pieces : units.space_pieces;
    for (Index o = 0; weight && o < rows; ++o) {
      const Index to = o * b.kn;
      for (Index j = o * per_row; j < (o + 1) * per_row; ++j) {
        const Index from = j * b.kn;
        if (j == o * per_row) {
          for (Index k = 0; k < b.kn; ++k) {
            weight[to + k] = weight[from + k];
            mean[to + k] = mean[from + k];
            m2[to + k] = m2[from + k];
          }
        } else {
          merge_weighted(b.kn, weight + to, mean + to, m2 + to, weight + from, mean + from,
                         m2 + from);
        }
      }
      double* sums = args.reach.weights;
      for (Index k = 0; sums && k < b.kn; ++k) {
        sums[(b.o0 + o) * plan.cells + b.k0 + k] = weight[to + k];
      }
    }
    if (!weight && per_row > 1) {
      for (Index o = 0; o < rows; ++o) {
        const Index first = o * per_row;
        double before = 0;
        for (Index j = 0; j < per_row; ++j) {
          const Range range = units.range((first + j) * units.strips);
          const double n = double(range.on) * double(range.sn);
          if (j > 0) {
            be.merge(b.kn, before, mean + first * b.kn, m2 + first * b.kn, n,
                     mean + (first + j) * b.kn, m2 + (first + j) * b.kn);
          }
          before += n;
        }
        if (o > 0) {
          for (Index k = 0; k < b.kn; ++k) {
            mean[o * b.kn + k] = mean[first * b.kn + k];
            m2[o * b.kn + k] = m2[first * b.kn + k];
          }
        }
      }
    }
    pool_moments(be, mean, m2, rows, b.kn, cell_count, out.pools[P - 1]);
  }
  if (computed < P - 1) {
    // Of several pools the last has an entry per cell: the others are merged from it.
    const PoolTable& t = out.pools[P - 1];
    double* m2 = scope.template take<double>(rows * b.kn);
    for (Index c = 0; c < rows * b.kn; ++c) m2[c] = t.var[c] * cell_count;
    for (int i = computed; i < P - 1; ++i) {
      pool_moments(be, t.mean, m2, rows, b.kn, cell_count, out.pools[i]);
    }
  }
  for (int i = computed; i < P; ++i) {
    if (Method::pools[i] != Pool::batch) continue;
    PoolTable& t = out.pools[i];
    if (args.reach.exchange) {
      const bool known = i == P - 1 && args.saved_mean();
      merge_processes(args.reach, known, t.cols, t.count, t.mean, t.var, scope);
    }
    if (t.count == 0) forget(t);
  }

  // From the last pool, whose means are the centres, to the first.
  const Index cells = rows * b.kn;
  for (int i = P - 1; i >= 0; --i) {
    const PoolTable& t = out.pools[i];
    const double* pooled_mean = t.mean;
    out.cells.var[i] = t.var;
    out.cells.count[i] = t.count;
    if (t.rows * t.cols != cells) {
      double* mean = scope.template take<double>(cells);
      double* var = scope.template take<double>(cells);
      t.for_cells(rows, [&](Index e, Index cell) {
        mean[cell] = t.mean[e];
        var[cell] = t.var[e];
      });
      pooled_mean = mean;
      out.cells.var[i] = var;
    }
    // The centre: the mean as the compute type holds it. Where a float may be further from it than
    // a float can tell, 0: the mean is then no larger than the spread.
    C* center = out.center;
    if (i == P - 1) {
      const double* var = out.cells.var[i];
      const double most = sizeof(C) == 4 ? 0x1p253 / t.count : std::numeric_limits<double>::max();
      for (Index c = 0; c < cells; ++c) {
        center[c] = Method::raw || var[c] > most ? C(0) : C(pooled_mean[c]);
      }
    }
    double* from_center = scope.template take<double>(cells);
    for (Index c = 0; c < cells; ++c) from_center[c] = pooled_mean[c] - double(center[c]);
    out.cells.mean[i] = from_center;
  }
}

// Writes the statistics of a block where the caller wants them.
template <class Method, class Backend, class Args>
void export_statistics(const Backend& be, const Args& args, const typename Method::Params& params,
                       const Block& b, const Solved<Method, typename Backend::Compute>& s) {
  // f(entry of the block's table, entry of the whole one, its first cell of a row) for a pool.
  auto each = [&](const PoolTable& t, auto f) {
    const Index cols = be.plan().pool_cols(t.extent);
    for (Index o = 0; o < t.rows; ++o) {
      for (Index j = 0; j < t.cols; ++j) {
        const Index col = b.k0 / t.cell_div + j;
        f(o * t.cols + j, (b.o0 * (t.row_step > 0) + o) * cols + col, col * t.cell_div);
      }
    }
  };
  constexpr int P = kPoolCount<Method>;
  if (args.mean) {
    const PoolTable& t = s.pools[args.given_mean && P > 1 ? 1 : 0];
    each(t, [&](Index e, Index to, Index channel) {
      args.mean[to] = t.mean[e];
      args.var[to] = t.var[e];
      args.rstd[to] = Method::rstd({0, t.var[e], t.count}, params, channel);
    });
  }
  if (args.last_mean) {
    const PoolTable& t = s.pools[P - 1];
    each(t, [&](Index e, Index to, Index) {
      args.last_mean[to] = t.mean[e];
      args.last_var[to] = t.var[e];
    });
  }
}

// A parameter of the channels of a block, as a function of the channel; `missing` where there is
// none.
template <class Scope>
auto per_channel(const double* values, double missing, const Block& b, Scope& scope) {
  const double* at = values ? values + b.k0 : scope.template take_filled<double>(b.kn, missing);
  return [at](Index k) { return at[k]; };
}

}  // namespace normcore
