// The scalar steps of one cell, for host and device: all that lies between the sums over its
// elements and what is applied to them. Loops over cells, and where their numbers lie, are the
// caller's: statistics.h, forward.h, backward.h and spread.h on the CPU, the kernels on a device.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "normcore/method.h"
#include "plan/pool.h"
#include "plan/safe_squares.h"

namespace normcore {

// ---- statistics

template <class C>
NORMCORE_HD bool squares_are_safe(C sum) {
  return sum > kLeastSafeSquares<C> && sum < kMostSafeSquares<C>;
}

// The same of a sum of n products: what was lost to subnormals is less than it can hold.
template <class C>
NORMCORE_HD bool products_are_safe(double sum, double n) {
  return std::isfinite(sum) && std::fabs(sum) > n * kLeastSafeProduct<C>;
}

// Where positions count from: the mean as the compute type C holds it. Where a float may be further
// from it than a float can tell, 0: the mean is then no larger than the spread.
template <bool kRaw, class C>
NORMCORE_HD C center_of(double mean, double var, double count) {
  const double most = sizeof(C) == 4 ? 0x1p253 / count : std::numeric_limits<double>::max();
  return kRaw || var > most ? C(0) : C(mean);
}
// The mean as a method sees it.
template <bool kRaw, class C>
NORMCORE_HD double from_center(double mean, C center) {
  return kRaw ? 0 : mean - double(center);
}

template <bool kRaw, class C>
NORMCORE_HD Stats counted_from_center(double mean, double var, double count, C* center) {
  *center = center_of<kRaw, C>(mean, var, count);
  return {from_center<kRaw>(mean, *center), var, count};
}

// A running statistic after a step towards `value` times `factor`.
NORMCORE_HD inline double blended(double old, double value, double momentum, double factor) {
  return (1 - momentum) * old + momentum * factor * value;
}

// ---- forward: y = a * (x - center) + shift, with the weight and the bias of the channel

template <class C>
struct Applied {
  C a, shift;
};
template <class C>
NORMCORE_HD Applied<C> applied(const Coef& f, double weight, double bias) {
  return {C(weight * f.a), C(weight * f.b + bias)};
}

// ---- backward. With u = (x - center) * unit, a power of two that keeps products in range,
//   dx = p * dy + q * u + r,
//   p = weight * a,  q = sum_P 2 dvar_P / n_P / unit,
//   r = sum_P (dmean_P - 2 dvar_P * (mean_P - center)) / n_P,
// and with weights by element dx = p * (weight * dy - r) + q * u, p = a, from the same gradients.

// What an element has of the gradients of the statistics of its pools, for x - center.
struct Share {
  double q = 0, r = 0;

  // `part`: that of one element of the pool, 1 / count.
  template <bool kRaw>
  NORMCORE_HD void add(const StatsGrad& d, double mean, double part) {
    const double share = 2 * d.var * part;
    q += share;
    if (!kRaw) r += d.mean * part - share * mean;
  }
  template <bool kRaw>
  NORMCORE_HD void add(const StatsGrad& d, const Stats& pool) {
    add<kRaw>(d, pool.mean, 1 / pool.count);
  }
  // With weights by element. Moving all of x moves no y, so that dx has the mean 0: r is that of
  // weight * dy, exactly where all of them are equal, and of what u lacks to one.
  template <bool kRaw>
  NORMCORE_HD static Share by_element(double dvar, double dy_1, const Stats& pool, double a) {
    const double share = 2 * dvar / pool.count;
    return {share, kRaw ? 0 : dy_1 / pool.count + share * pool.mean / a};
  }
};

// The coefficients of cells, before and after the sums over dy are known.
template <class C>
struct GradientTable {
  double *a, *b;  // y0 = a * (x - center) + b
  double* unit;
  C *center, *unit_c, *a_c, *b_c, *p, *q, *r;

  // f(array) for each; the centres may lie with the statistics.
  template <class F>
  void each(F f) {
    for (double** array : {&a, &b, &unit}) f(*array);
    for (C** array : {&unit_c, &a_c, &b_c, &p, &q, &r}) f(*array);
  }

  NORMCORE_HD Coef coefficients(Index cell) const { return {a[cell], b[cell]}; }
  NORMCORE_HD void solve(Index cell, const Coef& f, double weight) const {
    const double power = unit_of(f.a);
    a[cell] = f.a;
    b[cell] = f.b;
    unit[cell] = power;
    unit_c[cell] = C(power);
    a_c[cell] = C(f.a);
    b_c[cell] = C(f.b);
    p[cell] = C(weight * f.a);
  }
  NORMCORE_HD void share(Index cell, const Share& share) const {
    q[cell] = C(share.q * inverse_of_unit(unit[cell]));
    r[cell] = C(share.r);
  }
};

// From the sums of dy * u and dy over a cell.
NORMCORE_HD inline CoefGrad coefficient_gradient(double weight, double dy_u, double dy_1,
                                                 double unit) {
  return {weight * dy_u * inverse_of_unit(unit), weight * dy_1};
}
NORMCORE_HD inline double weight_gradient(const Coef& f, double dy_u, double dy_1, double unit) {
  return f.a * (dy_u * inverse_of_unit(unit)) + f.b * dy_1;
}

// A pool of one element is 0 whatever that holds, and has no gradient.
template <class Method>
NORMCORE_HD bool is_always_zero(double count) {
  return kPoolCount<Method> == 1 && !Method::raw && count == 1;
}

// ---- spread that is no variance, of u = (x - mean) * unit (spread.h)

// From what `tally` sums over a pool of n elements (see cpu/kernels.h), the spread of u.
NORMCORE_HD inline double spread_of(const SpreadKind& kind, double n, const double* sums,
                                    double threshold) {
  if (kind.order > 0) {
    const double powers = sums[0] / kind.divisor(n);
    return kind.order == 1   ? powers
           : kind.order == 2 ? std::sqrt(powers)
                             : std::pow(powers, 1 / kind.order);
  }
  const double k = kind.largest(n);
  return (sums[1] + (k - sums[0]) * threshold) / k;
}

// Whether the variance says what the spread is: order 2, and no square left the range of double.
NORMCORE_HD inline bool told_by_variance(const SpreadKind& kind, double var) {
  return kind.order == 2 && squares_are_safe(var);
}
NORMCORE_HD inline double spread_of_variance(const SpreadKind& kind, double n, double var) {
  return std::sqrt(var * (n / kind.divisor(n)));
}
// Where squares vanish, deviations may not have: the least that counts as their size.
NORMCORE_HD inline double least_deviation(const SpreadKind& kind) {
  return kind.order > 1 ? std::numeric_limits<double>::min() : 0;
}

struct Slopes {
  double weight;  // d spread / du = weight * h(u)
  double tie;     // h of what equals the threshold
  double sum;     // of h
};
NORMCORE_HD inline Slopes slopes_of(const SpreadKind& kind, double n, const double* sums,
                                    double spread) {
  if (kind.order > 0) {
    const double share = 1 / kind.divisor(n);
    const double weight = spread > 0 ? std::pow(spread, 1 - kind.order) * share : spread;
    return {kind.order == 1 ? share : weight, 0, sums[1]};
  }
  // Elements that equal the threshold share what is left of the k largest.
  const double k = kind.largest(n), tie = sums[3] > 0 ? (k - sums[0]) / sums[3] : 0;
  return {1 / k, tie, sums[2] + tie * sums[4]};
}
// q and r of dx = p * dy + q * h(u) + r.
template <bool kRaw>
NORMCORE_HD Share share_of_slopes(const StatsGrad& d, const Slopes& slopes, double n) {
  const double q = d.var * slopes.weight;
  return {q, kRaw ? 0 : (d.mean - q * slopes.sum) / n};
}

}  // namespace normcore
