// Moments of what a mask lets count, on a device. The build without CUDA throws.
#pragma once

#include "normcore/tensor.h"
#include "pipeline/memory.h"
#include "plan/plan.h"

namespace normcore::cuda {

// Of every cell of the plan, whose operands are kX and kMask: the sum of the weights, the mean, and
// the sum of weighted squared deviations. Weights are of x's compute type; what is not above 0 does
// not count.
void masked_moments(const Plan& plan, DType dtype, const void* x, const void* mask, Memory& memory,
                    double* weight, double* mean, double* m2);

}  // namespace normcore::cuda
