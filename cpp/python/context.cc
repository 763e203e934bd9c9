// Where a call runs, from where its arrays lie.
#include "bind.h"

namespace normcore::python {
namespace {

std::string device_text(const Context& c) {
  return c.device == Device::kCpu ? "the CPU" : "CUDA device " + std::to_string(c.device_index);
}

}  // namespace

thread_local Exchange* current_exchange = nullptr;

Context call_context(const Array& x, std::initializer_list<Named> others) {
  const Context& where = x.where();
  for (const Named& other : others) {
    if (!other.array) continue;
    const Context& there = other.array.where();
    if (there.device != where.device || there.device_index != where.device_index) {
      throw value_error(std::string(other.name) + " is on " + device_text(there) + ", expected " +
                        device_text(where) + ", where x is");
    }
    if (where.device == Device::kCuda) cuda::order_streams(there, where);
  }
  Context context = where;
  context.exchange = current_exchange;
  return context;
}

namespace {

// Sums over processes by a Python function, which gets the values as a memoryview and changes them.
// While it is entered the calls of its thread use it.
class PythonExchange final : public Exchange {
 public:
  explicit PythonExchange(py::function sum) : sum_(std::move(sum)) {}

  void sum(double* values, Index n) override {
    const py::gil_scoped_acquire gil;
    sum_(py::memoryview::from_buffer(values, {n}, {Index(sizeof(double))}));
  }
  void enter() {
    outer_ = current_exchange;
    current_exchange = this;
  }
  void exit(const py::args&) { current_exchange = outer_; }

 private:
  py::function sum_;
  Exchange* outer_ = nullptr;
};

}  // namespace

void register_context(py::module_& m) {
  py::class_<PythonExchange>(m, "Exchange", py::module_local(),
                             "Batch statistics over processes, for the calls of a with block.")
      .def(py::init<py::function>(), py::arg("sum"))
      .def("__enter__", &PythonExchange::enter)
      .def("__exit__", &PythonExchange::exit);
}

}  // namespace normcore::python
