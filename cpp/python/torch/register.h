// What the sources of torch's operators share: their registration, and how their kernels run.
#pragma once

#include "../bind.h"
#include "../shapes.h"
#include "tensors.h"

namespace normcore::python::torch {

// The operators normcore::*, with kernels on the CPU and, in builds with the CUDA backend, there.
class Library {
 public:
  Library();
  // `name`: with its overload, as "layer_norm.saved".
  void define(const std::string& name, const std::string& schema, Kernel kernel);

 private:
  TorchLibraryOpaque* definitions_ = nullptr;
  TorchLibraryOpaque* kernels_[2] = {};
};

// So many results in a schema.
inline std::string tensors(std::size_t n) {
  std::string text = "(Tensor";
  for (std::size_t i = 1; i < n; ++i) text += ", Tensor";
  return text + ")";
}

void define_methods(Library& library);
void define_special(Library& library);

// What a kernel does once it has its arguments. torch hands std::invalid_argument to Python as a
// ValueError, and knows pybind11's TypeError.
template <class F>
void run(F&& f) {
  try {
    f();
  } catch (const type_error& e) {
    throw py::type_error(e.what());
  }
}

// Calls f with the exchange that the thread has entered, which is Python's: torch has let go of the
// interpreter lock in its own way.
template <class F>
void in_processes(Context& context, F&& f) {
  context.exchange = current_exchange();
  if (!context.exchange) return f();
  const py::gil_scoped_acquire lock;
  const GilReleased released;
  f();
}

// Pairs of mean and variance for backward: `shape` is that of one value of each pair.
inline New new_pairs(const ConstTensor& shape, const Context& where) {
  return new_contiguous(pairs_of(shape), DType::kFloat64, where);
}

}  // namespace normcore::python::torch
