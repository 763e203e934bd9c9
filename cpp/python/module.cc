// The Python module normcore._core: raw functions by position; all comfort is in Python.
#include "bind.h"

// What PyInit__core, below, lets in.
PYBIND11_MODULE(_core_of_main, m, pybind11::mod_gil_not_used()) {
  namespace py = pybind11;
  // Chooses the instruction set now, so that a CPU which has none fails the import, clearly.
  try {
    normcore::get_isa();
  } catch (const std::exception& e) {
    throw py::import_error(e.what());
  }
  normcore::python::note_main_thread();
  // pybind11 looks NumPy's functions up once, and lets go of the interpreter lock for it: now,
  // while no daemon thread can end on the way (gil.h).
  py::detail::npy_api::get();
  py::register_exception_translator([](std::exception_ptr p) {
    try {
      if (p) std::rethrow_exception(p);
    } catch (const normcore::type_error& e) {
      py::set_error(PyExc_TypeError, e.what());
    }
  });
  normcore::python::register_arrays(m);
  normcore::python::register_divisive_functions(m);
  normcore::python::register_exchange(m);
  normcore::python::register_jax(m);
  normcore::python::register_local_functions(m);
  normcore::python::register_methods(m);
  normcore::python::register_reductions(m);
  normcore::python::register_signatures(m);
  normcore::python::register_spectral_functions(m);
  normcore::python::register_system(m);
  normcore::python::register_torch(m);
}

// The module's state, and pybind11's, is that of the process. In other interpreters than the main
// one it would share objects with them, or hang on the way: they are refused before anything else.
PyMODINIT_FUNC PyInit__core() {
  if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
    PyErr_SetString(PyExc_ImportError,
                    "normcore._core runs in the main interpreter only, not in a subinterpreter");
    return nullptr;
  }
  return PyInit__core_of_main();
}
