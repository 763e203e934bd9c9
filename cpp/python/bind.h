// What the sources of the Python module share: reading of arguments, and the parts of the module.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>

#include "array.h"
#include "gil.h"

namespace normcore::python {

void register_functions(py::module_& m);
void register_adaptive_functions(py::module_& m);
void register_divisive_functions(py::module_& m);
void register_exchange(py::module_& m);
void register_local_functions(py::module_& m);
void register_reductions(py::module_& m);
void register_spectral_functions(py::module_& m);
void register_system(py::module_& m);

// An argument of a call beside x.
struct Named {
  const char* name;
  const Array& array;
};
// Where a call on x runs: all arrays must lie there, and are ready on its stream; with the exchange
// that the thread has entered. In the main thread signals interrupt it.
Context call_context(const Array& x, std::initializer_list<Named> others);

// Once, at the start.
void note_main_thread();

// What the thread has entered, or null.
Exchange* current_exchange();

// Kernels run without the interpreter lock where they take longer than letting go of it.
class ReleaseGil {
 public:
  explicit ReleaseGil(Index elements) {
    if (elements > 4096) release_.emplace();
  }

 private:
  std::optional<GilReleased> release_;
};

[[noreturn]] inline void bad_type(const char* name, py::handle value, const char* expected) {
  throw type_error(std::string(name) + " is " + py::repr(value).cast<std::string>() +
                   ", expected " + expected);
}

inline double as_double(py::handle value, const char* name) {
  if (PyFloat_CheckExact(value.ptr())) return PyFloat_AS_DOUBLE(value.ptr());
  const double v = PyFloat_AsDouble(value.ptr());
  if (v == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    bad_type(name, value, "a number");
  }
  return v;
}

inline Index as_index(py::handle value, const char* name, const char* expected = "an integer") {
  if (PyBool_Check(value.ptr())) bad_type(name, value, expected);
  const Py_ssize_t v = PyNumber_AsSsize_t(value.ptr(), PyExc_OverflowError);
  if (v == -1 && PyErr_Occurred()) {
    PyErr_Clear();
    bad_type(name, value, expected);
  }
  return v;
}

inline bool as_bool(py::handle value, const char* name) {
  const int v = PyObject_IsTrue(value.ptr());
  if (v < 0) {
    PyErr_Clear();
    bad_type(name, value, "a bool");
  }
  return v != 0;
}

inline int as_axis(py::handle value, const char* name) {
  const Index v = as_index(value, name, "an integer or a tuple of integers");
  return static_cast<int>(std::clamp<Index>(v, -1000000, 1000000));
}

inline Axes as_axes(py::handle value) {
  if (PyLong_CheckExact(value.ptr())) return Axes{as_axis(value, "axis")};
  if (!PyTuple_Check(value.ptr()) && !PyList_Check(value.ptr())) {
    return Axes{as_axis(value, "axis")};
  }
  Axes axes{};
  const auto sequence = py::reinterpret_borrow<py::sequence>(value);
  if (sequence.size() > static_cast<std::size_t>(kMaxDims)) {
    throw value_error("axis names " + std::to_string(sequence.size()) + " axes, expected at most " +
                      std::to_string(kMaxDims));
  }
  for (const py::handle item : sequence) axes.values[axes.count++] = as_axis(item, "axis");
  return axes;
}

}  // namespace normcore::python
