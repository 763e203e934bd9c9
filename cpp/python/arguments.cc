#include "arguments.h"

#include <climits>

namespace normcore::python {
namespace {

constexpr std::size_t kLongestText = 100;

constexpr const char* kIntegers = "an integer or a sequence of integers";

// The items of a sequence as a tuple of our own, which neither another thread nor the items'
// methods can change; null for what is no sequence. No more of them than a view has axes.
py::object items_of(py::handle value, const char* name) {
  if (!PySequence_Check(value.ptr()) || PyUnicode_Check(value.ptr()) ||
      PyBytes_Check(value.ptr())) {
    return {};
  }
  const Py_ssize_t size = PySequence_Size(value.ptr());
  if (size > kMaxDims) {
    throw value_error(std::string(name) + " has " + std::to_string(size) +
                      " items, expected at most " + std::to_string(kMaxDims));
  }
  PyObject* items = size < 0 ? nullptr : PySequence_Tuple(value.ptr());
  if (items && PyTuple_GET_SIZE(items) <= kMaxDims) {
    return py::reinterpret_steal<py::object>(items);
  }
  Py_XDECREF(items);
  // Such as an array without axes, which is a number, or a length that is none.
  if (PyErr_Occurred() && !PyErr_ExceptionMatches(PyExc_TypeError) &&
      !PyErr_ExceptionMatches(PyExc_ValueError)) {
    throw py::error_already_set();
  }
  PyErr_Clear();
  return {};
}

}  // namespace

std::string text_of(py::handle value) {
  const auto repr = py::reinterpret_steal<py::object>(PyObject_Repr(value.ptr()));
  const char* text = repr ? PyUnicode_AsUTF8(repr.ptr()) : nullptr;
  if (!text) {
    // An integer of too many digits, or a __repr__ that raises.
    PyErr_Clear();
    return std::string("<") + Py_TYPE(value.ptr())->tp_name + ">";
  }
  std::string line;
  for (const char* c = text; *c; ++c) {
    const bool space = *c == ' ' || *c == '\n';
    if (!space || line.empty() || line.back() != ' ') line += space ? ' ' : *c;
    // Not within a character of several bytes.
    if (line.size() >= kLongestText && (c[1] & 0xC0) != 0x80 && c[1]) return line + "...";
  }
  return line;
}

void bad_type(const char* name, py::handle value, const char* expected) {
  throw type_error(std::string(name) + " is " + text_of(value) + ", expected " + expected);
}

void bad_value(const char* name, py::handle value, const std::string& expected) {
  throw value_error(std::string(name) + " is " + text_of(value) + ", expected " + expected);
}

void refuse_number(const char* name, py::handle value, const char* expected, const char* range) {
  if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
    PyErr_Clear();
    bad_value(name, value, std::string(expected) + " within " + range);
  }
  if (!PyErr_ExceptionMatches(PyExc_TypeError)) throw py::error_already_set();
  PyErr_Clear();
  bad_type(name, value, expected);
}

bool as_bool_slowly(py::handle value, const char* name) {
  if (py::isinstance(value, py::module_::import("numpy").attr("bool_"))) {
    return PyObject_IsTrue(value.ptr()) == 1;
  }
  if (PyIndex_Check(value.ptr())) {
    const Py_ssize_t v = PyNumber_AsSsize_t(value.ptr(), nullptr);  // clipped
    if (v == 0 || v == 1) return v == 1;
    PyErr_Clear();
  }
  bad_type(name, value, "True or False");
}

bool as_one_of(py::handle value, const char* name, const char* first, const char* second) {
  const std::string expected = std::string("'") + first + "' or '" + second + "'";
  if (!PyUnicode_Check(value.ptr())) bad_type(name, value, expected.c_str());
  const bool is_second = PyUnicode_CompareWithASCIIString(value.ptr(), second) == 0;
  if (!is_second && PyUnicode_CompareWithASCIIString(value.ptr(), first) != 0) {
    bad_value(name, value, expected);
  }
  return is_second;
}

int as_axis(py::handle value, const char* name, const char* expected) {
  const Index v = as_index(value, name, expected);
  if (v < INT_MIN || v > INT_MAX) {
    bad_value(name, value,
              std::to_string(1 - kMaxDims) + " to " + std::to_string(kMaxDims - 2) + " at most");
  }
  return static_cast<int>(v);
}

Axes as_axes(py::handle value, int ndim) {
  if (PyLong_CheckExact(value.ptr())) return Axes{as_axis(value, "axis", kIntegers)};
  if (value.is_none()) {
    Axes all{};
    while (all.count < ndim) {
      all.values[all.count] = all.count;
      ++all.count;
    }
    return all;
  }
  const py::object items = items_of(value, "axis");
  if (!items) return Axes{as_axis(value, "axis", kIntegers)};
  Axes axes{};
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items.ptr()); ++i) {
    axes.values[axes.count++] = as_axis(PyTuple_GET_ITEM(items.ptr(), i), "axis", kIntegers);
  }
  return axes;
}

WindowSizes as_window(py::handle value, const char* name) {
  const py::object items = items_of(value, name);
  if (!items) return {as_index(value, name, kIntegers)};
  WindowSizes sizes{};
  for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(items.ptr()); ++i) {
    sizes.values[sizes.count++] = as_index(PyTuple_GET_ITEM(items.ptr(), i), name, kIntegers);
  }
  return sizes;
}

}  // namespace normcore::python
