// The elementwise functions of a transformer that are no normalization.
#pragma once

#include <cstddef>

namespace example {

// x = x * Phi(x), Phi the distribution function of the normal distribution.
void gelu(float* x, std::ptrdiff_t n);

// Each row of [rows, cols]: x = exp(scale * x) over its sum.
void softmax(float* x, std::ptrdiff_t rows, std::ptrdiff_t cols, float scale);

}  // namespace example
