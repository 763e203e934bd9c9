// Statistics over processes: what the pipeline asks of an exchange. A process without samples asks
// the same, of zeros.
#pragma once

#include "normcore/errors.h"
#include "pipeline/arguments.h"

namespace normcore {

// What a process adds to the squares around the mean of all.
NORMCORE_HD inline double squares_of_process(double own, double mean, double var, double merged) {
  const double delta = mean - merged;
  return own == 0 ? 0 : own * (var + delta * delta);
}

// The moments [n] of a pool over `count` elements, from those of this process to those of all; with
// `known` the moments are those already, and only the count is not.
template <class Scope>
void merge_processes(const Population& population, bool known, Index n, double& count, double* mean,
                     double* var, Scope& scope) {
  Exchange& exchange = *population.exchange;
  const double own = count;
  double counts[Weighed::kParts];
  Weighed{own, population.own.divisor}.put_parts(counts);
  exchange.sum(counts, Weighed::kParts);
  count = counts[0];
  population.count->here = Weighed::of_parts(counts[0], counts[1], counts[2]);
  if (count > 0 && count < population.least_count) {
    throw value_error(
        "Expected more than 1 value per channel when training, got one in all processes");
  }
  if (known || count == 0) return;
  double* sum = scope.template take<double>(n);
  for (Index k = 0; k < n; ++k) sum[k] = own * mean[k];
  exchange.sum(sum, n);
  for (Index k = 0; k < n; ++k) {
    const double merged = sum[k] / count;
    sum[k] = squares_of_process(own, mean[k], var[k], merged);
    mean[k] = merged;
  }
  exchange.sum(sum, n);
  for (Index k = 0; k < n; ++k) var[k] = sum[k] / count;
}

}  // namespace normcore
