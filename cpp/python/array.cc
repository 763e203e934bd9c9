// How arrays are read. What a library says of its memory becomes a view in make_view, which
// believes nothing; what a view cannot hold (masks, bits that negate) is refused or resolved here.
#include "array.h"

#include <atomic>

#include "arguments.h"
#include "bind.h"
#include "ops/view.h"

namespace normcore::python {
namespace {

std::string device_text(std::pair<int, int> device) {
  return std::to_string(device.first) + ":" + std::to_string(device.second);
}

// As the numbers of DLPack say it, for objects that do not.
std::string dtype_text(const py::object& array, const dlpack::DataType& t) {
  try {
    if (py::hasattr(array, "dtype")) return py::str(array.attr("dtype")).cast<std::string>();
  } catch (const py::error_already_set&) {
  }
  constexpr const char* kKinds[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  const std::string kind =
      t.code < std::size(kKinds) ? kKinds[t.code] : "code " + std::to_string(t.code) + " of bits ";
  const std::string lanes = t.lanes == 1 ? "" : " in " + std::to_string(t.lanes) + " lanes";
  return kind + std::to_string(t.bits) + lanes;
}

// What f() exports. An exporter that refuses is quoted in an error that names the argument; other
// errors are the caller's own.
template <class F>
py::object exported(const py::object& array, const char* name, F&& f) {
  try {
    return f();
  } catch (const py::error_already_set& e) {
    for (PyObject* kind : {PyExc_BufferError, PyExc_TypeError, PyExc_ValueError, PyExc_RuntimeError,
                           PyExc_AttributeError}) {
      if (e.matches(kind)) interop("refuse_export")(array, name, e.value());
    }
    throw;
  }
}

std::pair<int, int> dlpack_device(const py::object& array, const char* name) {
  const py::object device =
      exported(array, name, [&] { return array.attr("__dlpack_device__")(); });
  try {
    return device.cast<std::pair<int, int>>();
  } catch (const py::cast_error&) {
    bad_type((std::string(name) + ".__dlpack_device__()").c_str(), device, "two integers");
  }
}

// What an attribute or method gave; objects may lack it.
bool is_true(PyObject* answer) {
  if (!answer) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) throw py::error_already_set();
    PyErr_Clear();
    return false;
  }
  return py::reinterpret_steal<py::object>(answer).ptr() == Py_True;
}

// torch's tensors may say that their memory holds the negated values, which DLPack cannot.
bool has_negative_bit(const py::object& array) {
  static constinit std::atomic<PyObject*> name{nullptr};
  return is_true(PyObject_CallMethodNoArgs(array.ptr(), interned("is_neg", name)));
}

bool requires_grad(const py::object& array) {
  static constinit std::atomic<PyObject*> name{nullptr};
  return is_true(PyObject_GetAttr(array.ptr(), interned("requires_grad", name)));
}

}  // namespace

py::object interop(const char* function) {
  return py::module_::import("normcore._interop").attr(function);
}

DType dtype_of(const py::dtype& d, const char* name) {
  constexpr int kHalf = 23, kFloat = 11, kDouble = 12;
  // NumPy's number of ml_dtypes.bfloat16, which is registered at run time; 0 until it is seen.
  static std::atomic<int> bfloat16_number{0};
  const int number = d.num();
  const bool swapped = d.byteorder() == '>';
  if (!swapped) {
    if (number == kFloat) return DType::kFloat32;
    if (number == kDouble) return DType::kFloat64;
    if (number == kHalf) return DType::kFloat16;
    if (number == bfloat16_number.load(std::memory_order_relaxed) && number != 0) {
      return DType::kBFloat16;
    }
    if (number >= 256 && py::str(d.attr("name")).cast<std::string>() == "bfloat16") {
      bfloat16_number = number;
      return DType::kBFloat16;
    }
  }
  throw type_error(std::string(name) + " has dtype " + py::str(d).cast<std::string>() + ", " +
                   kExpectedDtypes + (swapped ? " in native byte order" : ""));
}

void Array::read(py::handle object, const char* name, bool convert) {
  object_ = py::reinterpret_borrow<py::object>(object);
  if (Py_TYPE(object.ptr()) == py::detail::npy_api::get().PyArray_Type_) return read_numpy(name);
  if (py::isinstance<py::array>(object)) {
    interop("refuse_masked")(object, name);
    return read_numpy(name);
  }
  api_ = exchange_api(object);
  if (api_ && has_own_exchange_api(object) && read_exchanged(*api_, name, /*to_write=*/!convert))
    return;
  if (py::isinstance<Buffer>(object)) return read_buffer();
  if (py::hasattr(object, "__dlpack__")) {
    if (requires_grad(object_)) {
      object_ = interop("without_gradient")(object_, name);
      if (api_ && has_own_exchange_api(object_) &&
          read_exchanged(*api_, name, /*to_write=*/!convert)) {
        return;
      }
    }
    if (has_negative_bit(object_)) {
      if (!convert) {
        throw value_error(std::string(name) + " has torch's negative bit set, expected memory " +
                          "that holds its values: call " + name + ".resolve_neg()");
      }
      object_ = object_.attr("resolve_neg")();
    }
    return read_dlpack(name);
  }
  if (py::hasattr(object, "__cuda_array_interface__")) return read_cuda_array_interface(name);
  if (!convert || object.is_none()) {
    throw type_error(std::string(name) + " is " +
                     (object.is_none() ? "None" : Py_TYPE(object.ptr())->tp_name) +
                     ", expected an array");
  }
  object_ = interop("as_array")(object, name);
  read_numpy(name);
}

void Array::read_numpy(const char* name) {
  numpy_ = true;
  const auto& a = reinterpret_cast<const py::array&>(object_);
  dtype_ = a.dtype();
  const DType dtype = dtype_of(dtype_, name);
  const auto* proxy = py::detail::array_proxy(a.ptr());
  tensor_ = make_view<Tensor>(name, proxy->data, dtype, proxy->nd, proxy->dimensions,
                              proxy->strides, /*in_bytes=*/true);
  writable_ = (proxy->flags & py::detail::npy_api::NPY_ARRAY_WRITEABLE_) != 0;
}

// By the table of its class, without Python. False where the library's own __dlpack__ is to be
// asked: by a subclass, which may know more of its memory, and for what the table does not look at
// (gradients, negative bits) or cannot do.
bool Array::read_exchanged(const dlpack::ExchangeApi& api, const char* name, bool to_write) {
  if (requires_grad(object_) || has_negative_bit(object_)) return false;
  const auto failed = [](int code) {
    if (code != 0) PyErr_Clear();
    return code != 0;
  };
  dlpack::DLTensor lent;
  const dlpack::DLTensor* t = &lent;
  writable_ = true;
  // What is lent does not say whether it is read-only.
  if (api.view_object && !to_write) {
    if (failed(api.view_object(object_.ptr(), &lent))) return false;
  } else {
    dlpack::ManagedVersioned* m = nullptr;
    if (failed(api.from_object(object_.ptr(), &m))) return false;
    owner_ = std::shared_ptr<void>(m, [](void* p) {
      auto* managed = static_cast<dlpack::ManagedVersioned*>(p);
      if (managed->deleter) managed->deleter(managed);
    });
    if (m->version.major != dlpack::ManagedVersioned::kMajor) return false;
    writable_ = (m->flags & dlpack::ManagedVersioned::kReadOnly) == 0;
    t = &m->tensor;
  }
  const std::pair<int, int> device(t->device.type, t->device.id);
  if (device.first == dlpack::kCuda && cuda::is_built()) {
    find_stream(device.second);
  } else if (device.first != dlpack::kCpu && device.first != dlpack::kCudaHost) {
    return false;
  }
  view_dlpack(*t, device, name);
  return true;
}

void Array::read_buffer() {
  const auto& buffer = object_.cast<const Buffer&>();
  tensor_ = buffer.tensor();
  where_ = buffer.written_on();
  owner_ = buffer.memory();
  writable_ = true;
}

template <class M>
bool Array::take_capsule(const py::object& capsule, std::pair<int, int> device, const char* name) {
  if (!PyCapsule_IsValid(capsule.ptr(), M::kName)) return false;
  auto* m = static_cast<M*>(PyCapsule_GetPointer(capsule.ptr(), M::kName));
  PyCapsule_SetName(capsule.ptr(), M::kUsed);
  owner_ = std::shared_ptr<void>(m, [](void* p) {
    auto* managed = static_cast<M*>(p);
    if (managed->deleter) managed->deleter(managed);
  });
  writable_ = true;
  if constexpr (std::is_same_v<M, dlpack::ManagedVersioned>) {
    // Of another layout: nothing but the deleter is where we know it.
    if (m->version.major != M::kMajor) {
      throw value_error(std::string(name) + ".__dlpack__() gave a capsule of DLPack version " +
                        std::to_string(m->version.major) + "." + std::to_string(m->version.minor) +
                        ", expected version 1");
    }
    writable_ = (m->flags & M::kReadOnly) == 0;
  }
  view_dlpack(m->tensor, device, name);
  return true;
}

void Array::read_dlpack(const char* name) {
  const std::pair<int, int> device = dlpack_device(object_, name);
  py::dict options;
  if (device.first == dlpack::kCuda && cuda::is_built()) {
    find_stream(device.second);
    // None would mean the legacy default stream, which DLPack calls 1. Its own stream needs no
    // wait.
    options["stream"] = shares_stream_  ? -1
                        : where_.stream ? reinterpret_cast<std::intptr_t>(where_.stream)
                                        : std::intptr_t{1};
  } else if (device.first != dlpack::kCpu && device.first != dlpack::kCudaHost) {
    throw value_error(std::string(name) + " is on device " + device_text(device) +
                      " (DLPack numbers), expected the CPU" +
                      (cuda::is_built() ? " or CUDA" : ": this build has no CUDA backend"));
  }
  const py::object capsule = exported(object_, name, [&]() -> py::object {
    if (where_.device == Device::kCuda) return interop("export")(object_, options["stream"]);
    try {
      return object_.attr("__dlpack__")(**options, py::arg("max_version") = py::make_tuple(1, 0));
    } catch (const py::error_already_set& e) {
      if (!e.matches(PyExc_TypeError)) throw;
    }
    return object_.attr("__dlpack__")(**options);  // an exporter of before version 1
  });
  if (take_capsule<dlpack::ManagedVersioned>(capsule, device, name) ||
      take_capsule<dlpack::Managed>(capsule, device, name)) {
    return;
  }
  const bool used = PyCapsule_IsValid(capsule.ptr(), dlpack::ManagedVersioned::kUsed) ||
                    PyCapsule_IsValid(capsule.ptr(), dlpack::Managed::kUsed);
  throw type_error(std::string(name) + ".__dlpack__() gave " +
                   (used ? "a capsule that somebody has taken over" : text_of(capsule)) +
                   ", expected a new DLPack capsule");
}

void Array::view_dlpack(const dlpack::DLTensor& t, std::pair<int, int> device, const char* name) {
  // The number of a CPU means nothing.
  const std::pair<int, int> given(t.device.type, t.device.id);
  if (given.first != device.first || (where_.device == Device::kCuda && given != device)) {
    throw value_error(std::string(name) + ".__dlpack__() gave memory of device " +
                      device_text(given) + " (DLPack numbers), expected " + device_text(device) +
                      ": what __dlpack_device__() says");
  }
  if (t.byte_offset > std::uint64_t{1} << 57) {
    throw value_error(std::string(name) + ".byte_offset is " + std::to_string(t.byte_offset) +
                      ", expected what memory can hold");
  }
  // An offset makes no memory of a null.
  void* data =
      t.data ? reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(t.data) + t.byte_offset)
             : nullptr;
  if (any_numbers_) return view_numbers(t, data, name);
  DType dtype = DType::kFloat32;
  if (t.dtype.lanes == 1 && t.dtype.code == dlpack::kFloat && t.dtype.bits == 64) {
    dtype = DType::kFloat64;
  } else if (t.dtype.lanes == 1 && t.dtype.code == dlpack::kFloat && t.dtype.bits == 16) {
    dtype = DType::kFloat16;
  } else if (t.dtype.lanes == 1 && t.dtype.code == dlpack::kBfloat && t.dtype.bits == 16) {
    dtype = DType::kBFloat16;
  } else if (t.dtype.lanes != 1 || t.dtype.code != dlpack::kFloat || t.dtype.bits != 32) {
    throw type_error(std::string(name) + " has dtype " + dtype_text(object_, t.dtype) + ", " +
                     kExpectedDtypes);
  }
  tensor_ = make_view<Tensor>(name, data, dtype, t.ndim, t.shape, t.strides);
}

void Array::view_numbers(const dlpack::DLTensor& t, void* data, const char* name) {
  constexpr const char* kNames[] = {"int", "uint", "float", "", "", "", "bool"};
  const int bits = t.dtype.bits;
  const bool is_bool = t.dtype.code == dlpack::kBool;
  const bool known = t.dtype.lanes == 1 && t.dtype.code < std::size(kNames) &&
                     *kNames[t.dtype.code] && (bits == 8 || bits == 16 || bits == 32 || bits == 64);
  if (!known || (is_bool && bits != 8) || (t.dtype.code == dlpack::kFloat && bits == 8)) {
    throw type_error(std::string(name) + " has dtype " + dtype_text(object_, t.dtype) +
                     ", expected bools or real numbers");
  }
  numbers_ = kNames[t.dtype.code] + (is_bool ? "" : std::to_string(bits));
  number_bytes_ = bits / 8;
  first_number_ = data;
  // A dtype of the same size stands for theirs; single bytes need no alignment.
  const DType like = bits == 64 ? DType::kFloat64 : bits == 32 ? DType::kFloat32 : DType::kFloat16;
  if (bits == 8) {
    data = reinterpret_cast<void*>(reinterpret_cast<std::uintptr_t>(data) & ~std::uintptr_t{1});
  }
  tensor_ = make_view<Tensor>(name, data, like, t.ndim, t.shape, t.strides);
}

py::object Array::to_numpy(py::handle object, const char* name) {
  auto a = std::make_unique<Array>();
  a->object_ = py::reinterpret_borrow<py::object>(object);
  a->any_numbers_ = true;
  a->read_dlpack(name);
  if (a->where_.device == Device::kCuda) {
    throw value_error(std::string(name) + " is on a CUDA device, expected the CPU");
  }
  std::vector<py::ssize_t> shape, strides;
  for (int i = 0; i < a->tensor_.ndim(); ++i) {
    shape.push_back(a->tensor_.shape(i));
    strides.push_back(a->tensor_.stride(i) * a->number_bytes_);
  }
  const py::dtype dtype(a->numbers_);
  const void* first = a->first_number_;
  const py::capsule owner(a.release(), [](void* p) { delete static_cast<Array*>(p); });
  return py::array(dtype, shape, strides, first, owner);
}

// Objects that have no __dlpack__, such as Numba's device arrays.
void Array::read_cuda_array_interface(const char* name) {
  if (!cuda::is_built()) {
    throw value_error(std::string(name) +
                      " is a CUDA array, expected a CPU array: this build has no CUDA backend");
  }
  const py::object interface = object_.attr("__cuda_array_interface__");
  const auto refuse = [&] {
    bad_type((std::string(name) + ".__cuda_array_interface__").c_str(), interface,
             "what its specification says");
  };
  std::string type;
  std::uintptr_t address = 0;
  std::intptr_t stream = 0;
  Index shape[kMaxDims], strides[kMaxDims];
  int ndim = 0;
  bool has_strides = false;
  try {
    const auto i = interface.cast<py::dict>();
    const auto given = [&](const char* key) { return i.contains(key) && !i[key].is_none(); };
    type = i["typestr"].cast<std::string>();
    bool read_only = false;
    std::tie(address, read_only) = i["data"].cast<std::pair<std::uintptr_t, bool>>();
    writable_ = !read_only;
    const auto sizes = i["shape"].cast<py::tuple>();
    if (sizes.size() >= static_cast<std::size_t>(kMaxDims)) {
      refuse_ndim(name, static_cast<Index>(sizes.size()));
    }
    ndim = static_cast<int>(sizes.size());
    for (int a = 0; a < ndim; ++a) shape[a] = sizes[a].cast<Index>();
    has_strides = given("strides");
    if (has_strides) {
      const auto steps = i["strides"].cast<py::tuple>();
      if (steps.size() != sizes.size()) refuse();
      for (int a = 0; a < ndim; ++a) strides[a] = steps[a].cast<Index>();
    }
    if (given("mask")) {
      throw value_error(std::string(name) + " has a mask, expected an array without one");
    }
    if (given("stream")) stream = i["stream"].cast<std::intptr_t>();
  } catch (const py::cast_error&) {
    refuse();
  } catch (const py::error_already_set& e) {
    if (e.matches(PyExc_KeyError) || e.matches(PyExc_TypeError)) refuse();
    throw;
  }
  DType dtype = DType::kFloat32;
  if (type == "<f2") {
    dtype = DType::kFloat16;
  } else if (type == "<f8") {
    dtype = DType::kFloat64;
  } else if (type != "<f4") {
    throw type_error(std::string(name) + " has dtype " + type + ", " + kExpectedDtypes);
  }
  tensor_ = make_view<Tensor>(name, reinterpret_cast<void*>(address), dtype, ndim, shape,
                              has_strides ? strides : nullptr, /*in_bytes=*/true);
  place_on_device(cuda::device_of(tensor_.size() > 0 ? tensor_.data() : nullptr),
                  stream == 1 ? nullptr : reinterpret_cast<void*>(stream), false);
  owner_ = std::shared_ptr<void>(py::object(object_).release().ptr(),
                                 [](void* p) { Py_DECREF(static_cast<PyObject*>(p)); });
}

void register_arrays(py::module_& m) {
  py::class_<Buffer>(m, "Buffer", py::module_local(),
                     "Memory of a result, for another library to take over.")
      .def(
          "__dlpack__",
          [](const Buffer& b, py::handle stream, const py::kwargs&) {
            return b.to_capsule(stream);
          },
          py::kw_only(), py::arg("stream") = py::none())
      .def("__dlpack_device__", &Buffer::device)
      .def_property_readonly("stream", [](const Buffer& b) {
        return reinterpret_cast<std::intptr_t>(b.written_on().stream);
      });
  m.def("to_numpy", &Array::to_numpy);
}

}  // namespace normcore::python
