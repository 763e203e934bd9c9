// Spread that is no variance: the mean of a power of |x - mean|, or of the largest of them. Between
// reduce and solve the pipeline measures it in place of the pooled variance, and in backward the
// slopes h(u) = d spread / du take the place of u.
//
// Everything is measured on u = (x - mean) * unit, with a power of two that brings u near 1, so
// that powers neither overflow nor vanish.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <type_traits>

#include "pipeline/statistics.h"

namespace normcore {

// A threshold between the k-th largest |u| and the next, or that one itself where the next equals
// it: found by bisection over the bit patterns, which order numbers >= 0.
template <class C>
struct Bracket {
  using Bits = std::conditional_t<sizeof(C) == 4, std::uint32_t, std::uint64_t>;
  static constexpr int kSteps = sizeof(C) == 4 ? 31 : 63;
  Bits low = 0, high;

  // By Chebyshev the k-th largest of n is at most sqrt(n / k) root mean squares of u, which are at
  // most 2.
  Bracket(double n, double k) : high(std::bit_cast<Bits>(C(2.5 * std::sqrt(n / k)))) {}
  C middle() const { return std::bit_cast<C>(Bits(low + (high - low) / 2)); }
  bool found() const { return low == high; }
  // `above`: how many exceed the middle.
  void narrow(double above, double k) {
    if (found()) return;
    const Bits middle = low + (high - low) / 2;
    if (above == k) {
      low = high = middle;
    } else if (above < k) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
};

// The spread of the pools of a block, whose entries are its cells, and its slopes.
template <class Backend>
class BlockSpread {
  using C = typename Backend::Compute;
  using Scope = typename Backend::Scope;
  static constexpr int kMostSums = 5;

 public:
  BlockSpread(const Backend& be, const Block& b, const Solved<1, C>& s, const void* x,
              const SpreadKind& kind, Scope& scope)
      : be_(be), b_(b), s_(s), x_(x), kind_(kind), scope_(scope), cells_(s.rows * b.kn) {
    for (C** column : {&low_, &unit_, &threshold_, &tie_}) *column = scope.template take<C>(cells_);
    slopes_ = scope.template take<Slopes>(cells_);
    largest_ = scope.template take<double>(cells_ * kMostSums);
    for (Index c = 0; c < cells_; ++c) {
      low_[c] = C(s.cells.mean[0][c]);
      tie_[c] = threshold_[c] = 0;
    }
  }

  // Puts the spread where the variance was.
  void measure() {
    double* var = s_.pools[0].var;
    auto all = [&](auto f) { return std::all_of(var, var + cells_, f); };
    auto told = [&](double v) { return told_by_variance(kind_, v); };
    auto finite = [](double v) { return v - v == 0; };
    const bool one_largest = kind_.order == 0 && kind_.largest(count()) == 1;
    const double* sums = nullptr;
    const double* sizes = nullptr;
    if (!all(told)) {
      const double least = least_deviation(kind_);
      set_unit([&](Index c) { return std::max(std::sqrt(var[c]), least); });
      sums = find_threshold(nullptr);
      if (!sums && !one_largest) sums = tally(kind_.order, scope_);
      // Comparisons pass a NaN over, a sum does not. Where there is one the variance is not finite.
      if (kind_.order == 0 && !all(finite)) sizes = tally(1, scope_);
    }
    for (Index c = 0; c < cells_; ++c) {
      if (told(var[c])) {
        var[c] = spread_of_variance(kind_, count(), var[c]);
        continue;
      }
      double spread = double(threshold_[c]);
      if (sums) spread = spread_of(kind_, count(), sums + c * kMostSums, spread);
      const bool spoilt = sizes && !finite(var[c]) && !(one_largest && sizes[c * kMostSums] >= 0);
      var[c] = spoilt ? std::nan("") : spread / double(unit_[c]);
    }
  }

  // The slopes need a tally of every unit, which can be taken beside another sweep.
  void begin_slopes() {
    const double* spread = s_.pools[0].var;
    set_unit([&](Index c) { return spread[c]; });
    sums_ = find_threshold(spread);
    if (!sums_) begin_tally(kind_.order, scope_);
  }
  void tally_unit(Index unit) {
    if (sums_) return;
    const Units units(be_.plan(), b_);
    const Range range = units.range(unit);
    double* to[kMostSums];
    for (int k = 0; k < kMostSums; ++k) {
      to[k] = parts_ + (k * units.pieces() + units.piece_of(unit)) * b_.kn + (range.k0 - b_.k0);
    }
    be_.tally(range, table(), kernel_arguments(order_), x_, to);
  }
  void end_slopes() {
    const double* spread = s_.pools[0].var;
    const double* sums = sums_ ? sums_ : end_tally(scope_);
    for (Index c = 0; c < cells_; ++c) {
      const double of_u = spread[c] * double(unit_[c]);
      slopes_[c] = slopes_of(kind_, count(), sums + c * kMostSums, of_u);
      tie_[c] = C(slopes_[c].tie);
    }
  }
  const Slopes& slopes(Index cell) const { return slopes_[cell]; }

  auto kernel_arguments() const { return kernel_arguments(kind_.order); }

 private:
  double count() const { return s_.pools[0].count; }
  typename Backend::Table table() const { return {b_.o0, b_.k0, s_.row_step}; }
  auto kernel_arguments(double order) const {
    return be_.spread(s_.center, low_, unit_, threshold_, tie_, order);
  }

  template <class F>
  void set_unit(F deviation) {
    for (Index c = 0; c < cells_; ++c) unit_[c] = C(unit_of<C>(1 / deviation(c)));
  }

  // Of the largest: the least of them. A single one is the spread itself, where that is known.
  // Returns what `tally` would sum, where that came with it.
  const double* find_threshold(const double* spread) {
    if (kind_.order > 0) return nullptr;
    const double k = kind_.largest(count());
    if (k == 1 && spread) {
      for (Index c = 0; c < cells_; ++c) threshold_[c] = C(spread[c] * double(unit_[c]));
      return nullptr;
    }
    const bool bounded = take_peaks(Index(k));
    if (k == 1) return nullptr;
    const double* sums = bounded ? take_outliers(Index(k)) : nullptr;
    if (!sums) search(k);
    return sums;
  }

  // Makes the k-th largest of the peaks of a pool's parts the threshold: k elements or more
  // reach it, if it is above 0. False where a pool has fewer parts.
  bool take_peaks(Index k) {
    constexpr Index kParts = Backend::kPeakParts;
    Scope scope(be_.workspace());
    const Units units(be_.plan(), b_);
    const Index per_row = units.pieces_of_row(s_.rows) * kParts;
    if (per_row < k) return false;
    double* peaks = scope.template take<double>(units.pieces() * kParts * b_.kn);
    for_units(be_, units.count(), [&](Index i) {
      const Range range = units.range(i);
      be_.peaks(range, table(), kernel_arguments(), x_,
                peaks + units.piece_of(i) * kParts * b_.kn + (range.k0 - b_.k0), b_.kn);
    });
    double* own = scope.template take<double>(per_row);
    for (Index c = 0; c < cells_; ++c) {
      const double* from = peaks + c / b_.kn * per_row * b_.kn + c % b_.kn;
      for (Index j = 0; j < per_row; ++j) own[j] = from[j * b_.kn];
      std::nth_element(own, own + (k - 1), own + per_row, std::greater<>());
      threshold_[c] = C(own[k - 1]);
    }
    return true;
  }

  // From the elements that reach the threshold of take_peaks, the k-th largest and what
  // `tally` sums for it. Null where they are too many.
  const double* take_outliers(Index k) {
    const Index capacity = 4 * k + 64;
    // Where it is 0, as in a channel that is constant, what is not.
    for (Index c = 0; c < cells_; ++c) {
      threshold_[c] = std::max(threshold_[c], std::numeric_limits<C>::denorm_min());
    }
    Scope scope(be_.workspace());
    C* values = scope.template take<C>(cells_ * capacity);
    Index* size = scope.template take_filled<Index>(cells_, 0);
    const Units units(be_.plan(), b_);
    for_units(be_, units.count(), [&](Index i) {
      be_.outliers(units.range(i), table(), kernel_arguments(), x_, {values, size, capacity});
    });
    if (std::any_of(size, size + cells_, [=](Index n) { return n > capacity; })) return nullptr;
    for (Index c = 0; c < cells_; ++c) {
      C* first = values + c * capacity;
      std::sort(first, first + size[c], [](C a, C b) { return std::abs(a) > std::abs(b); });
      const C threshold = threshold_[c] = size[c] < k ? C(0) : std::abs(first[k - 1]);
      double* sums = largest_ + c * kMostSums;
      std::fill_n(sums, kMostSums, 0.0);
      if (size[c] < k) sums[3] = count() - double(size[c]);
      for (Index i = 0; i < size[c] && std::abs(first[i]) >= threshold; ++i) {
        const double sign = first[i] > 0 ? 1 : -1;
        if (std::abs(first[i]) > threshold) {
          sums[0] += 1;
          sums[1] += std::abs(double(first[i]));
          sums[2] += sign;
        } else {
          sums[3] += 1;
          sums[4] += sign;
        }
      }
    }
    return largest_;
  }

  // By bisection: a sweep for each step.
  void search(double k) {
    Scope scope(be_.workspace());
    Bracket<C>* brackets = scope.template take<Bracket<C>>(cells_);
    for (Index c = 0; c < cells_; ++c) brackets[c] = Bracket<C>(count(), k);
    auto found = [](const Bracket<C>& bracket) { return bracket.found(); };
    while (!std::all_of(brackets, brackets + cells_, found)) {
      for (Index c = 0; c < cells_; ++c) threshold_[c] = brackets[c].middle();
      Scope inner(be_.workspace());
      const double* sums = tally(kind_.order, inner);
      for (Index c = 0; c < cells_; ++c) brackets[c].narrow(sums[c * kMostSums], k);
    }
    for (Index c = 0; c < cells_; ++c) threshold_[c] = brackets[c].middle();
  }

  // [cells, kMostSums]: what the kernel `tally` sums for an order, by unit and piece and then
  // joined in the order of the pieces.
  const double* tally(double order, Scope& scope) {
    begin_tally(order, scope);
    for_units(be_, Units(be_.plan(), b_).count(), [&](Index i) { tally_unit(i); });
    return end_tally(scope);
  }
  void begin_tally(double order, Scope& scope) {
    order_ = order;
    const Index n = Units(be_.plan(), b_).pieces() * b_.kn;
    // Of powers the last three are not used.
    parts_ = scope.template take_filled<double>(kMostSums * n, 0);
  }
  const double* end_tally(Scope& scope) const {
    double* out = scope.template take<double>(cells_ * kMostSums);
    const Units units(be_.plan(), b_);
    for (int v = 0; v < kMostSums; ++v) {
      double* sums = parts_ + v * units.pieces() * b_.kn;
      fold_pieces(units, s_.rows, {sums}, [&](Index to, Index from, Index) {
        for (Index k = 0; k < b_.kn; ++k) sums[to + k] += sums[from + k];
      });
      for (Index c = 0; c < cells_; ++c) out[c * kMostSums + v] = sums[c];
    }
    return out;
  }

  const Backend& be_;
  const Block& b_;
  const Solved<1, C>& s_;
  const void* x_;
  const SpreadKind& kind_;
  Scope& scope_;
  Index cells_;
  C *low_, *unit_, *threshold_, *tie_;
  double* largest_;               // [cells, kMostSums]: sums of the largest, where outliers told
  const double* sums_ = nullptr;  // as `tally` returns them, where they are known
  double* parts_ = nullptr;       // a tally under way: [kMostSums, pieces, block.kn]
  double order_ = 0;              // of it
  Slopes* slopes_;
};

// Puts the spread where the variance was, for methods that measure it.
template <class Method, class Backend, class Args>
void measure_spread(const Backend& be, const Args& args, const typename Method::Params& params,
                    const Block& b, typename Backend::Scope& scope,
                    const Solved<kPoolCount<Method>, typename Backend::Compute>& s) {
  if constexpr (MeasuresSpread<Method>) {
    if (args.given_mean || args.saved_mean()) return;
    BlockSpread<Backend>(be, b, s, args.x, params.spread, scope).measure();
  }
}

}  // namespace normcore
