// The CPU's answer to what forward.h and backward.h ask of a backend: reduce and apply over a range
// of the table, tile by tile, and loops over tasks.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "cpu/cell_loops.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"
#include "cpu/tiles.h"
#include "plan/element_parameter.h"
#include "plan/pool.h"
#include "plan/steps.h"
#include "plan/tuning.h"

namespace normcore::cpu {

static_assert(int(Layout::rows) == kRows && int(Layout::columns) == kCols);

// C is the compute type of the element type.
template <class C>
class Backend {
 public:
  using Compute = C;
  using Scope = Workspace::Scope;

  Backend(const Plan& plan, DType dtype, int threads)
      : plan_(plan),
        table_(kernels()),
        set_(kernel_set<C>(table_, dtype)),
        tiles_(plan, dtype),
        mask_tiles_(plan, DTypeOf<C>::value),
        layout_(static_cast<int>(plan.layout)),
        next_columns_(asks_for_columns(plan)),
        next_rows_(asks_for_rows(plan)),
        threads_(threads_for(plan.bytes, threads)) {}

  const Plan& plan() const { return plan_; }
  // Throws where the call should end.
  static void check() { RunningCall::check(); }
  int threads() const { return threads_; }
  static Workspace& workspace() { return Workspace::local(); }

  // f(task) for every task, with `backwards` from the last one on where that pays.
  template <class F>
  void parallel(Index tasks, F&& f, bool backwards = false) const {
    // Neighbouring strips of columns share a cache line in every row: two threads that go down them
    // side by side write each in turn.
    const bool strips = !rows() && plan_.unit_cells < plan_.cells;
    const bool sticky = strips || plan_.bytes <= tuning::kStickyBytes;
    const bool up = backwards && goes_back();
    parallel_for(tasks, threads_, {.sticky = sticky, .backwards = up}, f);
  }

  // Into how many runs of neighbours closed blocks are dealt: enough to even out the threads.
  Index runs() const { return threads_ > 1 ? 4 * Index(threads_) : 1; }

  // f(cell) for [0, n), in vectors: f is to be inlined, and its cells have nothing in common.
  template <class F>
  void each_cell(Index n, const F& f) const {
    cpu::each_cell(table_.vector_bytes, n, f);
  }
  void merge(Index n, double count_a, double* mean_a, double* m2_a, double count_b,
             const double* mean_b, const double* m2_b) const {
    table_.merge(n, count_a, mean_a, m2_a, count_b, mean_b, m2_b);
  }

  // Moments of the cells of a range, over its rows too: mean[kn], m2[kn].
  void reduce(const Range& range, bool raw, const void* x, double* mean, double* m2) const {
    Scope scope(workspace());
    void* scratch = scope.take<char>(tiles_.scratch_bytes(kX));
    const TileMoments tile(*this, scope, raw);
    for_tiles(range, /*reverse=*/false, [&](const TileRange& t) {
      tile.add(range, t, with_what_follows(kX, tiles_.in(kX, x, t, scratch)), mean, m2);
    });
  }

  // The same of the elements that a mask lets count, and the sum of its weights: weight[kn].
  void reduce_masked(const Range& range, const void* mask, const void* x, double* weight,
                     double* mean, double* m2) const {
    Scope scope(workspace());
    void* scratch_x = scope.take<char>(tiles_.scratch_bytes(kX));
    void* scratch_mask = scope.take<char>(mask_tiles_.scratch_bytes(kMask));
    double* tile_weight = scope.take<double>(plan_.tile_cells);
    double* tile_mean = scope.take<double>(plan_.tile_cells);
    double* tile_m2 = scope.take<double>(plan_.tile_cells);
    for (Index k = 0; k < range.kn; ++k) weight[k] = mean[k] = m2[k] = 0;
    for_tiles(range, /*reverse=*/false, [&](const TileRange& t) {
      const In xt = tiles_.in(kX, x, t, scratch_x);
      const In mt = mask_tiles_.in(kMask, mask, t, scratch_mask);
      set_.masked_moments[layout_](xt, mt, height(t), width(t), tile_weight, tile_mean, tile_m2);
      const Index k = t.k0 - range.k0;
      merge_weighted(t.kn, weight + k, mean + k, m2 + k, tile_weight, tile_mean, tile_m2);
    });
  }

  // Coefficients are indexed by the cells of the range; with `per_row` each row has its own.
  struct Table {
    Index o0, k0, row;  // first cell, and cells from row to row: 0 where rows share
    Index at(const TileRange& t) const { return (t.o - o0) * row + (t.k0 - k0); }
  };

  // y = a * (x - center) + b, and with elementwise parameters weight * that + bias.
  void apply(const Range& range, const Table& table, Affine<C> f, ElementParameter<C> weight,
             ElementParameter<C> bias, const void* x, void* y) const {
    Scope scope(workspace());
    void* scratch_x = scope.take<char>(tiles_.scratch_bytes(kX));
    void* scratch_y = scope.take<char>(tiles_.scratch_bytes(kY));
    CellValues of(*this, scope);
    for_tiles(range, plan_.backwards, [&](const TileRange& t) {
      const In xt = with_prefetch(kX, tiles_.in(kX, x, t, scratch_x));
      const Out yt = tiles_.out(kY, y, t, scratch_y);
      of.move_to(table, t);
      const Affine<C> at{of(f.a), of(f.center), of(f.b)};
      if (weight) {
        set_.weighted_affine[layout_](xt, yt, height(t), width(t), at, weight.at(t.o, t.s0),
                                      bias.at(t.o, t.s0));
      } else {
        set_.affine[layout_](xt, yt, height(t), width(t), at);
      }
      tiles_.commit(kY, y, t, yt);
    });
  }

  // Whether a range is applied in the loop that reduces another.
  bool overlaps() const { return rows() && plan_.access[kX].direct && plan_.access[kY].direct; }
  // apply of a range and reduce of one of the same shape.
  void apply_and_reduce(const Range& range, const Table& table, Affine<C> f,
                        ElementParameter<C> weight, ElementParameter<C> bias, const void* x,
                        void* y, const Range& next, bool raw, double* mean, double* m2) const {
    Scope scope(workspace());
    double* tile_mean = scope.take<double>(plan_.tile_cells);
    double* tile_m2 = scope.take<double>(plan_.tile_cells);
    auto kernel = set_.affine_moments[bool(weight)][raw];
    for_tiles(next, /*reverse=*/false, [&](const TileRange& n) {
      const TileRange t{range.o0 + (n.o - next.o0), range.k0 + (n.k0 - next.k0), n.kn, n.s0, n.sn};
      const In xt = tiles_.in(kX, x, t, nullptr);
      In nt = with_prefetch(kX, tiles_.in(kX, x, n, nullptr));
      // Measured: 0.77 to 1.0 of the time of asking for the next block.
      if (nt.ahead != 0 && across_samples()) nt.ahead = tuning::kPage / tiles_.element_bytes();
      const Out yt = tiles_.out(kY, y, t, nullptr);
      const Index i = table.at(t);
      reduce_tile(next, n, mean, m2, tile_mean, tile_m2, [&](double* to_mean, double* to_m2) {
        kernel(xt, yt, height(t), width(t), from(f, i), weight ? weight.at(t.o, t.s0) : nullptr,
               weight ? bias.at(t.o, t.s0) : nullptr, nt, to_mean, to_m2);
      });
    });
  }

  // Whether cells are solved as soon as they are reduced: short rows in place, a few of which the
  // nearest cache holds. Measured: 0.74 to 0.95 of the time of blocks, but 1.0 to 1.15 where 16
  // bits are converted.
  bool takes_turns() const {
    return overlaps() && plan_.fused && plan_.count <= plan_.chunk &&
           turn_cells() >= std::min<Index>(4, plan_.block_cells) &&
           tiles_.element_bytes() == Index(sizeof(C));
  }
  // Cells are reduced, solved and applied a few at a time, these while the next ones are reduced:
  // tiles(f) calls f for their ranges in turn, and solve(tile, mean, m2, f) fills the coefficients.
  template <class Tiles, class Solve>
  void apply_in_turn(Tiles tiles, Solve solve, ElementParameter<C> weight, ElementParameter<C> bias,
                     const void* x, void* y, bool raw) const {
    Scope scope(workspace());
    const Index most = turn_cells();
    double* mean = scope.take<double>(most);
    double* m2 = scope.take<double>(most);
    const Solution f{scope.take<C>(most), scope.take<C>(most), scope.take<C>(most)};
    const Affine<C> at{f.a, f.center, f.shift};
    auto weights = [&](const TileRange& t) { return weight ? weight.at(t.o, 0) : nullptr; };
    auto biases = [&](const TileRange& t) { return weight ? bias.at(t.o, 0) : nullptr; };
    auto kernel = set_.affine_moments[bool(weight)][raw];
    auto reduce = raw ? set_.squares[kRows] : set_.moments[kRows];
    auto apply = [&](const TileRange& t) {
      const In xt = tiles_.in(kX, x, t, nullptr);
      const Out yt = tiles_.out(kY, y, t, nullptr);
      if (weight) {
        set_.weighted_affine[kRows](xt, yt, t.kn, t.sn, at, weights(t), biases(t));
      } else {
        set_.affine[kRows](xt, yt, t.kn, t.sn, at);
      }
    };
    TileRange now{};
    tiles(most, [&](const TileRange& next) {
      In nt = tiles_.in(kX, x, next, nullptr);
      if (asks_ahead()) nt.ahead = most * plan_.access[kX].cell;
      if (now.kn == next.kn) {
        kernel(tiles_.in(kX, x, now, nullptr), tiles_.out(kY, y, now, nullptr), now.kn, now.sn, at,
               weights(now), biases(now), nt, mean, m2);
      } else {
        if (now.kn > 0) apply(now);
        reduce(nt, next.kn, next.sn, mean, m2);
      }
      solve(next, mean, m2, f);
      now = next;
    });
    if (now.kn > 0) apply(now);
  }
  // What the elements of cells are multiplied by, from where they count, and what is added.
  struct Solution {
    C *a, *center, *shift;
  };

  // h = x + residual; h is then what is normalized.
  void add(const Range& range, const void* x, const void* residual, void* h) const {
    Scope scope(workspace());
    void* scratch_h = scope.take<char>(tiles_.scratch_bytes(kX));
    void* scratch_r = scope.take<char>(tiles_.scratch_bytes(kResidual));
    void* scratch_x = scope.take<char>(tiles_.scratch_bytes(kXIn));
    for_tiles(range, /*reverse=*/false, [&](const TileRange& t) {
      const In xt = tiles_.in(kXIn, x, t, scratch_x);
      const In rt = tiles_.in(kResidual, residual, t, scratch_r);
      Out ht = tiles_.out(kX, h, t, scratch_h);
      ht.stream = false;  // it is read again at once
      set_.add(xt, rt, ht, height(t), width(t));
      tiles_.commit(kX, h, t, ht);
    });
  }

  // Where gradients of elementwise parameters are added up, of normalized elements; or nowhere.
  struct ParameterGradients {
    Affine<C> xhat{};
    C* dweight = nullptr;
    C* dbias = nullptr;

    explicit operator bool() const { return dweight != nullptr; }
  };

  // sum dy * u and sum dy of the cells of a range, over its rows too; weight as in apply.
  // `reduced`, here and in grad: this x was reduced just before.
  void sums(const Range& range, const Table& table, Centering<C> f, ElementParameter<C> weight,
            const ParameterGradients& parameters, bool reduced, const void* dy, const void* x,
            double* dy_u, double* dy_1) const {
    Scope scope(workspace());
    void* scratch_x = scope.take<char>(tiles_.scratch_bytes(kX));
    void* scratch_dy = scope.take<char>(tiles_.scratch_bytes(kDy));
    const CellSums of_u(*this, scope, range, dy_u), of_1(*this, scope, range, dy_1);
    CellValues of(*this, scope);
    for_tiles(range, /*reverse=*/false, [&](const TileRange& t) {
      const In x_here = tiles_.in(kX, x, t, scratch_x);
      const In xt = x_is_near(reduced) ? x_here : with_what_follows(kX, x_here);
      const In dyt = with_what_follows(kDy, tiles_.in(kDy, dy, t, scratch_dy));
      const Index i = table.at(t);
      of.move_to(table, t);
      const Centering<C> at{of(f.center), of(f.unit)};
      if (parameters) {
        const Index s = first_parameter(t);
        set_.sums_and_parameters[layout_](dyt, xt, height(t), width(t), at, weight.at(t.o, t.s0),
                                          of_u.at(t), of_1.at(t), from(parameters.xhat, i),
                                          parameters.dweight + s, parameters.dbias + s);
      } else if (weight) {
        set_.weighted_sums[layout_](dyt, xt, height(t), width(t), at, weight.at(t.o, t.s0),
                                    of_u.at(t), of_1.at(t));
      } else {
        set_.sums[layout_](dyt, xt, height(t), width(t), at, of_u.at(t), of_1.at(t));
      }
      of_u.join(t);
      of_1.join(t);
    });
  }

  // reduce about zero, and sums without weights, of columns: strip by strip, so that x is read from
  // a core's own cache the second time. Squares ask for dy, and sums for the x of the next strip:
  // memory then always has one stream to fetch. (Out of cache 0.88 of the time of two sweeps.)
  void reduce_with_sums(const Range& range, const Table& table, Centering<C> f, const void* dy,
                        const void* x, double* mean, double* m2, double* dy_u, double* dy_1) const {
    Scope scope(workspace());
    void* scratch_x = scope.take<char>(tiles_.scratch_bytes(kX));
    void* scratch_dy = scope.take<char>(tiles_.scratch_bytes(kDy));
    const TileMoments tile(*this, scope, /*raw=*/true);
    const CellSums of_u(*this, scope, range, dy_u), of_1(*this, scope, range, dy_1);
    CellValues of(*this, scope);
    const Index columns = plan_.cell_columns;
    const Index strip = std::max<Index>(1, tuning::kStripColumns / columns);
    for_tiles(range, /*reverse=*/false, [&](const TileRange& whole) {
      for_steps(0, whole.kn, strip, [&](Index first, Index last) {
        const TileRange t{whole.o, whole.k0 + first, last - first, whole.s0, whole.sn};
        const Index k = t.k0 - range.k0;
        In xt = tiles_.in(kX, x, t, scratch_x);
        const In dyt = tiles_.in(kDy, dy, t, scratch_dy);
        const bool ask = next_columns_ && plan_.access[kX].direct && plan_.access[kDy].direct;
        if (ask) xt.ahead = tiles_.distance(xt, dyt);
        tile.add(range, t, xt, mean, m2);
        if (ask) {
          xt.ahead = k + t.kn < range.kn ? t.kn * columns : t.sn * xt.stride - k * columns;
        }
        of.move_to(table, t);
        set_.sums[layout_](dyt, xt, height(t), width(t), {of(f.center), of(f.unit)}, of_u.at(t),
                           of_1.at(t));
        of_u.join(t);
        of_1.join(t);
      });
    });
  }

  // sum dy of the cells of a range, over its rows too; dy_u[kn] is 0.
  void total(const Range& range, const Table& table, const C* zeros, const void* dy, double* dy_u,
             double* dy_1) const {
    Scope scope(workspace());
    void* scratch_dy = scope.take<char>(tiles_.scratch_bytes(kDy));
    const CellSums of_1(*this, scope, range, dy_1);
    double* unused = scope.take<double>(plan_.tile_cells * plan_.cell_columns);
    CellValues of(*this, scope);
    std::fill_n(dy_u, range.kn, 0.0);
    for_tiles(range, /*reverse=*/false, [&](const TileRange& t) {
      const In dyt = with_what_follows(kDy, tiles_.in(kDy, dy, t, scratch_dy));
      of.move_to(table, t);
      const C* zero = of(zeros);
      // One stream of memory, and times zero: what the kernel sums beside it is of no use.
      set_.sums[layout_](dyt, dyt, height(t), width(t), {zero, zero}, unused, of_1.at(t));
      of_1.join(t);
    });
  }

  static Spread<C> spread(const C* center, const C* low, const C* unit, const C* threshold,
                          const C* tie, double order) {
    return {center, low, unit, threshold, tie, C(order)};
  }

  // Sums of `tally` over the cells of a range, over its rows too.
  void tally(const Range& range, const Table& table, const Spread<C>& f, const void* x,
             double* const* sums) const {
    const int count = f.order == 0 ? kLargestSums : kOrderSums;
    Scope scope(workspace());
    void* scratch = scope.take<char>(tiles_.scratch_bytes(kX));
    CellSums of_each[kLargestSums];
    for (int i = 0; i < count; ++i) of_each[i] = CellSums(*this, scope, range, sums[i]);
    CellValues of(*this, scope);
    for_tiles(range, /*reverse=*/false, [&](const TileRange& t) {
      const In xt = tiles_.in(kX, x, t, scratch);
      of.move_to(table, t);
      double* out[kLargestSums];
      for (int i = 0; i < count; ++i) out[i] = of_each[i].at(t);
      set_.tally[layout_](xt, height(t), width(t), of(f), out);
      for (int i = 0; i < count; ++i) of_each[i].join(t);
    });
  }
  // max |u| of kPeakParts parts of each cell of a range: largest[part * next + cell], 0 where a
  // part has no elements.
  static constexpr Index kPeakParts = 16;
  void peaks(const Range& range, const Table& table, const Spread<C>& f, const void* x,
             double* largest, Index next) const {
    Scope scope(workspace());
    void* scratch = scope.take<char>(tiles_.scratch_bytes(kX));
    const Index columns = plan_.cell_columns;
    double* tile = scope.take<double>(plan_.tile_cells * columns);
    for (Index part = 0; part < kPeakParts; ++part) {
      std::fill_n(largest + part * next, range.kn, 0.0);
    }
    const Index chunks = ceil_div(range.sn, plan_.chunk);
    CellValues of(*this, scope);
    for_tiles(range, /*reverse=*/false, [&](const TileRange& t) {
      const In xt = tiles_.in(kX, x, t, scratch);
      of.move_to(table, t);
      set_.peak[layout_](xt, height(t), width(t), of(f), tile);
      const Index chunk = (t.o - range.o0) * chunks + (t.s0 - range.s0) / plan_.chunk;
      for (Index column = 0; column < columns; ++column) {
        const Index part = (chunk * columns + column) % kPeakParts;
        double* to = largest + part * next + (t.k0 - range.k0);
        for (Index j = 0; j < t.kn; ++j) to[j] = std::max(to[j], tile[j * columns + column]);
      }
    });
  }

  // Adds the elements of a range whose |u| reaches the threshold to the lists of their cells, which
  // other threads fill too: in any order. A full list counts on.
  struct Outliers {
    C* values;    // [cells, capacity]
    Index* size;  // [cells]
    Index capacity;
    void add(Index cell, C value) const {
      const Index at = std::atomic_ref(size[cell]).fetch_add(1, std::memory_order_relaxed);
      if (at < capacity) values[cell * capacity + at] = value;
    }
  };
  void outliers(const Range& range, const Table& table, const Spread<C>& f, const void* x,
                const Outliers& to) const {
    constexpr Index kRoom = 1024;
    Scope scope(workspace());
    void* scratch = scope.take<char>(tiles_.scratch_bytes(kX));
    C* value = scope.take<C>(kRoom);
    Index* cell = scope.take<Index>(kRoom);
    CellValues of(*this, scope);
    for_tiles(range, /*reverse=*/false, [&](const TileRange& t) {
      const In xt = tiles_.in(kX, x, t, scratch);
      const Index first = table.at(t), columns = plan_.cell_columns;
      of.move_to(table, t);
      const Index found =
          set_.outliers[layout_](xt, height(t), width(t), of(f), value, cell, kRoom);
      for (Index i = 0; i < std::min(found, kRoom); ++i) {
        to.add(first + (columns == 1 ? cell[i] : cell[i] / columns), value[i]);
      }
      // Too many to tell whose they are: no list of the tile can be relied upon.
      for (Index j = 0; found > kRoom && j < t.kn; ++j) {
        std::atomic_ref(to.size[first + j]).fetch_add(to.capacity + 1, std::memory_order_relaxed);
      }
    });
  }
  // dx = p * dy + q * h + r of a range.
  void slope_grad(const Range& range, const Table& table, const Gradient<C>& f, const Spread<C>& s,
                  const void* dy, const void* x, void* dx) const {
    Scope scope(workspace());
    void* scratch_x = scope.take<char>(tiles_.scratch_bytes(kX));
    void* scratch_dy = scope.take<char>(tiles_.scratch_bytes(kDy));
    void* scratch_dx = scope.take<char>(tiles_.scratch_bytes(kDx));
    CellValues of(*this, scope);
    for_tiles(range, plan_.backwards, [&](const TileRange& t) {
      const In xt = tiles_.in(kX, x, t, scratch_x);
      const In dyt = tiles_.in(kDy, dy, t, scratch_dy);
      const Out dxt = tiles_.out(kDx, dx, t, scratch_dx);
      of.move_to(table, t);
      set_.slope_grad[layout_](dyt, xt, dxt, height(t), width(t), {of(f.p), of(f.q), of(f.r), {}},
                               of(s));
      tiles_.commit(kDx, dx, t, dxt);
    });
  }

  // dx = p * dy + r of a range: what is left where no variance depends on x.
  void scale_gradient(const Range& range, const Table& table, const C* p, const C* zeros,
                      const C* r, const void* dy, void* dx) const {
    Scope scope(workspace());
    void* scratch_dy = scope.take<char>(tiles_.scratch_bytes(kDy));
    void* scratch_dx = scope.take<char>(tiles_.scratch_bytes(kDx));
    CellValues of(*this, scope);
    for_tiles(range, plan_.backwards, [&](const TileRange& t) {
      const In dyt = tiles_.in(kDy, dy, t, scratch_dy);
      const Out dxt = tiles_.out(kDx, dx, t, scratch_dx);
      of.move_to(table, t);
      set_.affine[layout_](dyt, dxt, height(t), width(t), {of(p), of(zeros), of(r)});
      tiles_.commit(kDx, dx, t, dxt);
    });
  }

  // dx of a range where statistics come from what a mask lets count.
  void grad_masked(const Range& range, const Table& table, const Gradient<C>& f, const void* mask,
                   const void* dy, const void* x, void* dx) const {
    Scope scope(workspace());
    void* scratch_x = scope.take<char>(tiles_.scratch_bytes(kX));
    void* scratch_dy = scope.take<char>(tiles_.scratch_bytes(kDy));
    void* scratch_dx = scope.take<char>(tiles_.scratch_bytes(kDx));
    void* scratch_mask = scope.take<char>(mask_tiles_.scratch_bytes(kMask));
    for_tiles(range, plan_.backwards, [&](const TileRange& t) {
      const In xt = tiles_.in(kX, x, t, scratch_x);
      const In dyt = tiles_.in(kDy, dy, t, scratch_dy);
      const In mt = mask_tiles_.in(kMask, mask, t, scratch_mask);
      const Out dxt = tiles_.out(kDx, dx, t, scratch_dx);
      const Index i = table.at(t);
      set_.masked_grad[layout_](dyt, xt, mt, dxt, height(t), width(t),
                                {f.p + i, f.q + i, f.r + i, {f.x.center + i, f.x.unit + i}});
      tiles_.commit(kDx, dx, t, dxt);
    });
  }

  // dx of a range, and the gradients of elementwise parameters where they are wanted here.
  void grad(const Range& range, const Table& table, const Gradient<C>& f,
            ElementParameter<C> weight, const ParameterGradients& parameters, bool reduced,
            const void* dy, const void* x, const void* dh, void* dx) const {
    Scope scope(workspace());
    void* scratch_x = scope.take<char>(tiles_.scratch_bytes(kX));
    void* scratch_dy = scope.take<char>(tiles_.scratch_bytes(kDy));
    void* scratch_dx = scope.take<char>(tiles_.scratch_bytes(kDx));
    void* scratch_dh = dh ? scope.take<char>(tiles_.scratch_bytes(kDh)) : nullptr;
    CellValues of(*this, scope);
    for_tiles(range, plan_.backwards, [&](const TileRange& t) {
      In xt = tiles_.in(kX, x, t, scratch_x), dyt = tiles_.in(kDy, dy, t, scratch_dy);
      if (grad_asks()) {
        xt = with_prefetch(kX, xt);
        if (!x_is_near(reduced)) dyt = with_prefetch(kDy, dyt);
      }
      const Out dxt = tiles_.out(kDx, dx, t, scratch_dx);
      const Index i = table.at(t);
      of.move_to(table, t);
      const Gradient<C> at{of(f.p), of(f.q), of(f.r), {of(f.x.center), of(f.x.unit)}};
      if (weight) {
        const In dht = dh ? tiles_.in(kDh, dh, t, scratch_dh) : In{nullptr, 0};
        // First what reads dy, which dx may overwrite.
        if (parameters) {
          const Index s = first_parameter(t);
          set_.parameter_sums[layout_](dyt, xt, height(t), width(t), from(parameters.xhat, i),
                                       parameters.dweight + s, parameters.dbias + s);
        }
        set_.weighted_grad[layout_](dyt, xt, dht, dxt, height(t), width(t), at,
                                    weight.at(t.o, t.s0));
      } else {
        set_.grad[layout_](dyt, xt, dxt, height(t), width(t), at);
      }
      tiles_.commit(kDx, dx, t, dxt);
    });
  }

 private:
  bool rows() const { return plan_.layout == Layout::rows; }
  Index height(const TileRange& t) const { return rows() ? t.kn : t.sn; }
  Index width(const TileRange& t) const { return rows() ? t.sn : t.kn * plan_.cell_columns; }
  // Whether kernels see several columns for a cell.
  bool wide() const { return plan_.cell_columns > 1; }
  double* by_column(Scope& scope) const {
    return wide() ? scope.take<double>(plan_.tile_cells * plan_.cell_columns) : nullptr;
  }

  // The coefficients of a tile's cells, as kernels read them: a cell's for each of its columns.
  class CellValues {
   public:
    CellValues(const Backend& be, Scope& scope) : be_(be) {
      // What is repeated runs over its end by a vector of 64 bytes at most.
      next_ = be.plan_.tile_cells * be.plan_.cell_columns + Index(64 / sizeof(C));
      if (be.wide()) room_ = scope.take<C>(kMost * next_);
    }
    void move_to(const Table& table, const TileRange& t) {
      first_ = table.at(t);
      cells_ = t.kn;
      used_ = 0;
    }
    const C* operator()(const C* values) {
      if (!values || !room_) return values ? values + first_ : nullptr;
      C* to = room_ + used_++ * next_;
      be_.set_.repeat(values + first_, cells_, be_.plan_.cell_columns, to);
      return to;
    }
    Spread<C> operator()(const Spread<C>& f) {
      const bool largest = f.order == 0;
      const C* const none = nullptr;
      return {(*this)(f.center),
              (*this)(f.low),
              (*this)(f.unit),
              (*this)(largest ? f.threshold : none),
              (*this)(largest ? f.tie : none),
              f.order};
    }

   private:
    static constexpr int kMost = 8;  // of a kernel
    const Backend& be_;
    C* room_ = nullptr;
    Index next_ = 0, first_ = 0, cells_ = 0, used_ = 0;
  };

  // Sums over the cells of a range, [kn]. Kernels leave those of a cell's first tile in their
  // place; what follows, and what comes by column, is joined to them.
  class CellSums {
   public:
    CellSums() = default;
    CellSums(const Backend& be, Scope& scope, const Range& range, double* sums)
        : be_(&be),
          range_(range),
          sums_(sums),
          cells_(scope.take<double>(be.plan_.tile_cells)),
          columns_(be.by_column(scope)) {}
    // Where a kernel writes.
    double* at(const TileRange& t) const {
      return columns_ ? columns_ : is_first(t) ? place(t) : cells_;
    }
    void join(const TileRange& t) const {
      const bool first = is_first(t);
      double* to = place(t);
      if (columns_) {
        double* joined = first ? to : cells_;
        be_->table_.join_sums(t.kn, be_->plan_.cell_columns, columns_, joined);
      }
      for (Index j = 0; !first && j < t.kn; ++j) to[j] += cells_[j];
    }

   private:
    bool is_first(const TileRange& t) const { return t.o == range_.o0 && t.s0 == range_.s0; }
    double* place(const TileRange& t) const { return sums_ + (t.k0 - range_.k0); }

    const Backend* be_ = nullptr;
    Range range_{};
    double* sums_ = nullptr;
    double* cells_ = nullptr;
    double* columns_ = nullptr;
  };

  // Moments of tiles, joined to those of the range.
  class TileMoments {
   public:
    TileMoments(const Backend& be, Scope& scope, bool raw)
        : be_(be),
          kernel_(raw ? be.set_.squares[be.layout_] : be.set_.moments[be.layout_]),
          mean_(scope.take<double>(be.plan_.tile_cells)),
          m2_(scope.take<double>(be.plan_.tile_cells)),
          column_mean_(be.by_column(scope)),
          column_m2_(be.by_column(scope)) {}
    void add(const Range& range, const TileRange& t, const In& x, double* mean, double* m2) const {
      be_.reduce_tile(range, t, mean, m2, mean_, m2_, [&](double* to_mean, double* to_m2) {
        const Index rows = be_.height(t), columns = be_.width(t);
        if (!be_.wide()) return kernel_(x, rows, columns, to_mean, to_m2);
        kernel_(x, rows, columns, column_mean_, column_m2_);
        be_.table_.join_moments(t.kn, be_.plan_.cell_columns, double(t.sn), column_mean_,
                                column_m2_, to_mean, to_m2);
      });
    }

   private:
    const Backend& be_;
    void (*kernel_)(In x, Index rows, Index cols, double* mean, double* m2);
    double *mean_, *m2_, *column_mean_, *column_m2_;
  };

  static Affine<C> from(const Affine<C>& f, Index i) { return {f.a + i, f.center + i, f.b + i}; }
  Index first_parameter(const TileRange& t) const {
    return (plan_.parameters_by_row ? t.o * plan_.count : 0) + t.s0;
  }

  // Of a tile of the range: f leaves its moments where the range's are, or beside them.
  template <class F>
  void reduce_tile(const Range& range, const TileRange& t, double* mean, double* m2,
                   double* tile_mean, double* tile_m2, F f) const {
    const Index before = (t.o - range.o0) * range.sn + (t.s0 - range.s0);
    double* to_mean = mean + (t.k0 - range.k0);
    double* to_m2 = m2 + (t.k0 - range.k0);
    if (before == 0) return f(to_mean, to_m2);
    f(tile_mean, tile_m2);
    merge(t.kn, double(before * plan_.cell_columns), to_mean, to_m2,
          double(t.sn * plan_.cell_columns), tile_mean, tile_m2);
  }

  // Measured: what the caches hardly hold gains up to a third, and so do columns with elementwise
  // parameters. What they hold loses up to a tenth, and so do runs that are so long that
  // prefetchers follow them by themselves.
  bool asks_ahead() const {
    const bool far = plan_.bytes >= tuning::kAskBytes;
    if (plan_.affinity == Affinity::element) return !rows() || far;
    return rows() && far && plan_.count * Index(sizeof(C)) <= tuning::kLongRunBytes;
  }
  // Whether a second sweep begins where the first one ended. Prefetchers follow columns down better
  // than up: 0.61 to 0.96 of the time where the caches hold nothing of the sweep before.
  bool goes_back() const {
    if (!rows()) return plan_.bytes < 2 * tuning::kStreamBytes;
    return plan_.affinity == Affinity::element || plan_.backwards;
  }
  // Whether the runs of a block are far apart: planes of the same channels of all samples.
  bool across_samples() const { return rows() && plan_.extent == Extent::column; }
  // While a block in cache is applied, the next one is on its way; past the caches, the rows
  // further down.
  In with_prefetch(int operand, In tile) const {
    const Access& a = plan_.access[operand];
    if (!plan_.fused) return next_columns_ ? with_what_follows(operand, tile) : tile;
    if (!asks_ahead() || !a.direct) return tile;
    const bool whole_rows = plan_.block_cells == plan_.cells;
    tile.ahead = !whole_rows            ? plan_.block_cells * a.cell
                 : plan_.outer_dims > 0 ? plan_.block_outer * a.outer[plan_.outer_dims - 1]
                                        : 0;
    return tile;
  }

  // Columns are taken several rows at a time, which are more streams than prefetchers follow.
  // Measured: 0.6 to 0.9 of the time past the caches, up to 1.4 in the shared one.
  static bool asks_for_columns(const Plan& plan) {
    return plan.layout == Layout::columns && plan.stream;
  }
  // Rows with elementwise parameters are summed so fast that what was asked for a block before is
  // not there yet: layer norm backward takes 0.69 to 0.96 of the time where each row asks for what
  // comes soon. Planes of channels gain nothing.
  static bool asks_for_rows(const Plan& plan) {
    return plan.layout == Layout::rows && plan.affinity == Affinity::element &&
           plan.bytes >= tuning::kAskBytes;
  }
  // Of planes of channels this pays where 16 bits are converted, up to a third. Where memory is all
  // that a core waits for it would take up to 1.3 of the time, but for short runs far apart;
  // columns 0.95 to 1.07.
  bool grad_asks() const {
    return plan_.affinity == Affinity::element || tiles_.element_bytes() < Index(sizeof(C)) ||
           (across_samples() && plan_.count * tiles_.element_bytes() < tuning::kPage);
  }
  // Where a sweep over x alone came before, sums ask for dy and grad for x: memory then always has
  // one stream to fetch. Measured like this: 0.76 to 1.03 of the time; 0.98 to 1.2 with both.
  bool x_is_near(bool reduced) const { return reduced && next_rows_; }
  In with_what_follows(int operand, In tile) const {
    if (!plan_.access[operand].direct) return tile;
    if (next_columns_) {
      const Index row = std::max<Index>(1, std::abs(tile.stride) * tiles_.element_bytes());
      tile.ahead = tile.stride * std::max(tuning::kRowsAhead, ceil_div(tuning::kPage, row));
    }
    if (next_rows_) tile.ahead = tuning::kBytesAhead / tiles_.element_bytes();
    return tile;
  }

  // Rows that are applied while as many are reduced; less than four where they are long, or few.
  Index turn_cells() const {
    const Index fit = tuning::kTurnBytes / std::max<Index>(1, plan_.count * tiles_.element_bytes());
    return fit >= plan_.block_cells ? plan_.block_cells : fit / 4 * 4;
  }

  // f(tile) over a range, in memory order or against it.
  template <class F>
  void for_tiles(const Range& r, bool reverse, F f) const {
    const Index chunks = ceil_div(r.sn, plan_.chunk), strips = ceil_div(r.kn, plan_.tile_cells);
    // Long cells side by side are taken one after the other, columns chunk by chunk.
    const Index slow = rows() ? strips : chunks, fast = rows() ? chunks : strips;
    auto ordered = [&](Index n, Index i) { return reverse ? n - 1 - i : i; };
    for (Index a = 0; a < r.on; ++a) {
      for (Index b = 0; b < slow; ++b) {
        for (Index c = 0; c < fast; ++c) {
          const Index i = ordered(slow, b), j = ordered(fast, c);
          const Index k = (rows() ? i : j) * plan_.tile_cells, s = (rows() ? j : i) * plan_.chunk;
          f(TileRange{r.o0 + ordered(r.on, a), r.k0 + k, std::min(plan_.tile_cells, r.kn - k),
                      r.s0 + s, std::min(plan_.chunk, r.sn - s)});
        }
      }
    }
  }

  const Plan& plan_;
  const KernelTable& table_;
  const KernelSet<C>& set_;
  TileAccess tiles_, mask_tiles_;
  int layout_;
  bool next_columns_, next_rows_;
  int threads_;
};

}  // namespace normcore::cpu
