// What a normalization method is. The pipeline views x as [N, C, S] and does four steps: reduce x
// to moments per (n, c); pool them as the method declares; ask the method for the coefficients of
// y = a * x + b; apply them. Backward: reduce sum(dy) and sum(dy * x); ask the method for their
// pullback to the pooled statistics; spread that over each pool's members; apply. A method is two
// scalar functions, host and device alike, and names no loop, layout, dtype or thread.
//
// The pipeline counts positions from a centre near a mean of the data, so the means that a method
// sees are small and a * x + b loses nothing to cancellation; every formula that does not
// care where zero lies is right as written. It also folds in weight and bias.
//
// A method may read several pools. Running statistics take the place of the first one where a call
// says so, or always (Pool::given). The last one is the finest: the others can be merged from it,
// the centre is its mean, and it is what a forward call leaves for the backward call.
//
// A worked example is methods/standardize.h, which serves five methods by its pool alone.
#pragma once

#include <cmath>
#include <type_traits>

#include "normcore/dtype.h"
#include "normcore/export.h"

namespace normcore {

// Which elements of [N, C, S] share one mean and one variance.
enum class Pool {
  instance,  // (n, c)
  batch,     // (c)
  sample,    // (n)
  group,     // (n, c / channels per group)
  given,     // (c): not computed from x but handed in, as running statistics are
};

struct Stats {
  double mean;   // from the centre; zero where the pool is raw
  double var;    // biased; the mean square where the pool is raw; see also SpreadKind
  double count;  // elements in the pool
};

struct Coef {
  double a, b;  // y = a * x + b before weight and bias, x from the centre
};

// Gradients of the loss with respect to a Coef, summed over the elements of one (n, c).
struct CoefGrad {
  double a, b;
};
struct StatsGrad {
  double mean, var;
};

// A method M has
//   static constexpr Pool pools[];      the pools it reads
//   static constexpr bool raw;          moments about zero instead of about the mean
//   struct Params;                      what the call says: scalars, and arrays over the channels
//   struct ParamsGrad;                  doubles, or empty (NoGradients)
//   static double rstd(const Stats&, const Params&);       of one pool, for who asks
//   static Coef coefficients(const Stats (&)[P], const Params&, Index channel);
//   static void pullback(const Stats (&)[P], const Params&, Index channel, CoefGrad,
//                        StatsGrad (&)[P], ParamsGrad&);
// The gradients of given statistics are not used, and need not be written.
template <class M>
inline constexpr int kPoolCount = static_cast<int>(sizeof(M::pools) / sizeof(Pool));

// A method that measures spread otherwise has a SpreadKind `spread` in its Params, and finds in
// Stats::var the spread itself: (mean |x - mean|^order)^(1/order), or with order 0 the mean of the
// `count` largest |x - mean|. With `sum` it is the sum of the powers, not their mean. It reads one
// pool.
struct SpreadKind {
  double order;
  Index count;
  bool sum = false;

  // What the sum of powers over n elements is divided by.
  NORMCORE_HD double divisor(double n) const { return sum ? 1 : n; }

  // Of n elements.
  NORMCORE_HD double largest(double n) const { return double(count) < n ? double(count) : n; }
};
template <class M>
concept MeasuresSpread = requires(const typename M::Params& p) { p.spread; };

// A method that only moves x has `shifts_only`, true: its backward needs neither x nor statistics.
template <class M>
concept ShiftsOnly = requires { requires M::shifts_only; };

struct NoGradients {};
template <class M>
inline constexpr int kParameterCount =
    std::is_empty_v<typename M::ParamsGrad>
        ? 0
        : static_cast<int>(sizeof(typename M::ParamsGrad) / sizeof(double));

}  // namespace normcore
