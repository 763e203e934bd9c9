// Statistics over processes: what the pipeline asks of an exchange. A process without samples asks
// the same, of zeros.
#pragma once

#include "normcore/errors.h"
#include "pipeline/arguments.h"

namespace normcore {

// The moments [n] of a pool over `count` elements, from those of this process to those of all; with
// `known` the moments are those already, and only the count is not.
template <class Scope>
void merge_processes(const Population& population, bool known, Index n, double& count, double* mean,
                     double* var, Scope& scope) {
  Exchange& exchange = *population.exchange;
  const double own = count;
  double counts[] = {own, own * population.own.divisor / 2, own * own};
  exchange.sum(counts, 3);
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
    const double merged = sum[k] / count, delta = mean[k] - merged;
    mean[k] = merged;
    sum[k] = own == 0 ? 0 : own * (var[k] + delta * delta);
  }
  exchange.sum(sum, n);
  for (Index k = 0; k < n; ++k) var[k] = sum[k] / count;
}

}  // namespace normcore
