// In place of cpp/python/context.cc: where NumPy's memory is that of the emulated device, a call on
// its arrays runs there. For all others it is the same.
#define call_context context_of_arrays
#include "../../../cpp/python/context.cc"
#undef call_context

#include <cuda_runtime.h>

namespace normcore::python {

Context call_context(const Array& x, std::initializer_list<Named> others) {
  Context context = context_of_arrays(x, others);
  context.device = Device::kCuda;
  return context;
}

}  // namespace normcore::python

// For tests, which find them by ctypes.
extern "C" {
[[gnu::visibility("default")]] void emulated_record(int on) {
  emulation::host.calls.clear();
  emulation::host.record = on != 0;
}
// Null where there are not so many.
[[gnu::visibility("default")]] const char* emulated_call(int i) {
  const auto& calls = emulation::host.calls;
  return i < int(calls.size()) ? calls[std::size_t(i)].c_str() : nullptr;
}
[[gnu::visibility("default")]] void emulated_capture(void* stream) {
  emulation::host.capturing = stream;
}
[[gnu::visibility("default")]] void emulated_busy(int busy) { emulation::host.busy = busy != 0; }
}
