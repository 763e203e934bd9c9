// What divisive norm does to an element, in double, for loops that are no vectors.
//   y = g sgn(x) |x|^p D^(-e)
#pragma once

#include <cmath>

#include "normcore/export.h"

namespace normcore::mixing {

// v^exponent, v >= 0
NORMCORE_HD inline double power(double v, double exponent) {
  if (exponent == 1) return v;
  if (exponent == 2) return v * v;
  if (exponent == 0.5) return std::sqrt(v);
  if (exponent == -0.5) return 1 / std::sqrt(v);
  if (exponent == -1) return 1 / v;
  return std::pow(v, exponent);
}
// sgn(x) |x|^p
NORMCORE_HD inline double signed_power(double x, double p) {
  if (p == 1) return x;
  const double size = power(std::fabs(x), p);
  return x > 0 ? size : x < 0 ? -size : x;
}
// D^(-e). Where it is infinite because all there is is 0, it is 0, and so is what it multiplies.
NORMCORE_HD inline double divisor_power(double d, double x, double e) {
  return e > 0 && d == 0 && x == 0 ? 0 : power(d, -e);
}

// What a gradient dy of y brings to D, to the gain, and to x where D is held. A slope that is
// infinite at 0 counts as 0.
struct Terms {
  double d, gain, x;
};
NORMCORE_HD inline Terms terms(double dy, double x, double d, double gain, double p, double e) {
  const double divisor = divisor_power(d, x, e), dy_y = dy * (signed_power(x, p) * divisor);
  double direct = dy * gain * divisor;
  if (p != 1) direct = p < 1 && x == 0 ? 0 : direct * (p * power(std::fabs(x), p - 1));
  return {d == 0 ? 0 : -e * (dy_y * gain / d), dy_y, direct};
}
// And to e; dy_y: the gain's.
NORMCORE_HD inline double term_of_e(double dy_y, double gain, double d) {
  return dy_y * gain == 0 ? 0 : -(dy_y * gain * std::log(d));
}
// d|x|^a / dx
NORMCORE_HD inline double slope(double x, double a) {
  if (a == 2) return x + x;
  const double sign = x > 0 ? 1 : x < 0 ? -1 : x;
  if (a == 1) return sign;
  return x == 0 ? 0 : a * (power(std::fabs(x), a) / x);
}
// |x|^a log|x|: its slope along a.
NORMCORE_HD inline double slope_of_exponent(double x, double a) {
  const double size = std::fabs(x);
  return x == 0 ? 0 : power(size, a) * std::log(size);
}

}  // namespace normcore::mixing
