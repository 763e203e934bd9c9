// Where a call runs, from where its arrays lie; and what it does about signals and the end of the
// interpreter.
#include <atomic>
#include <chrono>
#include <thread>

#include "bind.h"
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace normcore::python {
namespace {

std::string device_text(const Context& c) {
  return c.device == Device::kCpu ? "the CPU" : "CUDA device " + std::to_string(c.device_index);
}

// Signals, such as Ctrl-C's, are for the main thread to handle.
class Signals final : public Interrupt {
 public:
  void check() override {
    with_gil([] {
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    });
  }
};
Signals signals;
std::atomic<unsigned long> main_thread{0};

}  // namespace

void note_main_thread() {
  const py::object thread = py::module_::import("threading").attr("main_thread")();
  main_thread = thread.attr("ident").cast<unsigned long>();
#if defined(__unix__) || defined(__APPLE__)
  // In a forked child it is that which forked.
  pthread_atfork(nullptr, nullptr, [] { main_thread = PyThread_get_thread_ident(); });
#endif
}

void wait_for_the_end() noexcept {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

Context call_context(const Array& x, std::initializer_list<Named> others) {
  const Context& where = x.where();
  for (const Named& other : others) {
    if (!other.array) continue;
    const Context& there = other.array.where();
    if (there.device != where.device || there.device_index != where.device_index) {
      throw value_error(std::string(other.name) + " is on " + device_text(there) + ", expected " +
                        device_text(where) + ", where x is");
    }
    if (where.device == Device::kCuda) cuda::order_streams(there, where);
  }
  Context context = where;
  context.exchange = current_exchange();
  if (PyThread_get_thread_ident() == main_thread.load(std::memory_order_relaxed)) {
    context.interrupt = &signals;
  }
  return context;
}

}  // namespace normcore::python
