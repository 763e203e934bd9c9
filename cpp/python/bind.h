// What the sources of the Python module share: where a call runs, running it without the
// interpreter lock, and the parts of the module.
#pragma once

#include <pybind11/pybind11.h>

#include <initializer_list>
#include <optional>
#include <type_traits>

#include "arguments.h"
#include "array.h"
#include "gil.h"
#include "masks.h"

namespace normcore::python {

void register_arrays(py::module_& m);
void register_divisive_functions(py::module_& m);
void register_exchange(py::module_& m);
void register_jax(py::module_& m);
void register_local_functions(py::module_& m);
void register_methods(py::module_& m);
void register_reductions(py::module_& m);
void register_signatures(py::module_& m);
void register_spectral_functions(py::module_& m);
void register_system(py::module_& m);
void register_torch(py::module_& m);

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

// What asks about signals for a call of this thread; null but in the main thread.
Interrupt* current_signals();

// What the thread has entered, or null.
Exchange* current_exchange();

// Kernels run without the interpreter lock where they take longer than letting go of it. Nobody but
// `unlocked` can let go of it.
class ReleaseGil {
  explicit ReleaseGil(Index elements) {
    if (elements > 4096) release_.emplace();
  }
  template <class R, class... Parameters>
  friend R unlocked(Index elements, R (*op)(Parameters...),
                    std::type_identity_t<Parameters>... arguments);

  std::optional<GilReleased> release_;
};

// op(arguments...) without the lock, for x of so many elements. The arguments become what op takes
// before this function is entered, in its caller's hands and under the lock, and an operation of
// the library knows nothing of Python: there is nothing here to touch an object with.
template <class R, class... Parameters>
R unlocked(Index elements, R (*op)(Parameters...), std::type_identity_t<Parameters>... arguments) {
  static_assert(!(std::is_base_of_v<py::handle, std::remove_cvref_t<Parameters>> || ...) &&
                    !(std::is_same_v<Array, std::remove_cvref_t<Parameters>> || ...),
                "an operation of the library, which takes no Python objects");
  const ReleaseGil release(elements);
  return op(static_cast<Parameters>(arguments)...);
}

}  // namespace normcore::python
