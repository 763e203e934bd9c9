// Batch statistics over processes: packed on the device, summed by the caller's exchange on the
// stream, and unpacked there. A process without samples takes part with zeros.
#include <limits>

#include "cuda/population.h"
#include "cuda/summers.cuh"
#include "pipeline/processes.h"

namespace normcore::cuda {
namespace {

// What Weighed::of_parts takes, and own means behind it.
__global__ void pack_moments(Counted counted, Index n, const double* mean, double* sums) {
  const Index i = my_index();
  const Weighed own = counted.value();
  if (i == 0) own.put_parts(sums);
  if (i < n) sums[Weighed::kParts + i] = own.sum * mean[i];
}

// The means of all processes, and this one's share of the squares around them.
__global__ void unpack_means(Counted counted, Index n, const double* sums, double* mean,
                             double* var, Weighed* all) {
  const Index i = my_index();
  if (i == 0) *all = Weighed::of_parts(sums[0], sums[1], sums[2]);
  if (i >= n) return;
  const double merged = sums[0] > 0 ? sums[Weighed::kParts + i] / sums[0] : 0;
  var[i] = squares_of_process(counted.value().sum, mean[i], var[i], merged);
  mean[i] = merged;
}

// From squares to variances.
__global__ void divide_squares(Index n, const Weighed* counted, double* var) {
  const Index i = my_index();
  if (i >= n) return;
  const double count = counted->sum;
  var[i] = count > 0 ? var[i] / count : std::numeric_limits<double>::infinity();
}

}  // namespace

void sum_over_processes(Exchange& exchange, double* values, Index n, DeviceMemory& memory) {
  exchange.sum_on_device(values, n, memory.device(), memory.stream());
  int current = 0;  // which the caller's code may have changed
  check(cudaGetDevice(&current), "cudaGetDevice");
  if (current != memory.device()) check(cudaSetDevice(memory.device()), "cudaSetDevice");
}

const Weighed* merge_processes(const Population& population, const Weighed* own, Index n,
                               BatchMoments moments, DeviceMemory& memory) {
  Exchange& exchange = *population.exchange;
  const Counted counted{population.own, own};
  const Index packed = Weighed::kParts + n;
  auto* all = memory.take<Weighed>(1);
  double* sums = memory.take<double>(packed);
  const Launch each = one_each(std::max<Index>(1, n));
  launch(each, memory.stream(), pack_moments, counted, n, moments.mean, sums);
  sum_over_processes(exchange, sums, packed, memory);
  launch(each, memory.stream(), unpack_means, counted, n, sums, moments.mean, moments.var, all);
  if (n > 0) {
    sum_over_processes(exchange, moments.var, n, memory);
    launch(one_each(n), memory.stream(), divide_squares, n, all, moments.var);
  }
  return all;
}

}  // namespace normcore::cuda
