// The signatures of the methods: what the layers, the tests and the benchmarks read.
#include "bind.h"
#include "ops/describe.h"

namespace normcore::python {

void register_signatures(py::module_& m) {
  m.def(
      "signatures", [] { return py::module_::import("json").attr("loads")(describe_signatures()); },
      "What each registered method takes and gives.");
}

}  // namespace normcore::python
