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
    auto run_block = [&](Index i) { block(block_at(plan_, i)); };
    if (plan_.fused) {
      be_.parallel(plan_.blocks(), run_block);
    } else {
      run_block(0);
    }
  }

 private:
  void block(const Block& b) {
    const Units units(plan_, b);
    const Index n = units.count();
    Scope scope(be_.workspace());
    if (args_.residual) {
      for_units(be_, n, [&](Index u) {
        be_.add(units.range(u), args_.x_in, args_.residual, const_cast<void*>(args_.x));
      });
    }
    Solved<P, C> s;
    block_statistics<Method>(be_, args_, b, scope, s);
    measure_spread<Method>(be_, args_, params_, b, scope, s);
    export_statistics<Method>(be_, args_, params_, b, s);
    if (!args_.y) return;

    C* a = scope.template take<C>(s.rows * b.kn);
    C* shift = scope.template take<C>(s.rows * b.kn);
    solve(b, s, a, shift, scope);
    const typename Backend::Table table{b.o0, b.k0, s.row_step};
    // A second sweep begins where the first one ended, which is still in cache.
    for_units(be_, n, [&](Index u) {
      be_.apply(units.range(plan_.second_sweep ? n - 1 - u : u), table, {a, s.center, shift},
                args_.element_weight, args_.element_bias, args_.x, args_.y);
    });
  }

  void solve(const Block& b, const Solved<P, C>& s, C* a, C* shift, Scope& scope) const {
    for_channels(plan_, b, s.rows, args_.channel_weight, args_.channel_bias, scope,
                 [cells = s.cells, params = params_, a, shift, k0 = b.k0](Index first, Index n,
                                                                          auto weight, auto bias) {
                   for (Index k = 0; k < n; ++k) {
                     const Index cell = first + k;
                     const Coef f = Method::coefficients(cells.at(cell).stats, params, k0 + k);
                     const Applied<C> y = applied<C>(f, weight(k), bias(k));
                     a[cell] = y.a;
                     shift[cell] = y.shift;
                   }
                 });
  }

  const Backend& be_;
  const Plan& plan_;
  const ForwardArgs<C>& args_;
  const typename Method::Params& params_;
};

}  // namespace normcore
