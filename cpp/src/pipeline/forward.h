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
      be_.parallel(runs, [&](Index i) { blocks(i * n / runs, (i + 1) * n / runs); });
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
