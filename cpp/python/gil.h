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
  GilReleased() : outer_(released_), state_(PyEval_SaveThread()) { released_ = state_; }
  ~GilReleased() {
    try {
      PyEval_RestoreThread(state_);
    } catch (...) {  // nothing but the unwinding of a thread that ends
      wait_for_the_end();
    }
    released_ = outer_;
  }
  GilReleased(const GilReleased&) = delete;
  GilReleased& operator=(const GilReleased&) = delete;

  // The thread has the lock again while this lives, or still, where it has not let go of it. (Once
  // the interpreter has ended, PyGILState_Ensure would make a new state in what is gone; asking for
  // the thread's own state ends the thread.)
  class Paused {
   public:
    Paused() : state_(released_) {
      if (!state_) return;
      PyEval_RestoreThread(state_);
      released_ = nullptr;
    }
    ~Paused() {
      if (!state_) return;
      PyEval_SaveThread();
      released_ = state_;
    }
    Paused(const Paused&) = delete;
    Paused& operator=(const Paused&) = delete;

   private:
    PyThreadState* state_;
  };

 private:
  static inline constinit thread_local PyThreadState* released_ = nullptr;

  PyThreadState* outer_;
  PyThreadState* state_;
};

// Runs f with the lock, in a call that may have let go of it. Its exceptions pass. f keeps objects
// by plain pointers: the thread may end in what it calls, and destructors would need the lock.
template <class F>
void with_gil(F&& f) {
  try {
    const GilReleased::Paused lock;
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
