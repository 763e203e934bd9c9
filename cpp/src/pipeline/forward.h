// The forward pipeline: reduce, pool, solve, apply; once for all methods and backends.
#pragma once

#include "pipeline/spread.h"
#include "pipeline/statistics.h"

namespace normcore {

template <class Method, class Backend>
void forward(const Backend& be, const ForwardArgs<typename Backend::Compute>& args,
             const typename Method::Params& params) {
  using C = typename Backend::Compute;
  const Plan& plan = be.plan();
  const Index blocks = plan.outer_blocks() * plan.cell_blocks();

  auto run_block = [&](Index i) {
    const Block b = block_at(plan, i);
    const Units units(plan, b);
    typename Backend::Scope scope(be.workspace());

    if (args.residual) {
      for_units(be, units.count(), [&](Index u) {
        be.add(units.range(u), args.x_in, args.residual, const_cast<void*>(args.x));
      });
    }
    Solved<Method, C> s;
    block_statistics<Method>(be, args, b, scope, s);
    measure_spread<Method>(be, args, params, b, scope, s);
    export_statistics<Method>(be, args, params, b, s);
    if (!args.y) return;

    C* a = scope.template take<C>(s.rows * b.kn);
    C* shift = scope.template take<C>(s.rows * b.kn);
    const CellStats<Method> cells = s.cells;
    auto solve = [cells, params, a, shift, k0 = b.k0](Index first, Index n, auto weight,
                                                      auto bias) {
      for (Index k = 0; k < n; ++k) {
        const Coef f = Method::coefficients(cells.at(first + k).stats, params, k0 + k);
        a[first + k] = C(weight(k) * f.a);
        shift[first + k] = C(weight(k) * f.b + bias(k));
      }
    };
    if (args.channel_weight || args.channel_bias) {
      auto weight = per_channel(args.channel_weight, 1, b, scope);
      auto bias = per_channel(args.channel_bias, 0, b, scope);
      for (Index o = 0; o < s.rows; ++o) solve(o * b.kn, b.kn, weight, bias);
    } else {
      // In one loop where cells are no channels.
      auto same = [](double v) { return [v](Index) { return v; }; };
      const Index loops = plan.affinity == Affinity::element ? 1 : s.rows;
      const Index n = loops == 1 ? s.rows * b.kn : b.kn;
      for (Index o = 0; o < loops; ++o) solve(o * n, n, same(1), same(0));
    }
    const typename Backend::Table table{b.o0, b.k0, s.row_step};
    // A second sweep begins where the first one ended, which is still in cache.
    const Index n = units.count();
    for_units(be, n, [&](Index u) {
      be.apply(units.range(plan.second_sweep ? n - 1 - u : u), table, {a, s.center, shift},
               args.element_weight, args.element_bias, args.x, args.y);
    });
  };

  if (plan.fused) {
    be.parallel(blocks, run_block);
  } else {
    run_block(0);
  }
}

}  // namespace normcore
