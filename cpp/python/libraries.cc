// The libraries that arrays belong to: their tables, current streams and allocators, and what a
// call leaves behind for them.
#include "array.h"
#include "gil.h"
#include "huge_pages.h"

namespace normcore::python {
namespace {

using dlpack::ExchangeApi;

dlpack::DataType dlpack_type(DType t) {
  return {t == DType::kBFloat16 ? dlpack::kBfloat : dlpack::kFloat,
          static_cast<std::uint8_t>(8 * size_of(t)), 1};
}

// Memory from the allocator of a library's table.
std::shared_ptr<void> allocate_by(const ExchangeApi& api, std::int64_t elements, DType dtype,
                                  std::pair<int, int> device) {
  struct Error {
    std::string kind, message;
  } error;
  std::int64_t stride = 1;
  dlpack::DLTensor like{
      nullptr, {device.first, device.second}, 1, dlpack_type(dtype), &elements, &stride, 0};
  dlpack::ManagedVersioned* made = nullptr;
  const int code = api.allocate(&like, &made, &error, [](void* e, const char* kind, const char* m) {
    *static_cast<Error*>(e) = {kind ? kind : "", m ? m : ""};
  });
  if (code != 0 || !made) {
    if (PyErr_Occurred()) throw py::error_already_set();
    py::set_error(error.kind == "MemoryError" ? PyExc_MemoryError : PyExc_RuntimeError,
                  ("the library of x allocates no memory for a result: " + error.message).c_str());
    throw py::error_already_set();
  }
  const std::shared_ptr<dlpack::ManagedVersioned> owner(made, [](dlpack::ManagedVersioned* m) {
    if (m->deleter) m->deleter(m);
  });
  char* data = static_cast<char*>(made->tensor.data);
  return {owner, data ? data + made->tensor.byte_offset : data};
}

PyObject* attribute() {
  static constinit std::atomic<PyObject*> kept{nullptr};
  return interned(ExchangeApi::kAttribute, kept);
}

}  // namespace

bool has_own_exchange_api(py::handle array) {
  PyObject* own = Py_TYPE(array.ptr())->tp_dict;
  return own && PyDict_Contains(own, attribute()) == 1;
}

const ExchangeApi* exchange_api(py::handle array) {
  const auto capsule = py::reinterpret_steal<py::object>(
      PyObject_GetAttr(reinterpret_cast<PyObject*>(Py_TYPE(array.ptr())), attribute()));
  if (!capsule) PyErr_Clear();
  if (!capsule || !PyCapsule_IsValid(capsule.ptr(), ExchangeApi::kName)) return nullptr;
  auto* header =
      static_cast<ExchangeApi::Header*>(PyCapsule_GetPointer(capsule.ptr(), ExchangeApi::kName));
  while (header && header->major != dlpack::ManagedVersioned::kMajor) header = header->older;
  const auto* api = reinterpret_cast<const ExchangeApi*>(header);
  const bool whole =
      api && api->allocate && api->from_object && api->to_object && api->current_stream;
  return whole ? api : nullptr;
}

// ---- memory that a library takes over

Buffer::Buffer(const ConstTensor& shape, DType dtype, const Index* strides, const Context& where,
               std::shared_ptr<const Context> used_on, const ExchangeApi* api)
    : where_(where), used_on_(std::move(used_on)), tensor_(nullptr, dtype, shape.ndim()) {
  for (int i = 0; i < shape.ndim(); ++i) tensor_.set_dim(i, shape.shape(i), 0);
  const Index elements = tensor_.size();
  const std::size_t bytes = static_cast<std::size_t>(elements) * size_of(dtype);
  if (api) memory_ = allocate_by(*api, elements, dtype, device());
  if (memory_) {
    // The library's; in some modes torch makes tensors that have none.
  } else if (where.device == Device::kCuda) {
    const GilReleased released;  // it may wait for the device
    memory_ = cuda::allocate_shared(bytes, where);
  } else {
    memory_ =
        std::shared_ptr<void>(::operator new(bytes + kAlignment, std::align_val_t(kAlignment)),
                              [](void* p) { ::operator delete(p, std::align_val_t(kAlignment)); });
  }
  if (where.device == Device::kCpu) ask_for_huge_pages(memory_.get(), bytes);
  tensor_ = Tensor(memory_.get(), dtype, shape.ndim());
  for (int i = 0; i < shape.ndim(); ++i) tensor_.set_dim(i, shape.shape(i), strides[i]);
}

template <class M>
M* Buffer::exported() const {
  struct Export {
    M managed;
    std::shared_ptr<void> memory;
    std::int64_t shape[kMaxDims], strides[kMaxDims];
  };
  auto* e = new Export{};
  e->memory = memory_;
  for (int i = 0; i < tensor_.ndim(); ++i) {
    e->shape[i] = tensor_.shape(i);
    e->strides[i] = tensor_.stride(i);
  }
  const auto [device_type, device_index] = device();
  M& m = e->managed;
  m.tensor = {memory_.get(),
              {device_type, device_index},
              tensor_.ndim(),
              dlpack_type(tensor_.dtype()),
              e->shape,
              e->strides,
              0};
  m.context = e;
  m.deleter = [](M* managed) { delete static_cast<Export*>(managed->context); };
  if constexpr (std::is_same_v<M, dlpack::ManagedVersioned>) m.version = {M::kMajor, 0};
  return &m;
}

py::capsule Buffer::to_capsule(py::handle stream) const {
  if (where_.device == Device::kCuda) {
    const std::intptr_t consumer = stream.is_none() ? 1 : stream.cast<std::intptr_t>();
    if (consumer != -1) {
      Context then = written_on();
      // DLPack's 1 is the legacy default stream, which the runtime also calls null.
      then.stream = consumer == 1 ? nullptr : reinterpret_cast<void*>(consumer);
      cuda::order_streams(written_on(), then);
    }
  }
  using dlpack::Managed;
  return py::capsule(exported<Managed>(), Managed::kName, [](PyObject* capsule) {
    // Renamed by whoever took it over; otherwise it is still ours.
    if (!PyCapsule_IsValid(capsule, Managed::kName)) return;
    auto* m = static_cast<Managed*>(PyCapsule_GetPointer(capsule, Managed::kName));
    m->deleter(m);
  });
}

py::object Buffer::to_object(const ExchangeApi& api) const {
  auto* managed = exported<dlpack::ManagedVersioned>();
  void* object = nullptr;
  if (api.to_object(managed, &object) != 0 || !object) {
    managed->deleter(managed);
    throw py::error_already_set();
  }
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
}

py::object Result::adopted() {
  std::unique_ptr<Buffer> buffer = std::move(buffer_);
  if (const ExchangeApi* api = exchange_api(array_)) return buffer->to_object(*api);
  static constinit std::atomic<PyObject*> f{nullptr};
  return interop("adopt", f)(array_, py::cast(std::move(buffer)));
}

// The library makes the array, so that its memory is like that of all of its arrays: on which
// stream it is used again, what a graph keeps, what a shortage of memory reclaims is its affair.
Result Array::new_foreign(const ConstTensor& shape, DType dtype, const Index* strides,
                          Tensor* view) const {
  const int n = shape.ndim();
  static constinit std::atomic<PyObject*> f{nullptr};
  py::tuple sizes(n), steps(n);
  for (int i = 0; i < n; ++i) {
    sizes[i] = py::int_(shape.shape(i));
    steps[i] = py::int_(strides[i]);
  }
  constexpr const char* kNames[] = {"float32", "float64", "bfloat16", "float16"};
  static_assert(int(DType::kFloat32) == 0 && int(DType::kFloat64) == 1 &&
                int(DType::kBFloat16) == 2 && int(DType::kFloat16) == 3);
  const py::object own = interop("empty", f)(
      object_, sizes, steps,
      dtype == tensor_.dtype() ? py::none() : py::object(py::str(kNames[int(dtype)])));
  if (!own.is_none()) {
    constexpr const char* name = "the result";
    dlpack::DLTensor lent;
    Array made;
    if (api_ && api_->view_object && exchange_api(own) == api_) {
      if (api_->view_object(own.ptr(), &lent) != 0) throw py::error_already_set();
      made.object_ = own;
      made.where_ = where_;
      made.view_dlpack(lent, {lent.device.type, lent.device.id}, name);
    } else {
      made.read(own, name, /*convert=*/true);
      made.used_on_.reset();  // this array waits for both
    }
    *view = made.tensor();
    if (where_.device == Device::kCpu) {
      ask_for_huge_pages(view->data(), static_cast<std::size_t>(view->size()) * size_of(dtype));
    }
    return Result(own);
  }
  auto buffer = std::make_unique<Buffer>(shape, dtype, strides, where_, used_on_, api_);
  *view = buffer->tensor();
  return Result(object_, std::move(buffer));
}

// ---- streams

// The stream that an array's library works on now. A library that does not say gets the legacy
// default stream, which its own work is not ordered with.
void Array::find_stream(int device) {
  if (api_) {
    void* stream = nullptr;
    if (api_->current_stream(dlpack::kCuda, device, &stream) != 0) throw py::error_already_set();
    return place_on_device(device, stream, true);
  }
  static constinit std::atomic<PyObject*> f{nullptr};
  const py::object stream = interop("current_stream", f)(object_);
  place_on_device(
      device, stream.is_none() ? nullptr : reinterpret_cast<void*>(stream.cast<std::intptr_t>()),
      !stream.is_none());
}

void Array::place_on_device(int device, void* stream, bool shares_stream) {
  where_ = {Device::kCuda, device, stream};
  used_on_ = std::make_shared<Context>(where_);
  shares_stream_ = shares_stream;
}

// A library that works on another stream than the call waits for it there, before it uses the array
// or gives its memory away. Where we know no stream of it, the memory stays ours until the call's
// work is done.
void Array::end_use() noexcept {
  try {
    if (used_on_->stream != where_.stream) cuda::order_streams(*used_on_, where_);
    if (!shares_stream_) cuda::keep_until_done(std::move(owner_), *used_on_);
  } catch (...) {  // the device has failed, which the next call on it says
  }
}

}  // namespace normcore::python
