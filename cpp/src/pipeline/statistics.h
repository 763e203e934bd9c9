// The blocks and units of work of the pipeline, and the statistics of a block: reduce and pool,
// once for all methods.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "pipeline/arguments.h"
#include "pipeline/processes.h"
#include "pipeline/step.h"

namespace normcore {

// Of the body of a loop over cells: a backend compiles it for the CPU that it finds.
#define NORMCORE_INLINED __attribute__((always_inline))

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
  const Plan* plan;
  Block block;
  Index outer_pieces, space_pieces, strips;

  Units(const Plan& p, const Block& b)
      : plan(&p),
        block(b),
        outer_pieces(ceil_div(b.on, p.piece_outer)),
        space_pieces(p.space_pieces()),
        strips(ceil_div(b.kn, p.unit_cells)) {}

  Index pieces() const { return outer_pieces * space_pieces; }
  // Of each row of coefficients; a block without elements has none.
  Index pieces_of_row(Index rows) const { return rows > 0 ? pieces() / rows : 0; }
  Index count() const { return pieces() * strips; }
  Index piece_of(Index unit) const { return split(unit, strips).quotient; }
  // Of a unit's range, in tables of pieces.
  Index first_entry(Index unit, const Range& range) const {
    return piece_of(unit) * block.kn + (range.k0 - block.k0);
  }
  Range range(Index unit) const {
    const auto [piece, strip] = split(unit, strips);
    const auto [row, part] = split(piece, space_pieces);
    const Index k = strip * plan->unit_cells, o = row * plan->piece_outer;
    const Index s = part * plan->piece_space;
    return {block.o0 + o,
            std::min(plan->piece_outer, block.on - o),
            block.k0 + k,
            std::min(plan->unit_cells, block.kn - k),
            s,
            std::min(plan->piece_space, plan->count - s)};
  }
};

// Within a fused block everything runs on one thread; otherwise the one block is spread over them.
// A second sweep goes backwards: it begins where the first one ended, which is still in cache; if
// it is not, a backend may go forwards.
template <class Backend, class F>
void for_units(const Backend& be, Index units, F&& f, bool backwards = false) {
  if (be.plan().fused) {
    for (Index i = 0; i < units; ++i) f(backwards ? units - 1 - i : i);
  } else {
    be.parallel(units, f, backwards);
  }
}

// Joins the results of the pieces of each row of the table, which follow each other, in its entries
// [rows, kn] of the arrays: add(to, from, piece) adds those of a piece from the second on.
template <class F>
void fold_pieces(const Units& units, Index rows, std::initializer_list<double*> arrays, F add) {
  const Index per_row = units.pieces_of_row(rows), kn = units.block.kn;
  for (Index o = 0; per_row > 1 && o < rows; ++o) {
    const Index to = o * kn, first = o * per_row;
    for (double* array : arrays) {
      if (o > 0) std::copy_n(array + first * kn, kn, array + to);
    }
    for (Index piece = first + 1; piece < first + per_row; ++piece) add(to, piece * kn, piece);
  }
}

// f(entry of the block's table, entry of the whole one, its first cell of a row) for a pool.
template <class Backend, class F>
void for_entries(const Backend& be, const Block& b, const PoolTable& t, F f) {
  const Index cols = be.plan().pool_cols(t.extent), o0 = t.row_step > 0 ? b.o0 : 0;
  const Index first = b.k0 / t.cell_div, cell_div = t.cell_div;
  for (Index o = 0; o < t.rows; ++o) {
    be.each_cell(t.cols, [=, here = o * t.cols, there = (o0 + o) * cols + first](Index j)
                             NORMCORE_INLINED { f(here + j, there + j, (first + j) * cell_div); });
  }
}

// f(cell, k, weight, bias) for the cells of a block, k being the cell of its row; null arrays are 1
// and 0.
template <class Backend, class F>
void for_channels(const Backend& be, const Block& b, Index rows, const double* weight,
                  const double* bias, typename Backend::Scope& scope, F f) {
  if (weight || bias) {
    auto values = [&](const double* given, double missing) {
      return given ? given + b.k0 : scope.template take_filled<double>(b.kn, missing);
    };
    const double *weights = values(weight, 1), *biases = values(bias, 0);
    for (Index o = 0; o < rows; ++o) {
      be.each_cell(b.kn, [=, first = o * b.kn](Index k)
                             NORMCORE_INLINED { f(first + k, k, weights[k], biases[k]); });
    }
  } else {
    // In one loop where cells are no channels.
    const Index loops = be.plan().affinity == Affinity::element ? 1 : rows;
    const Index n = loops == 1 ? rows * b.kn : b.kn;
    for (Index o = 0; o < loops; ++o) {
      be.each_cell(n, [=, first = o * n](Index k) NORMCORE_INLINED { f(first + k, k, 1, 0); });
    }
  }
}

// What the method sees of every cell of a block. Loops over cells take a copy of this and are flat:
// short rows have one cell for a few vectors, and compilers vectorize such loops.
template <int P>
struct CellStats {
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

template <int P, class C>
struct Solved {
  PoolTable pools[P];
  Index rows, row_step;  // of coefficients; row_step 0 where rows of the table share them
  C* center;
  CellStats<P> cells;
};

// A pool of nothing: everything is normalized to 0, and no gradient comes back.
inline void forget(PoolTable& t) {
  t.count = 1;
  for (Index e = 0; e < t.rows * t.cols; ++e) {
    t.mean[e] = 0;
    t.var[e] = std::numeric_limits<double>::infinity();
  }
}

// Moments of the cells of a block: of its pieces [pieces, kn], and of the rows [rows, kn] where
// these are joined.
struct CellMoments {
  double *mean, *m2;

  template <class Scope>
  static CellMoments take(const Units& units, Scope& scope) {
    const Index n = units.pieces() * units.block.kn;
    return {scope.template take<double>(n), scope.template take<double>(n)};
  }
  CellMoments of(const Units& units, Index unit, const Range& range) const {
    const Index at = units.first_entry(unit, range);
    return {mean + at, m2 + at};
  }
};
template <class Backend>
void join_pieces(const Backend& be, const Units& units, Index rows, const CellMoments& m) {
  const Index per_row = units.pieces_of_row(rows), kn = units.block.kn;
  auto elements = [&](Index piece) {
    const Range range = units.range(piece * units.strips);
    return double(range.on) * double(range.sn * units.plan->cell_columns);
  };
  double before = 0;  // elements of the row's pieces so far
  fold_pieces(units, rows, {m.mean, m.m2}, [&](Index to, Index from, Index piece) {
    if (piece % per_row == 1) before = elements(piece - 1);
    const double n = elements(piece);
    be.merge(kn, before, m.mean + to, m.m2 + to, n, m.mean + from, m.m2 + from);
    before += n;
  });
}
// From x: reduce, and join the pieces.
template <class Backend>
CellMoments reduce_cells(const Backend& be, bool raw, const void* x, const Population& population,
                         const Block& b, Index rows, typename Backend::Scope& scope) {
  const Plan& plan = be.plan();
  const Units units(plan, b);
  const CellMoments m = CellMoments::take(units, scope);
  double* weight = population.mask ? scope.template take<double>(units.pieces() * b.kn) : nullptr;
  for_units(be, units.count(), [&](Index i) {
    const Range range = units.range(i);
    const Index at = units.first_entry(i, range);
    if (weight) {
      be.reduce_masked(range, population.mask, x, weight + at, m.mean + at, m.m2 + at);
    } else {
      be.reduce(range, raw, x, m.mean + at, m.m2 + at);
    }
  });
  if (weight) {
    fold_pieces(units, rows, {weight, m.mean, m.m2}, [&](Index to, Index from, Index) {
      merge_weighted(b.kn, weight + to, m.mean + to, m.m2 + to, weight + from, m.mean + from,
                     m.m2 + from);
    });
    double* sums = population.weights;
    for (Index o = 0; sums && o < rows; ++o) {
      std::copy_n(weight + o * b.kn, b.kn, sums + (b.o0 + o) * plan.cells + b.k0);
    }
  } else {
    join_pieces(be, units, rows, m);
  }
  return m;
}

// Statistics of the pools of a block: reduce and pool, or take what is given. `reduced`: moments of
// the pieces, where they are there already.
template <class Method, class Backend, class Args>
void block_statistics(const Backend& be, const Args& args, const Block& b,
                      typename Backend::Scope& scope,
                      Solved<kPoolCount<Method>, typename Backend::Compute>& out,
                      const CellMoments* reduced = nullptr) {
  using C = typename Backend::Compute;
  constexpr int P = kPoolCount<Method>;
  const Plan& plan = be.plan();
  const int computed = args.given_mean ? 1 : 0;  // pools from here on
  const Index rows = plan.merged_outer ? 1 : b.on;
  const double cell_count = double(plan.cell_elements()) * double(plan.merged_outer ? b.on : 1);
  out.rows = rows;
  out.row_step = plan.merged_outer ? 0 : b.kn;
  for (int i = 0; i < P; ++i) {
    PoolTable& t = out.pools[i];
    const Extent extent =
        i < computed ? Extent::column : extent_of(Method::pools[i], plan.affinity);
    t = pool_shape(extent, plan, b.on, b.kn);
    t.mean = scope.template take<double>(t.rows * t.cols);
    t.var = scope.template take<double>(t.rows * t.cols);
    if (args.population.mask && i >= computed) t.count = args.population.own.sum;
  }
  out.center = scope.template take<C>(rows * b.kn);

  auto take = [&](PoolTable& t, const double* mean, const double* var, Index step) {
    for_entries(be, b, t,
                [=, mean_to = t.mean, var_to = t.var](Index e, Index from, Index) NORMCORE_INLINED {
                  mean_to[e] = mean[from * step];
                  var_to[e] = var[from * step];
                });
  };
  PoolTable& finest = out.pools[P - 1];
  if (computed) take(out.pools[0], args.given_mean, args.given_var, args.given_step);
  if (computed == P) {
    // nothing to compute
  } else if (args.saved_mean()) {
    take(finest, args.saved_mean(), args.saved_var(), args.forward_step);
  } else {
    CellMoments cells;
    if (reduced) {
      cells = *reduced;
      join_pieces(be, Units(plan, b), rows, cells);
    } else {
      cells = reduce_cells(be, Method::raw, args.x, args.population, b, rows, scope);
    }
    pool_moments(be, cells.mean, cells.m2, rows, b.kn, cell_count, finest);
  }
  if (computed < P - 1) {
    // The others are merged from the last, which has an entry per cell.
    double* m2 = scope.template take<double>(rows * b.kn);
    for (Index c = 0; c < rows * b.kn; ++c) m2[c] = finest.var[c] * cell_count;
    for (int i = computed; i < P - 1; ++i) {
      pool_moments(be, finest.mean, m2, rows, b.kn, cell_count, out.pools[i]);
    }
  }
  for (int i = computed; i < P; ++i) {
    if (Method::pools[i] != Pool::batch) continue;
    PoolTable& t = out.pools[i];
    if (args.population.exchange) {
      const bool known = i == P - 1 && args.saved_mean();
      merge_processes(args.population, known, t.cols, t.count, t.mean, t.var, scope);
    }
    if (t.count == 0) forget(t);
  }

  // By cell, from the last pool, whose means are the centres, to the first.
  const Index cells = rows * b.kn;
  for (int i = P - 1; i >= 0; --i) {
    const PoolTable& t = out.pools[i];
    const double* mean = t.mean;
    out.cells.var[i] = t.var;
    out.cells.count[i] = t.count;
    if (t.rows * t.cols != cells) {
      double* cell_mean = scope.template take<double>(cells);
      double* cell_var = scope.template take<double>(cells);
      t.for_cells(rows, [&](Index e, Index cell) {
        cell_mean[cell] = t.mean[e];
        cell_var[cell] = t.var[e];
      });
      mean = cell_mean;
      out.cells.var[i] = cell_var;
    }
    C* center = out.center;
    if (i == P - 1) {
      const double* var = out.cells.var[i];
      be.each_cell(cells, [=, count = t.count](Index c) NORMCORE_INLINED {
        center[c] = center_of<Method::raw, C>(mean[c], var[c], count);
      });
    }
    double* from = scope.template take<double>(cells);
    be.each_cell(cells, [=](Index c) NORMCORE_INLINED {
      from[c] = from_center<Method::raw>(mean[c], center[c]);
    });
    out.cells.mean[i] = from;
  }
}

// Writes the statistics of a block where the caller wants them.
template <class Method, class Backend, class Args>
void export_statistics(const Backend& be, const Args& args, const typename Method::Params& params,
                       const Block& b,
                       const Solved<kPoolCount<Method>, typename Backend::Compute>& s) {
  constexpr int P = kPoolCount<Method>;
  if (args.mean) {
    const PoolTable& t = s.pools[args.given_mean && P > 1 ? 1 : 0];
    for_entries(be, b, t,
                [=, pool_mean = t.mean, pool_var = t.var, count = t.count, mean = args.mean,
                 var = args.var, rstd = args.rstd](Index e, Index to, Index channel)
                    NORMCORE_INLINED {
                      mean[to] = pool_mean[e];
                      var[to] = pool_var[e];
                      rstd[to] = Method::rstd({0, pool_var[e], count}, params, channel);
                    });
  }
  if (args.last_mean) {
    const PoolTable& t = s.pools[P - 1];
    for_entries(be, b, t,
                [=, pool_mean = t.mean, pool_var = t.var, mean = args.last_mean,
                 var = args.last_var](Index e, Index to, Index) NORMCORE_INLINED {
                  mean[to] = pool_mean[e];
                  var[to] = pool_var[e];
                });
  }
}

}  // namespace normcore
