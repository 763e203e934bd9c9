// Batch statistics over processes, for the calls of a thread.
#include "bind.h"

namespace normcore::python {
namespace {

thread_local Exchange* entered = nullptr;

// Sums over processes by a Python function, which gets the values as a memoryview and changes them.
// While it is entered the calls of its thread use it.
class PythonExchange final : public Exchange {
 public:
  explicit PythonExchange(py::function sum) : sum_(std::move(sum)) {}

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
  void enter() {
    outer_ = entered;
    entered = this;
  }
  void exit(const py::args&) { entered = outer_; }

 private:
  py::function sum_;
  Exchange* outer_ = nullptr;
};

}  // namespace

Exchange* current_exchange() { return entered; }

void register_exchange(py::module_& m) {
  py::class_<PythonExchange>(m, "Exchange", py::module_local(),
                             "Batch statistics over processes, for the calls of a with block.")
      .def(py::init<py::function>(), py::arg("sum"))
      .def("__enter__", &PythonExchange::enter)
      .def("__exit__", &PythonExchange::exit);
}

}  // namespace normcore::python
