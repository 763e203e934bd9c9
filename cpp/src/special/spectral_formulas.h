// What spectral norm and the power method compute with single numbers: both backends call these.
#pragma once

#include <cmath>
#include <cstdint>

#include "normcore/tensor.h"

namespace normcore::special {

// Vectors of a matrix A[rows, cols]: one entry per row, or per column.
enum Side : int { kRowSide = 0, kColSide = 1 };
NORMCORE_HD constexpr Side other(Side s) { return s == kRowSide ? kColSide : kRowSide; }

// Starts that are tried in place of one that tells nothing of the matrix.
inline constexpr int kRestarts = 3;

// A product with a vector of length 1 that is shorter than this tells nothing of a matrix whose
// largest |element| is given.
NORMCORE_HD inline double least_norm(double eps, double largest) {
  return eps * (largest < 1 ? largest : 1);
}

// Entry i of a fixed vector that looks random, in [-1, 1): no matrix is orthogonal to it but by
// intent. SplitMix64.
NORMCORE_HD inline double pseudo_random(std::uint64_t seed, Index i) {
  seed += 0x9e3779b97f4a7c15u * (std::uint64_t(i) + 1);
  std::uint64_t bits = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return double((bits ^ (bits >> 31)) >> 11) * 0x1p-52 - 1;
}

// What the weight is multiplied by: 1 / sigma, or 1 / max(1, sigma / bound). A bound of 0 is none.
NORMCORE_HD inline double factor_of(double sigma, double bound) {
  if (bound > 0) return sigma > bound ? bound / sigma : 1;
  return sigma == 0 ? 0 : 1 / sigma;
}

// The factor as p * q, neither of which leaves float's range where the factor does.
struct Factor {
  double p = 1, q;
  NORMCORE_HD explicit Factor(double factor) : q(factor) {
    for (; std::isfinite(q) && std::abs(q) > 0x1p100; q *= 0x1p-100) p *= 0x1p100;
  }
};

// Whether the factor does not depend on the weight.
NORMCORE_HD inline bool is_constant(double sigma, double bound) {
  return sigma == 0 || (bound > 0 && sigma <= bound);
}
// The gradient is factor * dw + rank_one_factor * u v^T; `along` is <w, dw> of the normalized w.
NORMCORE_HD inline double rank_one_factor(double sigma, double bound, double along) {
  return is_constant(sigma, bound) ? 0 : -factor_of(sigma, bound) * along / (bound > 0 ? bound : 1);
}

// Whether iterations that should come to a residual |A^T u - sigma v| need not go on.
NORMCORE_HD inline bool ends_iterations(double residual, double tol, double sigma) {
  return residual <= tol * sigma || !std::isfinite(sigma);
}

}  // namespace normcore::special
