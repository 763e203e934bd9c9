// The backward pipeline: reduce sum(dy) and sum(dy * x), let the method pull them back to its
// pools, share that out among each pool's members, apply; once for all methods. The formulas are in
// step.h.
#pragma once

#include <algorithm>
#include <array>
#include <bit>

#include "pipeline/spread.h"
#include "pipeline/statistics.h"
#include "plan/tuning.h"

namespace normcore {

template <class Method, class Backend>
class Backward {
  using C = typename Backend::Compute;
  using Scope = typename Backend::Scope;
  static constexpr int P = kPoolCount<Method>;
  static constexpr int G = kParameterCount<Method>;

 public:
  Backward(const Backend& be, const BackwardArgs<C>& args, const typename Method::Params& params)
      : be_(be), plan_(be.plan()), args_(args), params_(params) {}

  void run() {
    Scope scope(be_.workspace());
    if (elementwise()) {
      run_elementwise(scope);
    } else {
      run_channelwise(scope);
    }
  }

 private:
  struct CellGradients {
    double* mean[P];
    double* var[P];
    StatsGrad at(int pool, Index cell) const { return {mean[pool][cell], var[pool][cell]}; }
  };

  // Sums over the elements of cells, of the pieces of a block [pieces, kn], and of the rows [rows,
  // kn] where these are joined.
  struct CellSums {
    double *dy_u = nullptr, *dy_1 = nullptr;

    static CellSums take(const Units& units, Scope& scope) {
      const Index n = units.pieces() * units.block.kn;
      return {scope.template take<double>(n), scope.template take<double>(n)};
    }
    CellSums from(Index entry) const { return {dy_u + entry, dy_1 + entry}; }
    void join(const Units& units, Index rows) const {
      fold_pieces(units, rows, {dy_u, dy_1}, [&](Index to, Index from, Index) {
        for (Index k = 0; k < units.block.kn; ++k) {
          dy_u[to + k] += dy_u[from + k];
          dy_1[to + k] += dy_1[from + k];
        }
      });
    }
  };

  bool elementwise() const { return static_cast<bool>(args_.element_weight); }
  // Pools that are computed from x, and pass gradients on, begin here.
  int computed() const { return args_.given_mean ? 1 : 0; }

  // Where a block leaves the gradients of its channels, [kn] each; null where nobody asks.
  struct ChannelGradients {
    double* dweight = nullptr;
    double* dbias = nullptr;
    double* dparams = nullptr;  // the first of G
    Index next = 0;             // from one to the next
  };

  // Each block leaves its part of the channels' gradients in a row of its own, summed at the end.
  void run_channelwise(Scope& scope) {
    const Index rows = plan_.outer_blocks(), n = rows * plan_.cells;
    double* dweight = args_.dweight ? scope.template take<double>(n) : nullptr;
    double* dbias = args_.dweight ? scope.template take<double>(n) : nullptr;
    double* dparams = args_.dparams ? scope.template take<double>(G * n) : nullptr;
    auto run_block = [&](Index i) {
      const Block b = block_at(plan_, i);
      const Index at = b.o0 / plan_.block_outer * plan_.cells + b.k0;
      ChannelGradients to;
      if (dweight) to.dweight = dweight + at, to.dbias = dbias + at;
      if (dparams) to.dparams = dparams + at, to.next = n;
      block(b, to, nullptr, nullptr);
    };
    if (plan_.fused) {
      be_.parallel(plan_.blocks(), run_block);
    } else {
      run_block(0);
    }
    if (dweight) {
      sum_rows(dweight, rows, plan_.cells, args_.dweight);
      sum_rows(dbias, rows, plan_.cells, args_.dbias);
    }
    for (int i = 0; dparams && i < G; ++i) {
      sum_rows(dparams + i * n, rows, plan_.cells, args_.dparams + i * plan_.cells);
    }
  }

  // Blocks are dealt out in a fixed number of runs, and each run sums the elements' gradients. Of
  // rows with parameters of their own a run takes the same cells, strip by strip.
  void run_elementwise(Scope& scope) {
    const Index rows = plan_.parameter_rows();
    const Index n = plan_.count * rows;
    const Index cells = rows > 1 ? plan_.cells : plan_.outer * plan_.cells;  // that share them
    const Index down = rows > 1 ? plan_.outer_blocks() : 1;
    const Index strips = rows > 1 ? plan_.cell_blocks() : plan_.blocks();
    Index runs = 1;
    if (plan_.fused) {
      const bool share =
          plan_.count >= tuning::kLongParameters && 2 * cells >= tuning::kParameterTaskCells;
      const Index least = share ? 2 : 1;
      const Index most = std::max(tuning::kFewParameterTasks,
                                  tuning::kParameterSumBytes / (n * 2 * Index(sizeof(C))));
      runs = std::min(std::clamp(ceil_div(cells, tuning::kParameterTaskCells), least,
                                 std::min(tuning::kParameterTasks, most)),
                      strips);
    }
    const bool wanted = args_.dweight || args_.dweight_here || args_.dbias || args_.dbias_here;
    // The sums of a single run are the gradients.
    auto table = [&](C* here) -> C* {
      if (!wanted) return nullptr;
      return here && runs == 1 ? here : scope.template take<C>(runs * n);
    };
    C* dweight = table(args_.dweight_here);
    C* dbias = table(args_.dbias_here);
    auto of_run = [&](Index run, C* sums) -> C* {  // by the thread that adds to them
      if (wanted) std::fill_n(sums + run * n, n, C(0));
      return wanted ? sums + run * n : nullptr;
    };
    if (plan_.fused) {
      be_.parallel(runs, [&](Index run) {
        C* dw = of_run(run, dweight);
        C* db = of_run(run, dbias);
        Scope inner(be_.workspace());
        double* wide_dw = nullptr;
        double* wide_db = nullptr;
        Index since_flush = 0;
        const Index first = run * strips / runs, last = (run + 1) * strips / runs;
        for (Index i = first * down; i < last * down; ++i) {
          const auto [strip, row] = split(i, down);
          const Block b = block_at(plan_, row * strips + strip);
          const Index more = row > 0 ? 0 : rows > 1 ? b.kn : b.on * b.kn;
          if (wanted && since_flush > 0 && more > 0 &&
              since_flush + more > tuning::kParameterFlushCells) {
            if (!wide_dw) {
              wide_dw = inner.template take_filled<double>(n, 0);
              wide_db = inner.template take_filled<double>(n, 0);
            }
            flush(dw, n, wide_dw);
            flush(db, n, wide_db);
            since_flush = 0;
          }
          block(b, {}, dw, db);
          since_flush += more;
        }
        for (Index s = 0; wide_dw && s < n; ++s) {
          dw[s] = C(wide_dw[s] + double(dw[s]));
          db[s] = C(wide_db[s] + double(db[s]));
        }
      });
    } else {
      block(block_at(plan_, 0), {}, of_run(0, dweight), of_run(0, dbias));
    }
    if (wanted) {
      finish(dweight, runs, n, args_.dweight_here, args_.dweight);
      finish(dbias, runs, n, args_.dbias_here, args_.dbias);
    }
  }
  void finish(const C* table, Index runs, Index n, C* here, double* wide) const {
    if (here) {
      if (table != here) sum_rows(table, runs, n, here);
    } else if (wide) {
      sum_rows(table, runs, n, wide);
    }
  }

  static void flush(C* from, Index n, double* to) {
    for (Index s = 0; s < n; ++s) {
      to[s] += double(from[s]);
      from[s] = 0;
    }
  }

  // out[j] = sum over rows of table[row, j], in the order of the rows.
  template <class T, class Out>
  void sum_rows(const T* table, Index rows, Index n, Out* out) const {
    constexpr Index kStrip = 1024;
    be_.parallel((n + kStrip - 1) / kStrip, [&](Index strip) {
      const Index first = strip * kStrip, last = std::min(n, first + kStrip);
      double room[kStrip];
      be_.each_cell(last - first, [sums = room, from = table + first](Index j)
                                      NORMCORE_INLINED { sums[j] = double(from[j]); });
      for (Index i = 1; i < rows; ++i) {
        be_.each_cell(last - first, [sums = room, from = table + i * n + first](Index j)
                                        NORMCORE_INLINED { sums[j] += double(from[j]); });
      }
      be_.each_cell(last - first, [sums = room, to = out + first](Index j)
                                      NORMCORE_INLINED { to[j] = Out(sums[j]); });
    });
  }

  // One closed block. Gradients of the channels go to `to`, or of the elements to dw, db: [count].
  void block(const Block& b, const ChannelGradients& to, C* dw, C* db) {
    Scope scope(be_.workspace());
    const Units units(plan_, b);
    const CellSums sums = CellSums::take(units, scope);
    CellSums products;  // the same of x for u
    CellMoments squares;
    const bool summed = sums_with_squares();
    if (summed) {
      products = CellSums::take(units, scope);
      squares = squares_and_products(units, products, scope);
    }
    Solved<P, C> s;
    block_statistics<Method>(be_, args_, b, scope, s, summed ? &squares : nullptr);
    measure_spread<Method>(be_, args_, params_, b, scope, s);
    const Index cells = s.rows * b.kn;
    GradientTable<C> t{};
    t.center = s.center;
    t.each([&]<class T>(T*& array) { array = scope.template take<T>(cells); });
    solve(b, s, t, scope);
    const bool without_x = ShiftsOnly<Method> || computed() == P;
    const C* zeros = without_x ? scope.template take_filled<C>(cells, 0) : nullptr;

    const typename Backend::Table table{b.o0, b.k0, s.row_step};
    // Where threads have units of the same cells the elements' gradients are summed in the end.
    const typename Backend::ParameterGradients parameters{{t.a_c, t.center, t.b_c}, dw, db};
    const typename Backend::ParameterGradients nowhere;
    const bool reduced = computed() < P && !args_.saved_mean();
    auto sum_unit = [&](Index i) {
      const Range range = units.range(i);
      const CellSums to = sums.from(units.first_entry(i, range));
      if constexpr (ShiftsOnly<Method>) {
        be_.total(range, table, zeros, args_.dy, to.dy_u, to.dy_1);
      } else {
        be_.sums(range, table, {t.center, t.unit_c}, args_.element_weight,
                 plan_.fused ? parameters : nowhere, reduced, args_.dy, args_.x, to.dy_u, to.dy_1);
      }
    };
    auto grad_range = [&](const Range& range) {
      if (args_.population.mask) {
        be_.grad_masked(range, table, {t.p, t.q, t.r, {t.center, t.unit_c}}, args_.population.mask,
                        args_.dy, args_.x, args_.dx);
        return;
      }
      if constexpr (ShiftsOnly<Method>) {
        be_.scale_gradient(range, table, t.p, zeros, t.r, args_.dy, args_.dx);
        return;
      }
      be_.grad(range, table, {t.p, t.q, t.r, {t.center, t.unit_c}}, args_.element_weight,
               plan_.fused ? nowhere : parameters, reduced, args_.dy, args_.x, args_.dh, args_.dx);
    };

    const Index n = units.count();
    if (computed() == P) {
      // No gradient flows through the statistics: one sweep does both.
      for_units(be_, n, [&](Index i) {
        if (to.dweight) sum_unit(i);
        be_.scale_gradient(units.range(i), table, t.p, zeros, zeros, args_.dy, args_.dx);
      });
      if (to.dweight) {
        sums.join(units, s.rows);
        channel_gradients(b, s, t, sums, to.dweight, to.dbias);
      }
      return;
    }

    if constexpr (MeasuresSpread<Method>) {
      BlockSpread<Backend> spread(be_, b, s, args_.x, params_.spread, scope);
      spread.begin_slopes();
      for_units(be_, n, [&](Index i) {
        sum_unit(i);
        spread.tally_unit(i);  // while x is in cache
      });
      sums.join(units, s.rows);
      if (to.dweight) channel_gradients(b, s, t, sums, to.dweight, to.dbias);
      through_spread(b, s, pull_back(b, s, t, sums, to, scope), units, t, spread);
      return;
    }
    auto sum_all = [&] {
      for_units(be_, n, sum_unit);
      sums.join(units, s.rows);
    };
    if (summed) {
      products.join(units, s.rows);
      take_products(products, s.cells.count[0], cells, t, sums, sum_all);
    } else {
      sum_all();
    }
    if (to.dweight) channel_gradients(b, s, t, sums, to.dweight, to.dbias);
    share_out(b, s, pull_back(b, s, t, sums, to, scope), t, sums.dy_1);
    if (elementwise() && !plan_.fused) {
      // Cells share the elements' gradients: one task per stretch of the cells.
      auto stretch = [&](Index i) {
        const Index s0 = i * plan_.piece_space;
        grad_range({b.o0, b.on, b.k0, b.kn, s0, std::min(plan_.piece_space, plan_.count - s0)});
      };
      be_.parallel(units.space_pieces, stretch, /*backwards=*/true);
    } else {
      for_units(be_, n, [&](Index i) { grad_range(units.range(i)); }, /*backwards=*/true);
    }
  }

  // Whether dy is summed while x is there for its squares: columns are then read once less. Nothing
  // is subtracted from x, and the unit is a power of two: unless something is lost at an end of the
  // range, the sums of dy * x are those of dy * u to the bit but for that factor.
  bool sums_with_squares() const {
    return Method::raw && P == 1 && !MeasuresSpread<Method> && plan_.layout == Layout::columns &&
           !elementwise() && !args_.given_mean && !args_.saved_mean() && !args_.population.mask;
  }
  CellMoments squares_and_products(const Units& units, const CellSums& products,
                                   Scope& scope) const {
    const CellMoments m = CellMoments::take(units, scope);
    const C* zeros = scope.template take_filled<C>(units.block.kn, 0);
    const C* ones = scope.template take_filled<C>(units.block.kn, 1);
    for_units(be_, units.count(), [&](Index i) {
      const Range range = units.range(i);
      const Index at = units.first_entry(i, range);
      const typename Backend::Table table{range.o0, units.block.k0, 0};
      be_.reduce_with_sums(range, table, {zeros, ones}, args_.dy, args_.x, m.mean + at, m.m2 + at,
                           products.dy_u + at, products.dy_1 + at);
    });
    return m;
  }

  // Sums from those of dy * x, and for cells whose products are not safe from sum_all().
  template <class F>
  static void take_products(const CellSums& products, double elements, Index cells,
                            const GradientTable<C>& t, const CellSums& sums, F sum_all) {
    auto safe = [&](Index cell) { return products_are_safe<C>(products.dy_u[cell], elements); };
    Index cell = 0;
    while (cell < cells && safe(cell)) ++cell;
    if (cell < cells) sum_all();
    for (cell = 0; cell < cells; ++cell) {
      if (!safe(cell)) continue;
      sums.dy_u[cell] = products.dy_u[cell] * t.unit[cell];
      sums.dy_1[cell] = products.dy_1[cell];
    }
  }

  void solve(const Block& b, const Solved<P, C>& s, const GradientTable<C>& table,
             Scope& scope) const {
    for_channels(be_, b, s.rows, args_.channel_weight, nullptr, scope,
                 [cells = s.cells, t = table, params = params_, k0 = b.k0](
                     Index cell, Index k, double weight, double) NORMCORE_INLINED {
                   t.solve(cell, Method::coefficients(cells.at(cell).stats, params, k0 + k),
                           weight);
                 });
  }

  void channel_gradients(const Block& b, const Solved<P, C>& s, const GradientTable<C>& table,
                         const CellSums& sums, double* dweight, double* dbias) const {
    for (Index k = 0; k < b.kn; ++k) dweight[k] = dbias[k] = 0;
    for (Index o = 0; o < s.rows; ++o) {
      be_.each_cell(b.kn, [=, t = table, first = o * b.kn](Index k) NORMCORE_INLINED {
        const Index cell = first + k;
        const double dy_u = sums.dy_u[cell], dy_1 = sums.dy_1[cell];
        dweight[k] += weight_gradient(t.coefficients(cell), dy_u, dy_1, t.unit[cell]);
        dbias[k] += dy_1;
      });
    }
  }

  // From the sums over dy to the gradients of the pooled statistics, given to each of their cells.
  CellGradients pull_back(const Block& b, const Solved<P, C>& s, const GradientTable<C>& t,
                          const CellSums& sums, const ChannelGradients& to, Scope& scope) const {
    const Index cells = s.rows * b.kn;
    for (int i = 0; to.dparams && i < G; ++i) {
      for (Index k = 0; k < b.kn; ++k) to.dparams[i * to.next + k] = 0;
    }
    CellGradients d;
    for (int i = 0; i < P; ++i) {
      d.mean[i] = scope.template take<double>(cells);
      d.var[i] = scope.template take<double>(cells);
    }
    for_channels(be_, b, s.rows, args_.channel_weight, nullptr, scope,
                 [=, cells = s.cells, params = params_, k0 = b.k0](
                     Index cell, Index k, double weight, double) NORMCORE_INLINED {
                   const CoefGrad g =
                       coefficient_gradient(weight, sums.dy_u[cell], sums.dy_1[cell], t.unit[cell]);
                   StatsGrad ds[P] = {};
                   typename Method::ParamsGrad dp;
                   Method::pullback(cells.at(cell).stats, params, k0 + k, g, ds, dp);
                   if constexpr (G > 0) {
                     const auto values = std::bit_cast<std::array<double, G>>(dp);
                     for (int i = 0; to.dparams && i < G; ++i)
                       to.dparams[i * to.next + k] += values[i];
                   }
                   for (int i = 0; i < P; ++i) {
                     // A gradient with respect to a mean that counts from the centre.
                     d.mean[i][cell] = ds[i].mean;
                     d.var[i][cell] = ds[i].var;
                   }
                 });
    for (int i = computed(); i < P; ++i) {
      Exchange* exchange = Method::pools[i] == Pool::batch ? args_.population.exchange : nullptr;
      share_by_pool(s.pools[i], s.rows, exchange, scope, d.mean[i]);
      share_by_pool(s.pools[i], s.rows, exchange, scope, d.var[i]);
    }
    return d;
  }

  // From the gradients of the pooled statistics to q and r.
  void share_out(const Block& b, const Solved<P, C>& s, const CellGradients& d,
                 const GradientTable<C>& table, const double* dy_1) const {
    const Index cells = s.rows * b.kn;
    const CellStats<P> stats = s.cells;
    const GradientTable<C> t = table;
    if constexpr (P == 1) {
      if (elementwise()) {
        be_.each_cell(cells, [=](Index c) NORMCORE_INLINED {
          const Stats pool = stats.at(c).stats[0];
          t.share(c, Share::by_element<Method::raw>(d.var[0][c], dy_1[c], pool, t.a[c]));
        });
        return;
      }
    }
    if (is_always_zero<Method>(stats.count[0]) && !args_.population.mask) {
      for (C* column : {t.p, t.q, t.r}) std::fill_n(column, cells, C(0));
      return;
    }
    std::array<double, P> parts;  // a division for each cell would be a third of the loop
    for (int i = 0; i < P; ++i) parts[i] = 1 / stats.count[i];
    be_.each_cell(cells, [=, first = computed()](Index c) NORMCORE_INLINED {
      Share share;
      for (int i = first; i < P; ++i) {
        share.add<Method::raw>(d.at(i, c), stats.mean[i][c], parts[i]);
      }
      t.share(c, share);
    });
  }

  // As share_out and the end of block, with slopes in place of u. There are no elementwise
  // parameters.
  void through_spread(const Block& b, const Solved<P, C>& s, const CellGradients& d,
                      const Units& units, const GradientTable<C>& t,
                      BlockSpread<Backend>& spread) const {
    spread.end_slopes();
    for (Index c = 0; c < s.rows * b.kn; ++c) {
      const Share share =
          share_of_slopes<Method::raw>(d.at(0, c), spread.slopes(c), s.pools[0].count);
      t.q[c] = C(share.q);
      t.r[c] = C(share.r);
    }
    const auto f = spread.kernel_arguments();
    const typename Backend::Table table{b.o0, b.k0, s.row_step};
    auto grad_unit = [&](Index i) {
      be_.slope_grad(units.range(i), table, {t.p, t.q, t.r, {}}, f, args_.dy, args_.x, args_.dx);
    };
    for_units(be_, units.count(), grad_unit, /*backwards=*/true);
  }

  // Replaces every cell's value by the sum over the cells of its pool, also in other processes.
  static void share_by_pool(const PoolTable& pool, Index rows, Exchange* exchange, Scope& scope,
                            double* values) {
    const Index entries = pool.rows * pool.cols;
    double* sum = values;
    if (entries != rows * pool.cols * pool.cell_div) {
      sum = scope.template take_filled<double>(entries, 0);
      pool.for_cells(rows, [=](Index e, Index cell) { sum[e] += values[cell]; });
    }
    if (exchange && entries > 0) exchange->sum(sum, entries);
    if (sum != values) pool.for_cells(rows, [=](Index e, Index cell) { values[cell] = sum[e]; });
  }

  const Backend& be_;
  const Plan& plan_;
  const BackwardArgs<C>& args_;
  const typename Method::Params& params_;
};

}  // namespace normcore
