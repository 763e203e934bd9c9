#include "call.h"

#include "../arguments.h"
#include "../huge_pages.h"
#include "ops/view.h"

namespace normcore::python::jax {
namespace {

// What only a mistake of normcore.jax, or another runtime than is known, brings about.
[[noreturn]] void refuse(std::string_view what) {
  throw std::runtime_error("normcore.jax: " + std::string(what));
}

DType dtype_of(ffi::DataType dtype, const char* name) {
  switch (dtype) {
    case ffi::kFloat16:
      return DType::kFloat16;
    case ffi::kBFloat16:
      return DType::kBFloat16;
    case ffi::kFloat32:
      return DType::kFloat32;
    case ffi::kFloat64:
      return DType::kFloat64;
    default:
      throw type_error(std::string(name) + " has another dtype, " + kExpectedDtypes);
  }
}

void check(const ffi::Api& api, ffi::Error* error, const char* what) {
  if (!error) return;
  ffi::DestroyArguments arguments{{sizeof arguments, nullptr}, error};
  api.destroy_error(&arguments);
  refuse(what);
}

}  // namespace

Call::Call(const ffi::CallFrame& frame, Device device) : frame_(frame) {
  if (device != Device::kCuda) return;
  const ffi::Api& api = *frame.api;
  context_.device = device;
  ffi::StreamArguments stream{{sizeof stream, nullptr}, frame.context, nullptr};
  check(api, api.get_stream(&stream), "a call has no stream");
  context_.stream = stream.stream;
  ffi::OrdinalArguments ordinal{
      {offsetof(ffi::OrdinalArguments, ordinal) + sizeof ordinal.ordinal, nullptr},
      frame.context,
      0};
  check(api, api.get_device_ordinal(&ordinal), "a call has no device");
  context_.device_index = ordinal.ordinal;
}

const ffi::Buffer& Call::next(const ffi::Buffers& of, std::int64_t* at) {
  if (*at >= of.size) refuse("a call has too few buffers");
  const ffi::Buffer& buffer = *of.values[(*at)++];
  if (buffer.header.struct_size < sizeof buffer) refuse("a buffer says too little");
  return buffer;
}

Tensor Call::view(const ffi::Buffer& buffer, const char* name) {
  constexpr const Index* kContiguous = nullptr;
  return make_view<Tensor>(name, buffer.data, dtype_of(buffer.dtype, name), buffer.rank,
                           buffer.dims, kContiguous);
}

Tensor Call::result(const char* name) {
  const Tensor t = view(next(frame_.results, &results_), name);
  if (context_.device == Device::kCpu) {
    ask_for_huge_pages(t.data(), static_cast<std::size_t>(t.size()) * size_of(t.dtype()));
  }
  return t;
}

Tensor Call::view_of_pairs(const ffi::Buffer& buffer, const char* name) {
  constexpr const Index* kContiguous = nullptr;
  if (buffer.dtype != ffi::kUint32 || buffer.rank < 2 || buffer.dims[buffer.rank - 1] != 2) {
    refuse("statistics are no pairs of doubles");
  }
  return make_view<Tensor>(name, buffer.data, DType::kFloat64, buffer.rank - 1, buffer.dims,
                           kContiguous);
}

std::int64_t Call::find(std::string_view name) const {
  const ffi::Attributes& all = frame_.attributes;
  for (std::int64_t i = 0; i < all.size; ++i) {
    if (std::string_view(all.names[i]->data, all.names[i]->size) == name) return i;
  }
  return -1;
}

const void* Call::scalar(std::string_view name, ffi::DataType dtype) const {
  const std::int64_t at = find(name);
  if (at < 0 || frame_.attributes.types[at] != ffi::kScalar) refuse(name);
  const auto& value = *static_cast<const ffi::Scalar*>(frame_.attributes.values[at]);
  if (value.dtype != dtype) refuse(name);
  return value.value;
}

std::span<const Index> Call::integers(std::string_view name) const {
  const std::int64_t at = find(name);
  if (at < 0 || frame_.attributes.types[at] != ffi::kArray) refuse(name);
  const auto& value = *static_cast<const ffi::Array*>(frame_.attributes.values[at]);
  if (value.size > 0 && value.dtype != ffi::kInt64) refuse(name);
  return {static_cast<const Index*>(value.data), value.size};
}

}  // namespace normcore::python::jax
