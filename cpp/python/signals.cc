// What calls do about signals and the end of the interpreter.
#include <atomic>
#include <chrono>
#include <thread>

#include "bind.h"
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace normcore::python {
namespace {

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

Interrupt* current_signals() {
  const bool main = PyThread_get_thread_ident() == main_thread.load(std::memory_order_relaxed);
  return main ? &signals : nullptr;
}

void wait_for_the_end() noexcept {
  for (;;) std::this_thread::sleep_for(std::chrono::hours(1));
}

}  // namespace normcore::python
