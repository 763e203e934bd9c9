// The arguments and results of torch's operators: tensors that torch owns as views, and new ones
// of torch's memory.
#pragma once

#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "../huge_pages.h"
#include "normcore/normcore.h"
#include "ops/view.h"
#include "shim.h"

namespace normcore::python::torch {

// A reference to a tensor, given back at the end.
class Owned {
 public:
  Owned() = default;
  explicit Owned(AtenTensorOpaque* handle) : handle_(handle) {}
  Owned(Owned&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owned& operator=(Owned&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~Owned() {
    if (handle_) shim.aoti_torch_delete_tensor_object(handle_);
  }

  explicit operator bool() const { return handle_ != nullptr; }
  AtenTensorOpaque* get() const { return handle_; }
  // As a result, which the caller owns.
  Value release() { return reinterpret_cast<Value>(std::exchange(handle_, nullptr)); }

 private:
  AtenTensorOpaque* handle_ = nullptr;
};

// Takes the arguments of a call one after the other.
class Stack {
 public:
  explicit Stack(const Value* values) : next_(values) {}

  Owned tensor() { return Owned(reinterpret_cast<AtenTensorOpaque*>(*next_++)); }
  Owned optional_tensor() {
    Value v;
    return take_optional(&v) ? Owned(reinterpret_cast<AtenTensorOpaque*>(v)) : Owned();
  }
  template <class T>
  T number() {
    T v;
    std::memcpy(&v, next_++, sizeof v);
    return v;
  }
  template <class T>
  std::optional<T> optional_number() {
    Value v;
    if (!take_optional(&v)) return {};
    T number;
    std::memcpy(&number, &v, sizeof number);
    return number;
  }
  std::vector<Index> integers() {
    auto* list = reinterpret_cast<StableListOpaque*>(*next_++);
    std::size_t n = 0;
    check(shim.torch_list_size(list, &n), "count a list");
    std::vector<Index> values(n);
    for (std::size_t i = 0; i < n; ++i) {
      Value v = 0;
      check(shim.torch_list_get_item(list, i, &v), "read a list");
      std::memcpy(&values[i], &v, sizeof v);
    }
    check(shim.torch_delete_list(list), "delete a list");
    return values;
  }

 private:
  bool take_optional(Value* v) {
    auto* there = reinterpret_cast<Value*>(*next_++);
    if (!there) return false;
    *v = *there;
    delete there;
    return true;
  }

  const Value* next_;
};

// ---- views

DType dtype_of(AtenTensorOpaque* t, const char* name);
std::int32_t torch_dtype(DType t);

// Where a tensor lies, with torch's current stream of that device, and torch's number of threads.
Context context_of(const Owned& x);

// The others of a call must lie where x does.
void check_place(const Owned& t, const char* name, const Context& where);

inline Tensor view(const Owned& t, const char* name) {
  if (!t) return {};
  std::int64_t ndim = 0, *sizes = nullptr, *strides = nullptr;
  void* data = nullptr;
  check(shim.aoti_torch_get_dim(t.get(), &ndim), "say a tensor's number of axes");
  check(shim.aoti_torch_get_sizes(t.get(), &sizes), "say a tensor's sizes");
  check(shim.aoti_torch_get_strides(t.get(), &strides), "say a tensor's strides");
  check(shim.aoti_torch_get_data_ptr(t.get(), &data), "say where a tensor lies");
  return make_view<Tensor>(name, data, dtype_of(t.get(), name), ndim, sizes, strides);
}

// ---- results

// A new tensor and its view.
struct New {
  Owned tensor;
  Tensor view;
};
// With x's sizes in torch's order for results: channels-last where `as_channels_last` and x is,
// else C-contiguous.
New new_like(const ConstTensor& x, bool as_channels_last, const Context& where);
// C-contiguous.
New new_contiguous(const ConstTensor& shape, DType dtype, const Context& where);
// Of no elements, for what is not wanted.
New new_empty(DType dtype, const Context& where);

}  // namespace normcore::python::torch
