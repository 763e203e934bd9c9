// Python values as numbers, bools and axes of C++. Each error names the argument, its value and the
// rule; what a value's own methods raise beside that goes on to the caller.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "normcore/normcore.h"

namespace normcore::python {

namespace py = pybind11;

constexpr const char* kExpectedDtypes = "expected float16, bfloat16, float32 or float64";

// A value in a message: its repr, cut where it is long.
std::string text_of(py::handle value);
[[noreturn]] void bad_type(const char* name, py::handle value, const char* expected);
[[noreturn]] void bad_value(const char* name, py::handle value, const std::string& expected);
// For the error that a conversion to a number has left.
[[noreturn]] void refuse_number(const char* name, py::handle value, const char* expected,
                                const char* range);

inline double as_double(py::handle value, const char* name) {
  if (PyFloat_CheckExact(value.ptr())) return PyFloat_AS_DOUBLE(value.ptr());
  const double v = PyFloat_AsDouble(value.ptr());
  if (v == -1 && PyErr_Occurred()) refuse_number(name, value, "a number", "the range of float64");
  return v;
}

inline Index as_index(py::handle value, const char* name, const char* expected = "an integer") {
  if (PyBool_Check(value.ptr())) bad_type(name, value, expected);
  const Py_ssize_t v = PyNumber_AsSsize_t(value.ptr(), PyExc_OverflowError);
  if (v == -1 && PyErr_Occurred()) refuse_number(name, value, expected, "64 bits");
  return v;
}

// Python's bools and NumPy's, and the integers 0 and 1: a text is true whatever it says.
bool as_bool_slowly(py::handle value, const char* name);
inline bool as_bool(py::handle value, const char* name) {
  if (value.ptr() == Py_True) return true;
  if (value.ptr() == Py_False) return false;
  return as_bool_slowly(value, name);
}

// The second of two words: true.
bool as_one_of(py::handle value, const char* name, const char* first, const char* second);

int as_axis(py::handle value, const char* name, const char* expected = "an integer");
// One axis or a sequence of them; None is all of ndim axes.
Axes as_axes(py::handle value, int ndim);
WindowSizes as_window(py::handle value, const char* name);

}  // namespace normcore::python
