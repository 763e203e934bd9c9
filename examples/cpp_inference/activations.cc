#include "activations.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace example {

void gelu(float* x, std::ptrdiff_t n) {
  constexpr float kHalfSqrt2 = std::numbers::sqrt2_v<float> / 2;
  for (std::ptrdiff_t i = 0; i < n; ++i) x[i] *= 0.5f * (1 + std::erf(x[i] * kHalfSqrt2));
}

void softmax(float* x, std::ptrdiff_t rows, std::ptrdiff_t cols, float scale) {
  for (float* end = x + rows * cols; x < end; x += cols) {
    const float largest = *std::max_element(x, x + cols);
    float sum = 0;
    for (std::ptrdiff_t i = 0; i < cols; ++i) {
      x[i] = std::exp(scale * (x[i] - largest));
      sum += x[i];
    }
    const float inverse = 1 / sum;
    for (std::ptrdiff_t i = 0; i < cols; ++i) x[i] *= inverse;
  }
}

}  // namespace example
