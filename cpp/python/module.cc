// The Python module normcore._core: raw functions by position; all comfort is in Python.
#include "bind.h"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  namespace py = pybind11;
  // Chooses the instruction set now, so that a CPU which has none fails the import, clearly.
  try {
    normcore::get_isa();
  } catch (const std::exception& e) {
    throw py::import_error(e.what());
  }
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const normcore::type_error& e) {
      py::set_error(PyExc_TypeError, e.what());
    }
  });
  normcore::python::register_functions(m);
  normcore::python::register_adaptive_functions(m);
  normcore::python::register_divisive_functions(m);
  normcore::python::register_exchange(m);
  normcore::python::register_local_functions(m);
  normcore::python::register_reductions(m);
  normcore::python::register_spectral_functions(m);
  normcore::python::register_system(m);
}
