// Python arrays as views: NumPy arrays directly, anything with __dlpack__ through DLPack, lists as
// NumPy reads them (array.cc); and new arrays of the same library for results.
#pragma once

#include <pybind11/numpy.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cuda/device_buffer.h"
#include "dlpack.h"
#include "normcore/normcore.h"

namespace normcore::python {

namespace py = pybind11;

DType dtype_of(const py::dtype& d, const char* name);

// A function of normcore._interop, for what is rare.
py::object interop(const char* function);

// ---- results of libraries other than NumPy

// Memory that other libraries take over through DLPack, on the CPU or on a CUDA device.
class Buffer {
 public:
  Buffer(const ConstTensor& like_shape, DType dtype, const Context& where)
      : where_(where), tensor_(nullptr, dtype, like_shape.ndim()) {
    for (int i = 0; i < like_shape.ndim(); ++i) tensor_.set_dim(i, like_shape.shape(i), 0);
    const std::size_t bytes = static_cast<std::size_t>(tensor_.size()) * size_of(dtype);
    if (where.device == Device::kCuda) {
      memory_ = cuda::allocate_shared(bytes, where);
    } else {
      memory_ = std::shared_ptr<void>(
          ::operator new(bytes + kAlignment, std::align_val_t(kAlignment)),
          [](void* p) { ::operator delete(p, std::align_val_t(kAlignment)); });
    }
    Tensor view(memory_.get(), dtype, like_shape.ndim());
    for (int i = 0; i < like_shape.ndim(); ++i) view.set_dim(i, like_shape.shape(i), 0);
    tensor_ = view;
  }
  Tensor& tensor() { return tensor_; }

  std::pair<int, int> device() const {
    return where_.device == Device::kCuda ? std::pair(int(dlpack::kCuda), where_.device_index)
                                          : std::pair(int(dlpack::kCpu), 0);
  }

  // The stream on which it was written.
  std::intptr_t stream() const { return reinterpret_cast<std::intptr_t>(where_.stream); }

  // `stream`: None or a stream of the consumer on which the data is to be ready.
  py::capsule to_capsule(py::handle stream) const {
    if (where_.device == Device::kCuda) {
      const std::intptr_t consumer = stream.is_none() ? 1 : stream.cast<std::intptr_t>();
      if (consumer != -1) {
        Context then = where_;
        // DLPack's 1 is the legacy default stream, which the runtime also calls null.
        then.stream = consumer == 1 ? nullptr : reinterpret_cast<void*>(consumer);
        cuda::order_streams(where_, then);
      }
    }
    struct Export {
      dlpack::Managed managed;
      std::shared_ptr<void> memory;
      std::int64_t shape[kMaxDims], strides[kMaxDims];
    };
    auto* e = new Export;
    e->memory = memory_;
    for (int i = 0; i < tensor_.ndim(); ++i) {
      e->shape[i] = tensor_.shape(i);
      e->strides[i] = tensor_.stride(i);
    }
    const DType t = tensor_.dtype();
    const dlpack::DataType type{t == DType::kBFloat16 ? dlpack::kBfloat : dlpack::kFloat,
                                static_cast<std::uint8_t>(8 * size_of(t)), 1};
    const auto [device_type, device_index] = device();
    e->managed = {
        {memory_.get(), {device_type, device_index}, tensor_.ndim(), type, e->shape, e->strides, 0},
        e,
        [](dlpack::Managed* m) { delete static_cast<Export*>(m->context); }};
    return py::capsule(&e->managed, dlpack::Managed::kName, [](PyObject* capsule) {
      // Renamed by whoever took it over; otherwise it is still ours.
      if (!PyCapsule_IsValid(capsule, dlpack::Managed::kName)) return;
      auto* m =
          static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule, dlpack::Managed::kName));
      m->deleter(m);
    });
  }

 private:
  static constexpr std::size_t kAlignment = 64;
  Context where_;
  Tensor tensor_;
  std::shared_ptr<void> memory_;
};

// The same, kept for ever. Two threads may both find it: waiting for each other would let go of the
// interpreter lock (gil.h).
inline py::handle interop(const char* function, std::atomic<PyObject*>& kept) {
  PyObject* f = kept.load(std::memory_order_acquire);
  if (!f) {
    f = interop(function).release().ptr();
    kept.store(f, std::memory_order_release);
  }
  return f;
}

// Turns a Buffer into an array of the library that `like` is of. The library may copy the buffer,
// so it must have been written.
inline py::object adopt(py::handle like, std::unique_ptr<Buffer> buffer) {
  static constinit std::atomic<PyObject*> f{nullptr};
  return interop("adopt", f)(like, py::cast(std::move(buffer)));
}

// The stream that an array's library works on now.
inline void* current_stream(py::handle array) {
  static constinit std::atomic<PyObject*> f{nullptr};
  return reinterpret_cast<void*>(interop("current_stream", f)(array).cast<std::intptr_t>());
}

// A result: a NumPy array, or memory that becomes an array of another library once it is written.
class Result {
 public:
  Result() = default;  // None
  explicit Result(py::object array) : array_(std::move(array)) {}
  Result(py::object like, std::unique_ptr<Buffer> buffer)
      : array_(std::move(like)), buffer_(std::move(buffer)) {}

  py::object take() {
    if (buffer_) return adopt(array_, std::move(buffer_));
    return array_ ? std::move(array_) : py::none();
  }
  // The memory itself, for our own later use.
  py::object take_buffer() { return py::cast(std::move(buffer_)); }

 private:
  py::object array_;  // the result, or with a buffer what it should be like
  std::unique_ptr<Buffer> buffer_;
};

// A NumPy array of its own memory; strides in elements.
inline py::object new_numpy(const ConstTensor& shape, py::dtype dtype, const Index* strides,
                            Index element) {
  Py_intptr_t dims[kMaxDims], bytes[kMaxDims];
  for (int i = 0; i < shape.ndim(); ++i) {
    dims[i] = shape.shape(i);
    bytes[i] = strides[i] * element;
  }
  const auto& api = py::detail::npy_api::get();
  PyObject* p = api.PyArray_NewFromDescr_(api.PyArray_Type_, dtype.release().ptr(), shape.ndim(),
                                          dims, bytes, nullptr, 0, nullptr);
  if (!p) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(p);
}
inline py::dtype numpy_dtype(DType dtype) {
  return dtype == DType::kFloat64 ? py::dtype::of<double>() : py::dtype::of<float>();
}

// ---- arguments

class Array {
 public:
  Array() = default;
  // Any array or what NumPy makes of `object`.
  Array(py::handle object, const char* name) { read(object, name, /*convert=*/true); }
  Array(Array&&) = default;
  Array& operator=(Array&&) = default;

  // None gives an absent one.
  static Array optional(py::handle object, const char* name) {
    return object.is_none() ? Array() : Array(object, name);
  }
  // An array to be written: lists and read-only arrays will not do.
  static Array writable(py::handle object, const char* name) {
    Array a;
    if (object.is_none()) return a;
    if (!py::isinstance<py::array>(object)) interop("refuse_immutable")(object, name);
    a.read(object, name, /*convert=*/false);
    if (!a.writable_) {
      throw value_error(std::string(name) + " is read-only, expected a writeable array");
    }
    return a;
  }

  // What a library exports by DLPack as a NumPy array over its memory: also integers and bools,
  // which only masks may be.
  static py::object to_numpy(py::handle object, const char* name);

  explicit operator bool() const { return static_cast<bool>(tensor_); }
  const Tensor& tensor() const { return tensor_; }
  // To read. GCC inlines the copy as `rep movs`, whose start costs a small call more than a call.
  [[gnu::noinline]] ConstTensor view() const { return tensor_; }
  py::handle object() const { return object_; }
  bool numpy() const { return numpy_; }
  // The device that it lies on and the stream that it is ready on.
  const Context& where() const { return where_; }

  // A new array of this one's library: its shape and dtype, and its order in memory.
  Result new_like(Tensor* view) const {
    int order[kMaxDims];
    const int n = tensor_.ndim();
    for (int i = 0; i < n; ++i) {
      int at = i;
      const Index s = std::abs(tensor_.stride(i));
      while (at > 0 && tensor_.shape(i) > 1 && s > std::abs(tensor_.stride(order[at - 1])) &&
             tensor_.stride(order[at - 1]) != 0) {
        order[at] = order[at - 1];
        --at;
      }
      order[at] = i;
    }
    return new_array(tensor_, tensor_.dtype(), order, view);
  }
  // C-contiguous, of another shape or dtype.
  Result new_contiguous(const ConstTensor& shape, DType dtype, Tensor* view) const {
    int order[kMaxDims];
    for (int i = 0; i < shape.ndim(); ++i) order[i] = i;
    return new_array(shape, dtype, order, view);
  }

 private:
  // What is to be written is not converted.
  void read(py::handle object, const char* name, bool convert);
  void read_numpy(const char* name);
  void read_dlpack(const char* name);
  void read_cuda_array_interface(const char* name);
  template <class M>
  bool take_capsule(const py::object& capsule, std::pair<int, int> device, const char* name);
  void view_dlpack(const dlpack::DLTensor& t, std::pair<int, int> device, const char* name);
  void view_numbers(const dlpack::DLTensor& t, void* data, const char* name);

  // `order`: axes from the outermost in memory.
  Result new_array(const ConstTensor& shape, DType dtype, const int* order, Tensor* view) const {
    const int n = shape.ndim();
    Index strides[kMaxDims];
    Index stride = 1;
    for (int i = n - 1; i >= 0; --i) {
      strides[order[i]] = stride;
      stride *= std::max<Index>(1, shape.shape(order[i]));
    }
    if (!numpy_) {
      auto buffer = std::make_unique<Buffer>(shape, dtype, where_);
      for (int i = 0; i < n; ++i) buffer->tensor().set_dim(i, shape.shape(i), strides[i]);
      *view = buffer->tensor();
      return Result(object_, std::move(buffer));
    }
    const py::dtype d = dtype == tensor_.dtype() ? dtype_ : numpy_dtype(dtype);
    auto array = new_numpy(shape, d, strides, static_cast<Index>(size_of(dtype)));
    *view = Tensor(py::detail::array_proxy(array.ptr())->data, dtype, n);
    for (int i = 0; i < n; ++i) view->set_dim(i, shape.shape(i), strides[i]);
    return Result(std::move(array));
  }

  py::object object_;
  py::dtype dtype_;
  Tensor tensor_;
  Context where_;
  std::shared_ptr<void> owner_;
  bool numpy_ = false;
  bool writable_ = false;
  // Of to_numpy alone, whose elements tensor_ cannot name: it has their shape and strides.
  bool any_numbers_ = false;
  std::string numbers_;  // NumPy's name of the dtype
  Index number_bytes_ = 0;
  void* first_number_ = nullptr;
};

}  // namespace normcore::python
