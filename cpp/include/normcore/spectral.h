// The largest singular value of a weight, by power iteration, and the weight divided by it.
#pragma once

#include <optional>

#include "normcore/context.h"
#include "normcore/errors.h"
#include "normcore/tensor.h"

namespace normcore {

struct SpectralNormOptions {
  Index n_power_iterations = 1;
  int axis = 0;  // of the outputs; the others are one, in the order of the axes
  // Where |W^T u| is less than this (times the largest |weight|, where that is below 1), u tells
  // nothing, and a fixed start takes its place.
  double eps = 1e-12;
  // Division by max(1, sigma / bound) in place of sigma.
  std::optional<double> bound{};
  // An iteration begins with u = W v, from v; else with v = W^T u, from u.
  bool u_first = false;
};
struct SpectralNormVectors {
  ConstTensor u, v;  // (out,) and (rest,): the one that the first product needs, without
                     // iterations both; of any length but 0
};
struct SpectralNormOut {
  Tensor weight;   // like the weight, or the weight itself
  Tensor u, v;     // of any dtype, also the memory of those given; or absent
  Tensor sigma{};  // (), where it is written; or absent
};

// weight / sigma with sigma = u^T W v, which is returned; u and v have gone through some power
// iterations. A matrix of zeros gives zeros. A call on a device does not wait for sigma: it returns
// NaN, and only out.sigma has it.
NORMCORE_API double spectral_norm(const ConstTensor& weight, const SpectralNormVectors& start,
                                  const SpectralNormOut& out,
                                  const SpectralNormOptions& options = {},
                                  const Context& context = {});
// dweight = (dw - <dw, w> u v^T) / sigma, with u and v as constants; w, sigma, u and v are results
// of the forward call, options its options. dweight may be dw.
NORMCORE_API void spectral_norm_backward(const ConstTensor& dw, const ConstTensor& w, double sigma,
                                         const ConstTensor& u, const ConstTensor& v,
                                         const Tensor& dweight,
                                         const SpectralNormOptions& options = {},
                                         const Context& context = {});
// The same with sigma, (), where the forward call has written it.
NORMCORE_API void spectral_norm_backward(const ConstTensor& dw, const ConstTensor& w,
                                         const ConstTensor& sigma, const ConstTensor& u,
                                         const ConstTensor& v, const Tensor& dweight,
                                         const SpectralNormOptions& options = {},
                                         const Context& context = {});

struct PowerMethodOptions {
  std::optional<Index> n_iterations{};  // exactly so many, else until it has converged:
  double tol = 1e-6;                    // |A^T u - sigma v| <= tol * sigma
  Index max_iterations = 1000;
};
struct PowerMethodResult {
  double sigma;
  Index n_iterations;
  bool converged;
};
// The result as arrays (); any may be absent.
struct PowerMethodNumbers {
  Tensor sigma{}, n_iterations{}, converged{};  // the last is 1 or 0
};

// The largest singular value of a matrix and its vectors: A v = sigma u. Starts from `start`,
// (rows,), or where that is absent from a fixed pseudo-random vector. u: (rows,), v: (cols,). A
// call on a device does not wait for the numbers: it returns NaN, and only `numbers` has them. It
// queues the most iterations that it may take; those after it has converged find nothing to do.
NORMCORE_API PowerMethodResult power_method(const ConstTensor& a, const ConstTensor& start,
                                            const Tensor& u, const Tensor& v,
                                            const PowerMethodOptions& options = {},
                                            const Context& context = {},
                                            const PowerMethodNumbers& numbers = {});

}  // namespace normcore
