// The interpreter lock around the calls of the library.
//
// Where the interpreter ends while a daemon thread has let go of the lock, Python before 3.14 ends
// that thread when it asks for the lock again, by unwinding its stack. No destructor may let that
// pass, so like in later versions the thread waits for the end of the process.
#pragma once

#include <pybind11/pybind11.h>

#include <exception>

namespace normcore::python {

[[noreturn]] void wait_for_the_end() noexcept;

// The thread has no lock while this lives.
class GilReleased {
 public:
  GilReleased() : state_(PyEval_SaveThread()) {}
  ~GilReleased() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // nothing but the unwinding of a thread that ends
      wait_for_the_end();
    }
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

 private:
  PyThreadState* state_;
};

// Runs f with the lock, in a call that may have let go of it. Its exceptions pass.
template <class F>
void with_gil(F&& f) {
  struct Lock {
    PyGILState_STATE state = PyGILState_Ensure();
    ~Lock() { PyGILState_Release(state); }
  };
  try {
    const Lock lock;
    try {
      f();
    } catch (const std::exception&) {
      throw;
    } catch (...) {  // while it has the lock no more, which is not to be given back then
      wait_for_the_end();
    }
  } catch (const std::exception&) {
    throw;
  } catch (...) {
    wait_for_the_end();
  }
}

}  // namespace normcore::python
