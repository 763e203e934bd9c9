// Batch statistics over processes, for the calls of a thread.
#include "bind.h"

namespace normcore::python {
namespace {

thread_local Exchange* entered = nullptr;

// Values in memory of a device that are to be summed over processes, during a call of Python's.
struct ValuesThere {
  double* values;
  Index n;
  Context where;

  ConstTensor shape() const {
    ConstTensor s(nullptr, DType::kFloat64, 1);
    s.set_dim(0, n, 1);
    return s;
  }
  std::size_t bytes() const { return static_cast<std::size_t>(n) * sizeof(double); }

  // A copy, as a new array of x's library, where x is.
  py::object array_like(py::handle x) const {
    const Array like(x, "x");
    if (like.where().device == Device::kCpu) return to_numpy();
    Tensor view;
    Result result = like.new_contiguous(shape(), DType::kFloat64, &view);
    cuda::copy(view.data(), values, bytes(), where);
    return result.take();
  }
  py::object to_numpy() const {
    const Index stride = 1;
    py::object array = new_numpy(shape(), numpy_dtype(DType::kFloat64), &stride, sizeof(double));
    cuda::copy(py::detail::array_proxy(array.ptr())->data, values, bytes(), where, /*wait=*/true);
    return array;
  }
  // Takes the sum, which may lie anywhere, in the place of the values.
  void set(py::handle sum) {
    const Array array(sum, "what comm.allreduce returned");
    const Tensor& t = array.tensor();
    if (t.dtype() != DType::kFloat64) {
      throw type_error(std::string("comm.allreduce returned an array of ") + name_of(t.dtype()) +
                       ", expected the sum: float64, as it was given");
    }
    if (t.ndim() != 1 || t.shape(0) != n || (n > 1 && t.stride(0) != 1)) {
      throw value_error("comm.allreduce returned an array of shape " +
                        py::str(py::tuple(sum.attr("shape"))).cast<std::string>() +
                        ", expected the sum: contiguous, of shape (" + std::to_string(n) + ",)");
    }
    const bool there = array.where().device == Device::kCuda;
    if (there) {
      cuda::order_streams(array.where(), where);
      array.use_on(where);
    }
    cuda::copy(values, t.data(), bytes(), where, /*wait=*/!there);  // else it may be gone before
  }
};

// Sums over processes by a Python function, which gets the values as a memoryview and changes them.
// While it is entered the calls of its thread use it.
class PythonExchange final : public Exchange {
 public:
  PythonExchange(py::function sum, py::function sum_there)
      : sum_(std::move(sum)), sum_there_(std::move(sum_there)) {}

  void sum(double* values, Index n) override {
    with_gil([&] {
      PyObject* view =
          py::memoryview::from_buffer(values, {n}, {Index(sizeof(double))}).release().ptr();
      PyObject* result = PyObject_CallOneArg(sum_.ptr(), view);
      Py_DECREF(view);
      if (!result) throw py::error_already_set();
      Py_DECREF(result);
    });
  }
  void sum_on_device(double* values, Index n, int device, void* stream) override {
    with_gil([&] { sum_there_(ValuesThere{values, n, {Device::kCuda, device, stream}}); });
  }
  void enter() {
    outer_ = entered;
    entered = this;
  }
  void exit(const py::args&) { entered = outer_; }

 private:
  py::function sum_, sum_there_;
  Exchange* outer_ = nullptr;
};

}  // namespace

Exchange* current_exchange() { return entered; }

void register_exchange(py::module_& m) {
  py::class_<ValuesThere>(m, "ValuesThere", py::module_local(),
                          "Values on a CUDA device that are to be summed over processes.")
      .def("array_like", &ValuesThere::array_like, py::arg("x"))
      .def("to_numpy", &ValuesThere::to_numpy)
      .def("set", &ValuesThere::set, py::arg("sum"));
  py::class_<PythonExchange>(m, "Exchange", py::module_local(),
                             "Batch statistics over processes, for the calls of a with block.")
      .def(py::init<py::function, py::function>(), py::arg("sum"), py::arg("sum_there"))
      .def("__enter__", &PythonExchange::enter)
      .def("__exit__", &PythonExchange::exit);
}

}  // namespace normcore::python
