// Batch statistics over processes: packed on the device, summed by the caller's exchange on the
// stream, and unpacked there. A process without samples takes part with zeros.
#include <limits>

#include "cuda/population.h"
#include "cuda/summers.cuh"

namespace normcore::cuda {
namespace {

// Sums over processes begin with what Weighed::of_parts takes.
constexpr Index kCounts = 3;

__device__ Weighed own_count(const Weighed& known, const Weighed* there) {
  return there ? *there : known;
}

static __global__ void pack_moments(Weighed known, const Weighed* there, Index n,
                                    const double* mean, double* sums) {
  const Index i = my_index();
  const Weighed own = own_count(known, there);
  if (i == 0) {
    sums[0] = own.sum;
    sums[1] = own.sum * own.divisor / 2;
    sums[2] = own.sum * own.sum;
  }
  if (i < n) sums[kCounts + i] = own.sum * mean[i];
}

// The means of all processes, and this one's share of the squares around them.
static __global__ void unpack_means(Weighed known, const Weighed* there, Index n,
                                    const double* sums, double* mean, double* var,
                                    Weighed* counted) {
  const Index i = my_index();
  if (i == 0) *counted = Weighed::of_parts(sums[0], sums[1], sums[2]);
  if (i >= n) return;
  const Weighed own = own_count(known, there);
  const double merged = sums[0] > 0 ? sums[kCounts + i] / sums[0] : 0;
  const double delta = mean[i] - merged;
  mean[i] = merged;
  var[i] = own.sum == 0 ? 0 : own.sum * (var[i] + delta * delta);
}

// From squares to variances.
static __global__ void divide_squares(Index n, const Weighed* counted, double* var) {
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
  auto* counted = memory.take<Weighed>(1);
  double* sums = memory.take<double>(kCounts + n);
  launch(one_each(std::max<Index>(1, n)), memory.stream(), pack_moments, population.own, own, n,
         moments.mean, sums);
  sum_over_processes(exchange, sums, kCounts + n, memory);
  launch(one_each(std::max<Index>(1, n)), memory.stream(), unpack_means, population.own, own, n,
         sums, moments.mean, moments.var, counted);
  if (n > 0) {
    sum_over_processes(exchange, moments.var, n, memory);
    launch(one_each(n), memory.stream(), divide_squares, n, counted, moments.var);
  }
  return counted;
}

}  // namespace normcore::cuda
