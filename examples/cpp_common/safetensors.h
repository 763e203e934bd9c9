// A safetensors file in memory: 8 bytes with the length of a JSON header, the header, and the
// tensors' bytes, little-endian. Tensors are handed out as views; errors are std::runtime_error and
// name the file, the tensor and the rule.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace example {

class SafeTensors {
 public:
  explicit SafeTensors(const std::filesystem::path& path);

  // The tensor of that name, of float or std::int64_t; -1 stands for any size. Valid as long as
  // this object.
  template <class T>
  std::span<const T> get(const std::string& name, const std::vector<std::int64_t>& shape) const;

  const std::vector<std::int64_t>& shape(const std::string& name) const;

 private:
  struct Entry {
    std::string dtype;
    std::vector<std::int64_t> shape;
    std::uint64_t begin, end;  // in data_
  };

  const Entry& entry(const std::string& name) const;
  [[noreturn]] void fail(const std::string& what) const;

  std::string path_;
  std::unique_ptr<std::byte[]> data_;
  std::map<std::string, Entry> entries_;
};

}  // namespace example
