// The small convolutional network of examples/digits.py: conv 16, conv 32 with stride 2, dense 64,
// each with batch norm in evaluation and ReLU, and dense 10. Activations are channels-last, so that
// batch norm sees a table [positions, channels] behind every layer.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <vector>

#include "safetensors.h"

namespace example {

struct BatchNorm {
  std::vector<float> weight, bias, running_mean, running_var;  // [channels]
};

struct Layer {
  std::ptrdiff_t in, out;           // 9 * channels, or values of a dense layer; channels
  std::ptrdiff_t stride;            // of a 3 x 3 convolution with padding 1; 0: dense
  std::vector<float> weight, bias;  // [in, out], [out]
  std::optional<BatchNorm> norm;
  bool relu;
};

class Network {
 public:
  static constexpr std::ptrdiff_t kSide = 8, kClasses = 10;

  explicit Network(const SafeTensors& file);

  // The same function without batch norms: each becomes a part of the layer before it.
  Network folded() const;

  // images: [n, 8, 8, 1]. The logits, [n, 10], stay until the next call.
  const float* operator()(const float* images, std::ptrdiff_t n);

 private:
  std::vector<Layer> layers_;
  std::vector<float> patches_, x_, y_;  // scratch memory, kept
};

}  // namespace example
