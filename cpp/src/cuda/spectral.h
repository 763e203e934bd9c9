// Power iteration, and what spectral norm makes of it, on a device: queued on the stream, with
// every number that follows from the matrix kept on the device.
#pragma once

#include "normcore/dtype.h"
#include "pipeline/memory.h"
#include "plan/plan.h"
#include "special/spectral_formulas.h"

namespace normcore::cuda {

// The numbers of an iteration; in the memory of the device.
struct PowerNumbers {
  double sigma, iterations, converged;
  double p, q;  // what the weight is multiplied by, see special::Factor

  // Of the iteration itself. Its products are of the matrix times `unit`, a power of two, so that
  // products of products neither overflow nor vanish.
  double unit, scaled_sigma;
  double done;  // whether what is queued is to be passed over
};

// The matrix A[rows, cols] is the first operand of the plan as it lies in memory, perhaps W^T; all
// vectors are contiguous, in the plan's order, and by sides of A.
template <class C>
struct PowerCall {
  const Plan& plan;
  DType dtype;
  const void* data;
  special::Side start = special::kRowSide;   // whose vector an iteration begins with
  special::Side u_side = special::kRowSide;  // whose pseudo-random vector is of the first seed
  Index iterations = 0;                      // at most; 0: sigma of the vectors as they are
  const C* given[2] = {};                    // the caller's; null: pseudo-random, or none
  C* vector[2] = {};                         // the results; may be those given
  bool keep = false;                         // of zeros the results are what was given
  double eps = 0;                            // see special::least_norm
  bool residual = false;                     // whether it has converged is asked
  double tol = 0;                            // of the residual over sigma
  bool exact = true;                         // all iterations, also where it has converged before
  double bound = 0;                          // see special::factor_of
  double iterations_of_zeros = 0;
  void (*between)() = nullptr;  // called while iterations are queued; may throw

  bool transposed() const { return plan.layout == Layout::columns; }
  Index length(special::Side s) const {
    return (s == special::kRowSide) == transposed() ? plan.count : plan.cells;
  }
};

template <class C>
const PowerNumbers* power_iteration(const PowerCall<C>& call, Memory& memory);

// out = w times the factor: operands kY and kX of the plan.
template <class C>
void divide(const Plan& plan, DType dtype, const void* w, void* out, const PowerNumbers* numbers,
            Memory& memory);

// dw and dweight are operands kDy and kDx of the plan, w is kX; sigma, and the vectors by sides of
// A, are on the device.
template <class C>
void spectral_gradient(const Plan& plan, DType dtype, const void* w, const void* dw, void* dweight,
                       const double* sigma, const C* const (&vector)[2], double bound,
                       Memory& memory);

// Of the functions above, where they are defined.
#define NORMCORE_INSTANTIATE_SPECTRAL(C)                                                         \
  template const PowerNumbers* power_iteration(const PowerCall<C>&, Memory&);                    \
  template void divide<C>(const Plan&, DType, const void*, void*, const PowerNumbers*, Memory&); \
  template void spectral_gradient(const Plan&, DType, const void*, const void*, void*,           \
                                  const double*, const C* const(&)[2], double, Memory&);

}  // namespace normcore::cuda
