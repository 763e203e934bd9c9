#include "onnx_file.h"

#include <bit>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace example {
namespace {

static_assert(std::endian::native == std::endian::little, "ONNX's raw data is little-endian");

std::uint64_t take_number(std::string_view& bytes) {
  std::uint64_t value = 0;
  for (int shift = 0; shift < 64; shift += 7) {
    if (bytes.empty()) throw std::runtime_error("the ONNX file is truncated");
    const auto byte = static_cast<unsigned char>(bytes.front());
    bytes.remove_prefix(1);
    value |= std::uint64_t(byte & 0x7f) << shift;
    if (byte < 0x80) return value;
  }
  throw std::runtime_error("this is no ONNX file: a number has more than 64 bits");
}

std::string_view take(std::string_view& bytes, std::uint64_t n) {
  if (n > bytes.size()) throw std::runtime_error("the ONNX file is truncated");
  const std::string_view taken = bytes.substr(0, n);
  bytes.remove_prefix(n);
  return taken;
}

// Calls f(field, number, bytes) for each field of a message: the one or the other is its value.
template <class F>
void for_each_field(std::string_view message, F f) {
  while (!message.empty()) {
    const std::uint64_t key = take_number(message);
    const std::uint64_t field = key >> 3;
    switch (key & 7) {
      case 0:
        f(field, take_number(message), std::string_view());
        break;
      case 1:
        f(field, 0, take(message, 8));
        break;
      case 2:
        f(field, 0, take(message, take_number(message)));
        break;
      case 5:
        f(field, 0, take(message, 4));
        break;
      default:
        throw std::runtime_error("this is no ONNX file");
    }
  }
}

std::vector<float> floats(std::string_view bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  if (!values.empty()) std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

OnnxNode read_node(std::string_view message) {
  OnnxNode node;
  for_each_field(message, [&](std::uint64_t field, std::uint64_t, std::string_view bytes) {
    if (field == 1) node.inputs.emplace_back(bytes);
    if (field == 4) node.type = bytes;
    if (field != 5) return;
    std::string name;
    for_each_field(bytes, [&](std::uint64_t part, std::uint64_t, std::string_view value) {
      if (part == 1) name = value;
      if (part == 2 && value.size() == sizeof(float)) node.numbers[name] = floats(value)[0];
    });
  });
  return node;
}

}  // namespace

float OnnxNode::number(const std::string& name, float otherwise) const {
  const auto found = numbers.find(name);
  return found == numbers.end() ? otherwise : found->second;
}

OnnxFile::OnnxFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path + " cannot be opened");
  bytes_.assign(std::istreambuf_iterator<char>(file), {});
  for_each_field(bytes_, [&](std::uint64_t field, std::uint64_t, std::string_view bytes) {
    if (field == 7) read_graph(bytes);
  });
}

void OnnxFile::read_graph(std::string_view graph) {
  for_each_field(graph, [&](std::uint64_t field, std::uint64_t, std::string_view bytes) {
    if (field == 1) nodes_.push_back(read_node(bytes));
    if (field != 5) return;
    for_each_field(bytes, [&](std::uint64_t part, std::uint64_t, std::string_view value) {
      if (part == 8) tensors_.emplace(value, bytes);
    });
  });
}

const OnnxNode& OnnxFile::node(const std::string& type) const {
  for (const OnnxNode& node : nodes_) {
    if (node.type == type) return node;
  }
  throw std::runtime_error("the ONNX model has no " + type);
}

std::vector<float> OnnxFile::weights(const std::string& name) const {
  const auto found = tensors_.find(name);
  if (found == tensors_.end()) throw std::runtime_error("the ONNX model has no weights " + name);
  std::uint64_t type = 0;
  std::vector<float> values;
  for_each_field(found->second, [&](std::uint64_t field, std::uint64_t n, std::string_view bytes) {
    if (field == 2) type = n;
    // Packed floats, or the same as raw data.
    if (field == 4 || field == 9) {
      const std::vector<float> more = floats(bytes);
      values.insert(values.end(), more.begin(), more.end());
    }
  });
  if (type != 1 || values.empty()) {
    throw std::runtime_error("the ONNX model has no float32 values of " + name + " in its file");
  }
  return values;
}

}  // namespace example
