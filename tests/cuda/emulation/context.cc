// In place of cpp/python/context.cc: every call runs on the emulated device, where NumPy's memory
// is the device's.
#include "bind.h"

namespace normcore::python {

Context call_context(const Array&, std::initializer_list<Named>) { return {Device::kCuda}; }

}  // namespace normcore::python
