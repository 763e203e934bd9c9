// Masks: the weights with which elements count in statistics.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "normcore/errors.h"
#include "normcore/tensor.h"
#include "plan/pool.h"
#include "plan/walk.h"

namespace normcore {

// Weights are what the kernels reduce with: in the dtype of statistics.
inline void check_mask_dtype(const ConstTensor& mask, const ConstTensor& x) {
  const DType wanted = statistics_dtype(x.dtype());
  if (mask.dtype() == wanted) return;
  throw type_error(std::string("mask has dtype ") + name_of(mask.dtype()) + ", expected " +
                   name_of(wanted) + ", that of statistics");
}

// The count of a mask's weights, each of which must be finite and not negative, and of which every
// one counts for `channels` elements that do not share statistics.
inline Weighed weigh(const ConstTensor& mask, Index channels) {
  if (mask.size() == 0) return {0, 0};  // whatever its strides
  Walk w;
  double repeats = 1;
  for (int a = 0; a < mask.ndim(); ++a) {
    if (mask.stride(a) == 0) {
      repeats *= double(mask.shape(a));
    } else {
      w.append(mask.shape(a), mask.stride(a));
    }
  }
  repeats /= double(channels);
  auto each = [&](auto f) {
    if (mask.dtype() == DType::kFloat64) {
      w.each([&](Index at) { f(static_cast<const double*>(mask.data())[at]); });
    } else {
      w.each([&](Index at) { f(double(static_cast<const float*>(mask.data())[at])); });
    }
  };
  double largest = 0;
  each([&](double v) {
    if (!(v >= 0) || std::isinf(v)) {
      throw value_error("mask holds " + std::to_string(v) + ", expected finite numbers >= 0");
    }
    largest = std::max(largest, v);
  });
  if (largest == 0) return {0, 0};
  // sum - sum of w^2 / sum is twice the products of all pairs / sum: nothing is subtracted where
  // one weight is nearly all there is. In units of the largest no product leaves the range.
  const double unit = unit_of<double>(largest);
  double sum = 0, squares = 0, pairs = 0;
  each([&](double v) {
    v /= unit;
    pairs += v * sum;
    squares += v * v;
    sum += v;
  });
  pairs = repeats * pairs + (repeats - 1) / 2 * squares;
  return {unit * (sum * repeats), unit * (2 * pairs / sum)};
}

}  // namespace normcore
