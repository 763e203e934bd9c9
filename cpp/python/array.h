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

// A name of Python's, kept for ever.
inline PyObject* interned(const char* name, std::atomic<PyObject*>& kept) {
  PyObject* p = kept.load(std::memory_order_acquire);
  if (!p) {
    p = PyUnicode_InternFromString(name);
    if (!p) throw py::error_already_set();
    kept.store(p, std::memory_order_release);
  }
  return p;
}

// ---- results of libraries other than NumPy

// The table of an array's class, or of a class that it derives from; null where there is none that
// we know.
const dlpack::ExchangeApi* exchange_api(py::handle array);
// Whether it is that of the class itself.
bool has_own_exchange_api(py::handle array);

// Memory for a result whose library makes no arrays for us. The library takes it over through
// DLPack, on the CPU or on a CUDA device.
class Buffer {
 public:
  // `where`: of the array that the result is like. `used_on`: where the call runs, which is known
  // later; null on the CPU. The memory is that of the table's allocator, if there is one.
  Buffer(const ConstTensor& shape, DType dtype, const Index* strides, const Context& where,
         std::shared_ptr<const Context> used_on, const dlpack::ExchangeApi* api);

  const Tensor& tensor() const { return tensor_; }
  const std::shared_ptr<void>& memory() const { return memory_; }

  std::pair<int, int> device() const {
    return where_.device == Device::kCuda ? std::pair(int(dlpack::kCuda), where_.device_index)
                                          : std::pair(int(dlpack::kCpu), 0);
  }
  // The stream that it was written on.
  const Context& written_on() const { return used_on_ ? *used_on_ : where_; }

  // `stream`: None or a stream of the consumer on which the data is to be ready.
  py::capsule to_capsule(py::handle stream) const;
  // As an array of the library whose table this is, which shares our stream.
  py::object to_object(const dlpack::ExchangeApi& api) const;

 private:
  template <class M>
  M* exported() const;

  static constexpr std::size_t kAlignment = 64;
  Context where_;
  std::shared_ptr<const Context> used_on_;
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

// A result: an array, or memory that becomes an array of another library once it is written.
class Result {
 public:
  Result() = default;  // None
  explicit Result(py::object array) : array_(std::move(array)) {}
  Result(py::object like, std::unique_ptr<Buffer> buffer)
      : array_(std::move(like)), buffer_(std::move(buffer)) {}

  py::object take() {
    if (buffer_) return adopted();
    return array_ ? std::move(array_) : py::none();
  }
  // The memory itself, where it is no array yet, for our own later use.
  py::object take_memory() { return buffer_ ? py::cast(std::move(buffer_)) : take(); }

 private:
  // The library may copy the buffer, so it must have been written.
  py::object adopted();

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
  ~Array() {
    if (used_on_) end_use();
  }

  // None gives an absent one.
  static Array optional(py::handle object, const char* name) {
    return object.is_none() ? Array() : Array(object, name);
  }
  // An array to be written: lists and read-only arrays will not do.
  static Array writable(py::handle object, const char* name) {
    Array a;
    if (object.is_none()) return a;
    if (!py::isinstance<py::array>(object)) {
      static constinit std::atomic<PyObject*> f{nullptr};
      interop("refuse_immutable", f)(object, name);
    }
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
  // The call runs there, on the stream of another array.
  void use_on(const Context& call) const {
    if (used_on_) *used_on_ = call;
  }

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
  bool read_exchanged(const dlpack::ExchangeApi& api, const char* name, bool to_write);
  void read_dlpack(const char* name);
  void read_buffer();
  void place_on_device(int device, void* stream, bool shares_stream);
  void find_stream(int device);
  void end_use() noexcept;
  void read_cuda_array_interface(const char* name);
  template <class M>
  bool take_capsule(const py::object& capsule, std::pair<int, int> device, const char* name);
  void view_dlpack(const dlpack::DLTensor& t, std::pair<int, int> device, const char* name);
  void view_numbers(const dlpack::DLTensor& t, void* data, const char* name);

  // `order`: axes from the outermost in memory.
  Result new_array(const ConstTensor& shape, DType dtype, const int* order, Tensor* view) const {
    const int n = shape.ndim();
    Index strides[kMaxDims];
    strides[0] = 1;  // of no axes: GCC warns of what is handed over unset
    Index stride = 1;
    for (int i = n - 1; i >= 0; --i) {
      strides[order[i]] = stride;
      stride *= std::max<Index>(1, shape.shape(order[i]));
    }
    if (!numpy_) return new_foreign(shape, dtype, strides, view);
    const py::dtype d = dtype == tensor_.dtype() ? dtype_ : numpy_dtype(dtype);
    auto array = new_numpy(shape, d, strides, static_cast<Index>(size_of(dtype)));
    *view = Tensor(py::detail::array_proxy(array.ptr())->data, dtype, n);
    for (int i = 0; i < n; ++i) view->set_dim(i, shape.shape(i), strides[i]);
    return Result(std::move(array));
  }
  // Of a library other than NumPy.
  Result new_foreign(const ConstTensor& shape, DType dtype, const Index* strides,
                     Tensor* view) const;

  py::object object_;
  py::dtype dtype_;
  Tensor tensor_;
  Context where_;
  std::shared_ptr<void> owner_;
  const dlpack::ExchangeApi* api_ = nullptr;  // of its library
  // On a device: where the call runs that uses it, and whether its library gives memory back on the
  // stream of where_.
  std::shared_ptr<Context> used_on_;
  bool shares_stream_ = false;
  bool numpy_ = false;
  bool writable_ = false;
  // Of to_numpy alone, whose elements tensor_ cannot name: it has their shape and strides.
  bool any_numbers_ = false;
  std::string numbers_;  // NumPy's name of the dtype
  Index number_bytes_ = 0;
  void* first_number_ = nullptr;
};

}  // namespace normcore::python
