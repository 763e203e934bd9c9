// Settings and facts of the process, and what tests and benchmarks need of the kernels.
#include <pybind11/stl.h>

#include "bind.h"
#include "cpu/dispatch.h"
#include "pipeline/run.h"

namespace normcore::python {
namespace {

// All threads copy src to dst, both C-contiguous: the yardstick of the benchmarks.
void copy(py::handle dst_object, py::handle src_object, bool stream) {
  const Array dst = Array::writable(dst_object, "dst");
  const Array src(src_object, "src");
  const Tensor& d = dst.tensor();
  const Tensor& s = src.tensor();
  if (!same_shape(d, s) || d.dtype() != s.dtype() || !d.contiguous() || !s.contiguous()) {
    throw value_error("dst and src must be contiguous, of one shape and dtype");
  }
  unlocked(s.size(), &cpu::parallel_copy, s.data(), d.data(),
           s.size() * static_cast<Index>(size_of(s.dtype())), stream);
}

// Converts between float32 and a 16-bit dtype, both C-contiguous.
void convert(py::handle src_object, py::handle dst_object) {
  const Array src(src_object, "src");
  const Array dst = Array::writable(dst_object, "dst");
  const Tensor& s = src.tensor();
  const Tensor& d = dst.tensor();
  if (!same_shape(d, s) || !d.contiguous() || !s.contiguous()) {
    throw value_error("dst and src must be contiguous, of one shape");
  }
  if (s.dtype() == DType::kFloat64 || d.dtype() == DType::kFloat64) {
    throw type_error("src and dst must be float32 or a 16-bit dtype");
  }
  const cpu::KernelTable& table = cpu::kernels();
  if (d.dtype() == DType::kFloat32) {
    cpu::kernel_set<float>(table, s.dtype())
        .load(s.data(), static_cast<float*>(d.data()), s.size());
  } else if (s.dtype() == DType::kFloat32) {
    cpu::kernel_set<float>(table, d.dtype())
        .store(static_cast<const float*>(s.data()), d.data(), s.size());
  } else {
    throw type_error("src or dst must be float32");
  }
}

// pybind11 would refuse other objects itself, and name no argument.
void set_isa_by_name(py::handle name) {
  const char* text = PyUnicode_Check(name.ptr()) ? PyUnicode_AsUTF8(name.ptr()) : nullptr;
  if (!text) {
    PyErr_Clear();
    bad_type("name", name, "a string of available_isas()");
  }
  set_isa(text);
}

}  // namespace

void register_system(py::module_& m) {
  m.attr("__version__") = NORMCORE_VERSION;
  m.def("methods", &method_names, "Names of the registered methods.");
  m.def("get_isa", &get_isa, "The instruction set in use, such as 'x86-64-v4'.");
  m.def(
      "set_isa", &set_isa_by_name, py::arg("name"),
      "Use another instruction set of available_isas(); 'v3' is short for 'x86-64-v3'. Calls that "
      "run keep the one that they began with.");
  m.def("available_isas", &available_isas, "Instruction sets that this CPU has, best first.");
  m.def("get_num_threads", &get_num_threads,
        "Threads of a large call: what was set, else what OpenMP offers, else all cores.");
  m.def(
      "set_num_threads",
      [](py::handle n) {
        const Index v = as_index(n, "n");
        if (v != static_cast<int>(v)) {
          throw value_error("n is " + std::to_string(v) + ", expected 1 to " +
                            std::to_string(kMostThreads));
        }
        set_num_threads(static_cast<int>(v));
      },
      py::arg("n"), "Use n threads for large calls: 1 to 1024, or as many as can be started.");
  m.def("has_openmp", &has_openmp);
  m.def("compiler", &compiler);
  m.def("cuda_is_built", &cuda::is_built, "Whether this build has the CUDA backend.");
  m.def("cuda_is_available", &cuda::is_available,
        "Whether this build has the CUDA backend and finds a device.");
  m.def(
      "cuda_empty_cache",
      [] {
        const GilReleased released;
        cuda::empty_cache();
      },
      "Give back device memory that results left unused; waits for the devices.");
  // At the end of the interpreter, while owners of arrays can still be dropped.
  py::module_::import("atexit").attr("register")(py::cpp_function([] {
    {
      const GilReleased released;
      cuda::wait_for_kept();
    }
    cuda::drop_what_is_done();
  }));
  m.def("copy", &copy, py::arg("dst"), py::arg("src"), py::arg("stream"));
  m.def("convert", &convert, py::arg("src"), py::arg("dst"));
}

}  // namespace normcore::python
