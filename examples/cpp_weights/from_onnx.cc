// Batch norm as the first BatchNormalization of an ONNX model does it in inference: its inputs are
// x, scale, B, mean and variance. Samples of float32 channels come from standard input:
//
//   from_onnx model.onnx <samples >normalized
#include <normcore/normcore.h>

#include <exception>
#include <iostream>
#include <vector>

#include "onnx_file.h"

int main(int argc, char** argv) try {
  if (argc != 2) throw std::invalid_argument("usage: from_onnx FILE <samples >normalized");
  const example::OnnxFile model(argv[1]);
  const example::OnnxNode& node = model.node("BatchNormalization");
  std::vector<std::vector<float>> values;
  for (int input = 1; input < 5; ++input) values.push_back(model.weights(node.inputs.at(input)));
  // Each by its own length: ones that do not fit are refused.
  const auto view = [](const std::vector<float>& v) {
    return normcore::ConstTensor(v.data(), {std::ssize(v)});
  };
  const std::ptrdiff_t n = std::ssize(values[0]);

  normcore::BatchNormOptions options;
  options.running_mean = view(values[2]);
  options.running_var = view(values[3]);
  options.eps = node.number("epsilon", 1e-5f);
  std::vector<float> row(values[0].size());
  char* bytes = reinterpret_cast<char*>(row.data());
  const auto size = static_cast<std::streamsize>(row.size() * sizeof(float));
  while (std::cin.read(bytes, size)) {
    normcore::batch_norm({row.data(), {1, n}}, view(values[0]), view(values[1]),
                         {row.data(), {1, n}}, options);
    std::cout.write(bytes, size);
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
