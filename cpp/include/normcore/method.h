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
#include <concepts>
#include <type_traits>

#include "normcore/dtype.h"
#include "normcore/export.h"

namespace normcore {

// 1 / sqrt(v). A device has it within a unit in the last place, for less than a root and a
// division.
NORMCORE_HD inline double reciprocal_root(double v) {
#if defined(__CUDA_ARCH__) && defined(__CUDACC__)
  return ::rsqrt(v);
#else
  return 1 / std::sqrt(v);
#endif
}

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
//   static constexpr bool by_channel;   whether its formulas look at the channel
//   struct Params;                      what the call says: scalars, and arrays over the channels
//   struct ParamsGrad;                  doubles, or empty (NoGradients)
//   static double rstd(const Stats&, const Params&, Index channel);  of one pool, for who asks; of
//                                       a pool of several channels: with the first of them
//   static Coef coefficients(const Stats (&)[P], const Params&, Index channel);
//   static void pullback(const Stats (&)[P], const Params&, Index channel, CoefGrad,
//                        StatsGrad (&)[P], ParamsGrad&);
// The gradients of given statistics are not used, and need not be written. `NormMethod` below holds
// every line of methods.def to this.
template <class M>
inline constexpr int kPoolCount = static_cast<int>(sizeof(M::pools) / sizeof(Pool));

// A method that measures spread otherwise has a SpreadKind `spread` in its Params, and finds in
// Stats::var the spread itself: (mean |x - mean|^order)^(1/order), or with order 0 the mean of the
// `count` largest |x - mean|. With `sum` it is the sum of the powers, not their mean. It reads one
// pool.
//
// Its pool is one cell of the table: a channel, an instance, or a row with parameters by element.
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

// A method whose formulas take what a call says in another form, as weights for logits, has
//   static constexpr int kPrepared;                      numbers of that form
//   static void prepare(const Params&, double* numbers);
//   static Params prepared(const Params&, const double* numbers);   on the host alone
// and its formulas get the Params that this returns.
template <class M>
concept PreparesParams = requires { M::kPrepared; };

struct NoGradients {};
template <class M>
inline constexpr int kParameterCount =
    std::is_empty_v<typename M::ParamsGrad>
        ? 0
        : static_cast<int>(sizeof(typename M::ParamsGrad) / sizeof(double));

// ---- the contract, part by part, so that an error names what is missing

template <class M>
concept DeclaresPools = requires {
  { M::pools[0] } -> std::convertible_to<Pool>;
  { M::raw } -> std::convertible_to<bool>;
  { M::by_channel } -> std::convertible_to<bool>;
};
template <class M>
concept DeclaresParams =
    requires {
      typename M::Params;
      typename M::ParamsGrad;
    } && std::is_trivially_copyable_v<typename M::Params> &&
    std::is_trivially_copyable_v<typename M::ParamsGrad> &&
    (std::is_empty_v<typename M::ParamsGrad> ||
     sizeof(typename M::ParamsGrad) % sizeof(double) == 0);
template <class M>
concept HasRstd = requires(const Stats& s, const typename M::Params& p, Index channel) {
  { M::rstd(s, p, channel) } -> std::same_as<double>;
};
template <class M>
concept HasCoefficients =
    requires(const Stats (&s)[kPoolCount<M>], const typename M::Params& p, Index channel) {
      { M::coefficients(s, p, channel) } -> std::same_as<Coef>;
    };
template <class M>
concept HasPullback =
    requires(const Stats (&s)[kPoolCount<M>], const typename M::Params& p, Index channel,
             CoefGrad g, StatsGrad (&ds)[kPoolCount<M>], typename M::ParamsGrad& dp) {
      { M::pullback(s, p, channel, g, ds, dp) } -> std::same_as<void>;
    };

// The others can be merged from the last pool, and given statistics are the first.
template <class M>
consteval bool last_pool_is_finest() {
  constexpr int P = kPoolCount<M>;
  if (P == 1) return M::pools[0] != Pool::given;
  bool channels_alone = true;
  for (int i = 0; i < P - 1; ++i) {
    if (M::pools[i] == Pool::given && i > 0) return false;
    channels_alone = channels_alone && (M::pools[i] == Pool::given || M::pools[i] == Pool::batch);
  }
  return M::pools[P - 1] == Pool::instance || (M::pools[P - 1] == Pool::batch && channels_alone);
}

// Over which pools the pipeline measures a spread. A sample is a single cell where parameters are
// by element; over its channels it has many, as a group has.
template <class M>
inline constexpr bool kSpreadOfChannels =
    kPoolCount<M> == 1 && (M::pools[0] == Pool::batch || M::pools[0] == Pool::instance);
template <class M>
inline constexpr bool kSpreadOfRows = kPoolCount<M> == 1 && M::pools[0] == Pool::sample;

template <class M>
concept NormMethod =
    DeclaresPools<M> && DeclaresParams<M> && HasRstd<M> && HasCoefficients<M> && HasPullback<M> &&
    last_pool_is_finest<M>() && (!MeasuresSpread<M> || kSpreadOfChannels<M> || kSpreadOfRows<M>);

template <class M>
consteval bool check_method() {
  static_assert(DeclaresPools<M>,
                "a method declares `static constexpr` Pool pools[], bool raw and bool by_channel");
  static_assert(DeclaresParams<M>,
                "a method declares Params and ParamsGrad: plain structs, the second of doubles");
  static_assert(HasRstd<M>, "a method has double rstd(const Stats&, const Params&, Index channel)");
  static_assert(HasCoefficients<M>,
                "a method has Coef coefficients(const Stats (&)[P], const Params&, Index channel)");
  static_assert(HasPullback<M>,
                "a method has void pullback(const Stats (&)[P], const Params&, Index channel, "
                "CoefGrad, StatsGrad (&)[P], ParamsGrad&)");
  static_assert(last_pool_is_finest<M>(),
                "the last of several pools is Pool::instance, or Pool::batch after given and batch "
                "pools alone; Pool::given is the first");
  static_assert(!MeasuresSpread<M> || kSpreadOfChannels<M> || kSpreadOfRows<M>,
                "a spread is measured over one pool: batch, instance, or the sample of a row");
  return NormMethod<M>;
}

}  // namespace normcore
