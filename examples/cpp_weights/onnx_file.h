// What an ONNX model holds of weights and of nodes with their numbers, read without the protobuf
// library: fields are a number and a value, and onnx.proto says which is what. Errors are
// std::runtime_error.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace example {

struct OnnxNode {
  std::string type;
  std::vector<std::string> inputs;
  std::map<std::string, float> numbers;  // its attributes that are floats

  float number(const std::string& name, float otherwise) const;
};

class OnnxFile {
 public:
  explicit OnnxFile(const std::string& path);

  // The first of that type.
  const OnnxNode& node(const std::string& type) const;
  // A float32 tensor that the file itself holds.
  std::vector<float> weights(const std::string& name) const;

 private:
  void read_graph(std::string_view graph);

  std::string bytes_;
  std::vector<OnnxNode> nodes_;
  std::map<std::string, std::string_view> tensors_;
};

}  // namespace example
