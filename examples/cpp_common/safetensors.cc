#include "safetensors.h"

#include <bit>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <type_traits>

namespace example {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors files are little-endian");

template <class T>
constexpr const char* kDType = std::is_same_v<T, float> ? "F32" : "I64";

std::string text(const std::vector<std::int64_t>& shape) {
  std::string result;
  for (std::int64_t n : shape) result += (result.empty() ? "" : ", ") + std::to_string(n);
  return "(" + result + ")";
}

bool fits(const std::vector<std::int64_t>& shape, const std::vector<std::int64_t>& expected) {
  if (shape.size() != expected.size()) return false;
  for (std::size_t i = 0; i < shape.size(); ++i) {
    if (expected[i] != -1 && shape[i] != expected[i]) return false;
  }
  return true;
}

// The bytes that a shape of 4 or 8 byte elements needs; -1 where it is none or they are too many.
std::int64_t size_in_bytes(const std::vector<std::int64_t>& shape, std::int64_t item) {
  std::int64_t bytes = item;
  for (std::int64_t n : shape) {
    if (n < 0 || __builtin_mul_overflow(bytes, n, &bytes)) return -1;
  }
  return bytes;
}

}  // namespace

SafeTensors::SafeTensors(const std::filesystem::path& path) : path_(path.string()) {
  std::ifstream file(path, std::ios::binary);
  if (!file) fail("cannot be opened");
  const std::uint64_t file_size = std::filesystem::file_size(path);
  std::uint64_t header_size = 0;
  file.read(reinterpret_cast<char*>(&header_size), sizeof header_size);
  if (!file || header_size > file_size - sizeof header_size) {
    fail("has " + std::to_string(file_size) + " bytes and a header of " +
         std::to_string(header_size) + ": truncated, or not a safetensors file");
  }
  std::string header(header_size, '\0');
  file.read(header.data(), header_size);
  const std::uint64_t data_size = file_size - sizeof header_size - header_size;
  data_ = std::make_unique_for_overwrite<std::byte[]>(data_size);
  file.read(reinterpret_cast<char*>(data_.get()), data_size);
  if (!file) fail("could not be read to its end");

  try {
    const auto json = nlohmann::json::parse(header);
    for (const auto& [name, value] : json.items()) {
      if (name == "__metadata__") continue;
      Entry e{value.at("dtype"), value.at("shape"), value.at("data_offsets").at(0),
              value.at("data_offsets").at(1)};
      if (e.begin > e.end || e.end > data_size) {
        fail("has " + name + " in bytes " + std::to_string(e.begin) + " to " +
             std::to_string(e.end) + " of " + std::to_string(data_size) + ": truncated or damaged");
      }
      entries_.emplace(name, std::move(e));
    }
  } catch (const nlohmann::json::exception& error) {
    fail(std::string("has a header that is not one of safetensors: ") + error.what());
  }
}

template <class T>
std::span<const T> SafeTensors::get(const std::string& name,
                                    const std::vector<std::int64_t>& shape) const {
  const Entry& e = entry(name);
  if (e.dtype != kDType<T>) fail("has " + name + " of " + e.dtype + ", expected " + kDType<T>);
  if (!fits(e.shape, shape)) {
    fail("has " + name + " of shape " + text(e.shape) + ", expected " + text(shape));
  }
  const std::uint64_t bytes = e.end - e.begin;
  const std::int64_t expected = size_in_bytes(e.shape, sizeof(T));
  if (expected < 0 || bytes != static_cast<std::uint64_t>(expected) || e.begin % sizeof(T)) {
    fail("has " + name + " in bytes " + std::to_string(e.begin) + " to " + std::to_string(e.end) +
         ", expected an aligned place for shape " + text(e.shape));
  }
  return {reinterpret_cast<const T*>(data_.get() + e.begin), bytes / sizeof(T)};
}

template std::span<const float> SafeTensors::get(const std::string&,
                                                 const std::vector<std::int64_t>&) const;
template std::span<const std::int64_t> SafeTensors::get(const std::string&,
                                                        const std::vector<std::int64_t>&) const;

const std::vector<std::int64_t>& SafeTensors::shape(const std::string& name) const {
  return entry(name).shape;
}

const SafeTensors::Entry& SafeTensors::entry(const std::string& name) const {
  const auto found = entries_.find(name);
  if (found == entries_.end()) fail("has no tensor " + name);
  return found->second;
}

void SafeTensors::fail(const std::string& what) const {
  throw std::runtime_error(path_ + " " + what);
}

}  // namespace example
