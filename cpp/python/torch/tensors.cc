#include "tensors.h"

#include "../arguments.h"

namespace normcore::python::torch {

DType dtype_of(AtenTensorOpaque* t, const char* name) {
  std::int32_t number = 0;
  check(shim.aoti_torch_get_dtype(t, &number), "say a tensor's dtype");
  if (number == shim.aoti_torch_dtype_float32) return DType::kFloat32;
  if (number == shim.aoti_torch_dtype_bfloat16) return DType::kBFloat16;
  if (number == shim.aoti_torch_dtype_float16) return DType::kFloat16;
  if (number == shim.aoti_torch_dtype_float64) return DType::kFloat64;
  throw type_error(std::string(name) + " has another dtype, " + kExpectedDtypes);
}

std::int32_t torch_dtype(DType t) {
  switch (t) {
    case DType::kFloat32:
      return shim.aoti_torch_dtype_float32;
    case DType::kFloat64:
      return shim.aoti_torch_dtype_float64;
    case DType::kBFloat16:
      return shim.aoti_torch_dtype_bfloat16;
    default:
      return shim.aoti_torch_dtype_float16;
  }
}

namespace {

std::pair<std::int32_t, std::int32_t> place_of(const Owned& t) {
  std::int32_t type = 0, index = 0;
  check(shim.aoti_torch_get_device_type(t.get(), &type), "say a tensor's device");
  if (type != shim.aoti_torch_device_type_cpu) {
    check(shim.aoti_torch_get_device_index(t.get(), &index), "say a tensor's device");
  }
  return {type, index};
}

New new_strided(const ConstTensor& shape, const Index* strides, DType dtype, const Context& where) {
  const bool there = where.device == Device::kCuda;
  Index sizes[kMaxDims];
  sizes[0] = 0;  // of no axes: GCC warns of what is handed over unset
  for (int i = 0; i < shape.ndim(); ++i) sizes[i] = shape.shape(i);
  AtenTensorOpaque* handle = nullptr;
  check(shim.aoti_torch_empty_strided(
            shape.ndim(), sizes, strides, torch_dtype(dtype),
            there ? shim.aoti_torch_device_type_cuda : shim.aoti_torch_device_type_cpu,
            where.device_index, &handle),
        "make a tensor");
  New made{Owned(handle), Tensor()};
  void* data = nullptr;
  check(shim.aoti_torch_get_data_ptr(handle, &data), "say where a tensor lies");
  made.view = Tensor(data, dtype, shape.ndim());
  for (int i = 0; i < shape.ndim(); ++i) made.view.set_dim(i, sizes[i], strides[i]);
  if (!there) {
    ask_for_huge_pages(data, static_cast<std::size_t>(made.view.size()) * size_of(dtype));
  }
  return made;
}

// As torch says it of sizes and strides, where axes of 1 leave it open too.
bool is_channels_last(const ConstTensor& x) {
  const int n = x.ndim();
  if ((n != 4 && n != 5) || x.stride(1) == 0) return false;
  Index least = 0;
  for (int k = 0; k < n; ++k) {
    const int axis = k == 0 ? 1 : k == n - 1 ? 0 : n - k;  // the channels, space from its end, N
    if (x.shape(axis) == 0 || x.stride(axis) < least) return false;
    if (axis == 0 && least == x.stride(1)) return false;
    least = x.stride(axis) * (x.shape(axis) > 1 ? x.shape(axis) : 1);
  }
  return true;
}

}  // namespace

Context context_of(const Owned& x) {
  Context context;
  const auto [type, index] = place_of(x);
  if (type == shim.aoti_torch_device_type_cuda) {
    context.device = Device::kCuda;
    context.device_index = index;
    check(shim.aoti_torch_get_current_cuda_stream(index, &context.stream), "say its stream");
    return context;
  }
  std::uint32_t threads = 0;
  check(shim.torch_get_num_threads(&threads), "say its number of threads");
  context.threads = static_cast<int>(threads < kMostThreads ? threads : kMostThreads);
  return context;
}

void check_place(const Owned& t, const char* name, const Context& where) {
  const auto [type, index] = place_of(t);
  const bool there = where.device == Device::kCuda;
  const bool is_there = type == shim.aoti_torch_device_type_cuda;
  if (is_there != there || (there && index != where.device_index) ||
      (!is_there && type != shim.aoti_torch_device_type_cpu)) {
    throw value_error(std::string(name) + " is on another device than x");
  }
}

New new_like(const ConstTensor& x, bool as_channels_last, const Context& where) {
  if (!as_channels_last || !is_channels_last(x)) return new_contiguous(x, x.dtype(), where);
  Index strides[kMaxDims], stride = 1;
  const int n = x.ndim();
  for (int k = 0; k < n; ++k) {
    const int axis = k == 0 ? 1 : k == n - 1 ? 0 : n - k;
    strides[axis] = stride;
    stride *= x.shape(axis);
  }
  return new_strided(x, strides, x.dtype(), where);
}

New new_contiguous(const ConstTensor& shape, DType dtype, const Context& where) {
  Index strides[kMaxDims], stride = 1;
  strides[0] = 1;
  for (int i = shape.ndim() - 1; i >= 0; --i) {
    strides[i] = stride;
    stride *= shape.shape(i) > 1 ? shape.shape(i) : 1;
  }
  return new_strided(shape, strides, dtype, where);
}

New new_empty(DType dtype, const Context& where) {
  ConstTensor none(nullptr, dtype, 1);
  none.set_dim(0, 0, 1);
  return new_contiguous(none, dtype, where);
}

}  // namespace normcore::python::torch
