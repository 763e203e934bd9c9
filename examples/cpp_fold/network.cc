#include "network.h"

#include <normcore/normcore.h>

#include <algorithm>
#include <span>
#include <utility>

#include "matmul.h"

namespace example {
namespace {

std::vector<float> read(const SafeTensors& file, const std::string& name,
                        const std::vector<std::int64_t>& shape) {
  const std::span<const float> values = file.get<float>(name, shape);
  return {values.begin(), values.end()};
}

Layer read_layer(const SafeTensors& file, const std::string& name, std::ptrdiff_t in,
                 std::ptrdiff_t out, std::ptrdiff_t stride, bool has_norm) {
  Layer layer{in,
              out,
              stride,
              read(file, name + ".weight", {in, out}),
              read(file, name + ".bias", {out}),
              std::nullopt,
              has_norm};
  if (has_norm) {
    const std::string norm = name + ".norm.";
    layer.norm = {read(file, norm + "weight", {out}), read(file, norm + "bias", {out}),
                  read(file, norm + "running_mean", {out}),
                  read(file, norm + "running_var", {out})};
  }
  return layer;
}

// Of [rows, channels], with running statistics, which only a call with `training` would move; eps
// has the same default as in Python.
void batch_norm(float* x, std::ptrdiff_t rows, BatchNorm& norm) {
  const auto channels = std::ssize(norm.weight);
  normcore::BatchNormOptions options;
  options.running_mean = {norm.running_mean.data(), {channels}};
  options.running_var = {norm.running_var.data(), {channels}};
  const normcore::Tensor y(x, {rows, channels});
  normcore::batch_norm(y, {norm.weight.data(), {channels}}, {norm.bias.data(), {channels}}, y,
                       options);
}

// With y = scale * (x w + bias) + shift, the columns of w and the bias are scaled, and the bias
// alone is shifted. Both are batch norms again: of a table [in, channels] without mean and bias,
// and of one row.
void fold(Layer& layer) {
  if (!layer.norm) return;
  BatchNorm& norm = *layer.norm;
  const std::vector<float> zeros(layer.out);
  BatchNorm scale{norm.weight, zeros, zeros, norm.running_var};
  batch_norm(layer.weight.data(), layer.in, scale);
  batch_norm(layer.bias.data(), 1, norm);
  layer.norm.reset();
}

// [n, side, side, channels] to [n, side / stride, side / stride, 3, 3, channels], with zeros beyond
// the edges.
void take_patches(const float* x, std::ptrdiff_t n, std::ptrdiff_t side, std::ptrdiff_t channels,
                  std::ptrdiff_t stride, float* patches) {
  for (std::ptrdiff_t image = 0; image < n; ++image, x += side * side * channels) {
    for (std::ptrdiff_t row = 0; row < side; row += stride) {
      for (std::ptrdiff_t column = 0; column < side; column += stride) {
        for (std::ptrdiff_t tap = 0; tap < 9; ++tap, patches += channels) {
          const std::ptrdiff_t i = row + tap / 3 - 1, j = column + tap % 3 - 1;
          if (i < 0 || i >= side || j < 0 || j >= side) {
            std::fill_n(patches, channels, 0.0f);
          } else {
            std::copy_n(x + (i * side + j) * channels, channels, patches);
          }
        }
      }
    }
  }
}

}  // namespace

Network::Network(const SafeTensors& file)
    : layers_{read_layer(file, "conv1", 9, 16, 1, true),
              read_layer(file, "conv2", 9 * 16, 32, 2, true),
              read_layer(file, "dense", 4 * 4 * 32, 64, 0, true),
              read_layer(file, "output", 64, kClasses, 0, false)} {}

Network Network::folded() const {
  Network result = *this;
  for (Layer& layer : result.layers_) fold(layer);
  return result;
}

const float* Network::operator()(const float* images, std::ptrdiff_t n) {
  x_.assign(images, images + n * kSide * kSide);
  std::ptrdiff_t side = kSide;
  for (Layer& layer : layers_) {
    std::ptrdiff_t rows = n;
    const float* inputs = x_.data();
    if (layer.stride > 0) {
      const std::ptrdiff_t channels = layer.in / 9, new_side = side / layer.stride;
      rows = n * new_side * new_side;
      patches_.resize(rows * layer.in);
      take_patches(x_.data(), n, side, channels, layer.stride, patches_.data());
      inputs = patches_.data();
      side = new_side;
    }
    y_.resize(rows * layer.out);
    linear({inputs, rows, layer.in, layer.in},
           {layer.weight.data(), layer.in, layer.out, layer.out}, layer.bias.data(),
           {y_.data(), rows, layer.out, layer.out});
    if (layer.norm) batch_norm(y_.data(), rows, *layer.norm);
    if (layer.relu) {
      for (float& value : y_) value = std::max(value, 0.0f);
    }
    std::swap(x_, y_);
  }
  return x_.data();
}

}  // namespace example
