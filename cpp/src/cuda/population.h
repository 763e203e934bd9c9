// Whose statistics a batch pool has on a device: of the elements that a mask lets count, and of the
// samples of other processes. Tables have an entry per channel; nothing waits for the host.
#pragma once

#include "cuda/launch.h"
#include "pipeline/arguments.h"
#include "plan/plan.h"

namespace normcore::cuda {

// What a mask counts, of one channel.
const Weighed* weigh_mask(const Plan& plan, DType dtype, const void* mask, DeviceMemory& memory);

struct BatchMoments {
  double *mean, *var;
};
// Of what a mask lets count. Nothing has a mean of 0 and an infinite variance.
BatchMoments masked_batch_moments(const Plan& plan, DType dtype, const void* x, const void* mask,
                                  DeviceMemory& memory);

// The moments [n] from those of this process to those of all, whose count is returned. `own`: where
// that of this process is, null: as the population says. Without moments it is all that is wanted.
const Weighed* merge_processes(const Population& population, const Weighed* own, Index n,
                               BatchMoments moments, DeviceMemory& memory);

// Sums over the processes, in place.
void sum_over_processes(Exchange& exchange, double* values, Index n, DeviceMemory& memory);

}  // namespace normcore::cuda
