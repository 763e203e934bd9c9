// A call of a handler: its arguments and results one after the other, and its attributes by name.
#pragma once

#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "ffi.h"
#include "normcore/normcore.h"

namespace normcore::python::jax {

class Call {
 public:
  Call(const ffi::CallFrame& frame, Device device);

  // The next argument or result: C-contiguous, as XLA lays it out. Names are for messages.
  Tensor argument(const char* name) { return view(next(frame_.arguments, &arguments_), name); }
  Tensor result(const char* name);
  // The same of pairs of doubles, (..., 2), which lie in buffers of uint32, (..., 2, 2): JAX has no
  // double but where it was asked for.
  Tensor pairs_argument(const char* name) {
    return view_of_pairs(next(frame_.arguments, &arguments_), name);
  }
  Tensor pairs_result(const char* name) {
    return view_of_pairs(next(frame_.results, &results_), name);
  }

  bool has(std::string_view name) const { return find(name) >= 0; }
  // A bool, an Index or a double.
  template <class T>
  T number(std::string_view name) const {
    constexpr ffi::DataType kType = std::is_same_v<T, bool>    ? ffi::kBool
                                    : std::is_same_v<T, Index> ? ffi::kInt64
                                                               : ffi::kFloat64;
    T value;
    std::memcpy(&value, scalar(name, kType), sizeof value);
    return value;
  }
  std::span<const Index> integers(std::string_view name) const;

  // Where it runs: with the stream of the call.
  const Context& context() const { return context_; }

 private:
  static const ffi::Buffer& next(const ffi::Buffers& of, std::int64_t* at);
  static Tensor view(const ffi::Buffer& buffer, const char* name);
  static Tensor view_of_pairs(const ffi::Buffer& buffer, const char* name);
  std::int64_t find(std::string_view name) const;  // negative where there is none
  const void* scalar(std::string_view name, ffi::DataType dtype) const;

  const ffi::CallFrame& frame_;
  std::int64_t arguments_ = 0, results_ = 0;
  Context context_;
};

}  // namespace normcore::python::jax
