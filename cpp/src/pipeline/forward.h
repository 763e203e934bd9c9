// The forward pipeline: reduce, pool, solve, apply; once for all methods.
#pragma once

#include "pipeline/spread.h"
#include "pipeline/statistics.h"

namespace normcore {

// Backend has the kernels, the threads and the scratch memory of an instruction set or of a test
// (cpu/backend.h): a parameter, so that the pipeline names none of them.
template <class Method, class Backend>
class Forward {
  using C = typename Backend::Compute;
  using Scope = typename Backend::Scope;
  static constexpr int P = kPoolCount<Method>;

 public:
  Forward(const Backend& be, const ForwardArgs<C>& args, const typename Method::Params& params)
      : be_(be), plan_(be.plan()), args_(args), params_(params) {}

  void run() {
    const Index n = plan_.blocks();
    if (!plan_.fused) {
      block(block_at(plan_, 0));
    } else if (args_.y && !args_.population.mask && be_.overlaps()) {
      const Index runs = std::min(n, be_.runs());
      be_.parallel(runs, [&](Index i) {
        const Index first = i * n / runs, last = (i + 1) * n / runs;
        if constexpr (kAlone) {
          if (in_turn()) return cells_in_turn(first, last);
        }
        blocks(first, last);
      });
    } else {
      be_.parallel(n, [&](Index i) { block(block_at(plan_, i)); });
    }
  }

 private:
  // What the elements of a block are multiplied by, and what is added.
  struct Coefficients {
    typename Backend::Table table;
    C *a, *shift;
    const C* center;
  };

  // Whether every cell may be a pool of its own that needs no other, and whether it is here.
  static constexpr bool kAlone = P == 1 && !MeasuresSpread<Method>;
  bool in_turn() const {
    return extent_of(Method::pools[0], plan_.affinity) == Extent::cell && !args_.given_mean &&
           !args_.last_mean && !args_.residual && be_.takes_turns();
  }
  // The cells of blocks, a tile at a time: what block_statistics, export_statistics and solve do
  // for a block is here two loops, as a tile is a few rows and every call counts.
  void cells_in_turn(Index first, Index last) const {
    auto tiles = [&](Index most, auto f) {
      for (Index i = first; i < last; ++i) {
        be_.check();
        const Block b = block_at(plan_, i);
        for (Index o = b.o0; o < b.o0 + b.on; ++o) {
          for (Index k = 0; k < b.kn; k += most) {
            f({o, b.k0 + k, std::min(most, b.kn - k), 0, plan_.count});
          }
        }
      }
    };
    const double count = plan_.cell_elements();
    auto solve = [&](const auto& tile, const double* mean, const double* m2, const auto& to) {
      const Index k0 = tile.k0, at = tile.o * plan_.cells + k0;
      be_.each_cell(
          tile.kn, [=, params = params_, weight = args_.channel_weight, bias = args_.channel_bias,
                    a = to.a, center = to.center, shift = to.shift](Index j) NORMCORE_INLINED {
            const double var = m2[j] / count;
            const Stats stats = counted_from_center<Method::raw>(mean[j], var, count, center + j);
            const Applied<C> y = applied<C>(Method::coefficients({stats}, params, k0 + j),
                                            weight ? weight[k0 + j] : 1, bias ? bias[k0 + j] : 0);
            a[j] = y.a;
            shift[j] = y.shift;
          });
      if (!args_.mean) return;
      be_.each_cell(tile.kn,
                    [=, params = params_, mean_to = args_.mean + at, var_to = args_.var + at,
                     rstd_to = args_.rstd + at](Index j) NORMCORE_INLINED {
                      const double var = m2[j] / count;
                      mean_to[j] = mean[j];
                      var_to[j] = var;
                      rstd_to[j] = Method::rstd({0, var, count}, params, k0 + j);
                    });
    };
    be_.apply_in_turn(tiles, solve, args_.element_weight, args_.element_bias, args_.x, args_.y,
                      Method::raw);
  }

  void block(const Block& b) {
    const Units units(plan_, b);
    const Index n = units.count();
    Scope scope(be_.workspace());
    add_residual(units);
    const Coefficients f = solved(b, nullptr, scope);
    if (!args_.y) return;
    for_units(be_, n, [&](Index u) { apply(units.range(u), f); }, plan_.second_sweep);
  }

  // Blocks one after the other, each of them applied while the next one is reduced.
  void blocks(Index first, Index last) {
    Scope scope(be_.workspace());
    Units units(plan_, block_at(plan_, first));
    const Block largest{0, plan_.block_outer, 0, plan_.block_cells};
    const CellMoments moments = CellMoments::take(Units(plan_, largest), scope);
    auto reduce = [&](const Units& of, Index u, const Range& range) {
      const CellMoments to = moments.of(of, u, range);
      be_.reduce(range, Method::raw, args_.x, to.mean, to.m2);
    };
    add_residual(units);
    for (Index u = 0; u < units.count(); ++u) reduce(units, u, units.range(u));
    for (Index i = first; i < last; ++i) {
      Scope inner(be_.workspace());
      const Coefficients f = solved(units.block, &moments, inner);
      if (i + 1 == last) {
        for (Index u = units.count(); u-- > 0;) apply(units.range(u), f);
        return;
      }
      be_.check();
      const Units next(plan_, block_at(plan_, i + 1));
      add_residual(next);
      const bool alike = next.block.on == units.block.on && next.block.kn == units.block.kn;
      for (Index u = 0; u < units.count(); ++u) {
        const Range range = units.range(u);
        if (alike) {
          const Range other = next.range(u);
          const CellMoments to = moments.of(next, u, other);
          be_.apply_and_reduce(range, f.table, {f.a, f.center, f.shift}, args_.element_weight,
                               args_.element_bias, args_.x, args_.y, other, Method::raw, to.mean,
                               to.m2);
        } else {
          apply(range, f);
        }
      }
      for (Index u = 0; !alike && u < next.count(); ++u) reduce(next, u, next.range(u));
      units = next;
    }
  }

  void add_residual(const Units& units) const {
    if (!args_.residual) return;
    for_units(be_, units.count(), [&](Index u) {
      be_.add(units.range(u), args_.x_in, args_.residual, const_cast<void*>(args_.x));
    });
  }
  void apply(const Range& range, const Coefficients& f) const {
    be_.apply(range, f.table, {f.a, f.center, f.shift}, args_.element_weight, args_.element_bias,
              args_.x, args_.y);
  }

  // The statistics of a block, written where the caller wants them, and what follows from them.
  Coefficients solved(const Block& b, const CellMoments* reduced, Scope& scope) const {
    Solved<P, C> s;
    block_statistics<Method>(be_, args_, b, scope, s, reduced);
    measure_spread<Method>(be_, args_, params_, b, scope, s);
    export_statistics<Method>(be_, args_, params_, b, s);
    if (!args_.y) return {};
    C* a = scope.template take<C>(s.rows * b.kn);
    C* shift = scope.template take<C>(s.rows * b.kn);
    solve(b, s, a, shift, scope);
    return {{b.o0, b.k0, s.row_step}, a, shift, s.center};
  }

  void solve(const Block& b, const Solved<P, C>& s, C* a, C* shift, Scope& scope) const {
    for_channels(be_, b, s.rows, args_.channel_weight, args_.channel_bias, scope,
                 [=, cells = s.cells, params = params_, k0 = b.k0](
                     Index cell, Index k, double weight, double bias) NORMCORE_INLINED {
                   const Coef f = Method::coefficients(cells.at(cell).stats, params, k0 + k);
                   const Applied<C> y = applied<C>(f, weight, bias);
                   a[cell] = y.a;
                   shift[cell] = y.shift;
                 });
  }

  const Backend& be_;
  const Plan& plan_;
  const ForwardArgs<C>& args_;
  const typename Method::Params& params_;
};

}  // namespace normcore
