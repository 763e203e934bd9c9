// What the sources of JAX's handlers share: how a handler runs, and where its name goes.
#pragma once

#include "../bind.h"
#include "call.h"

namespace normcore::python::jax {

using Run = void (*)(Call&);

// Answers the runtime's question for the version, or runs the call; what it throws becomes an error
// of the runtime, since no exception may cross an interface of C.
ffi::Error* handle(ffi::CallFrame* frame, Run run, Device device) noexcept;

template <Run kRun, Device kDevice>
ffi::Error* handler(ffi::CallFrame* frame) noexcept {
  return handle(frame, kRun, kDevice);
}

// The handlers of each platform by their name, as capsules of their addresses.
class Handlers {
 public:
  template <Run kRun>
  void define(const std::string& name) {
    add("cpu", name, &handler<kRun, Device::kCpu>);
    if (cuda::is_built()) add("CUDA", name, &handler<kRun, Device::kCuda>);
  }
  py::dict take() { return std::move(platforms_); }

 private:
  void add(const char* platform, const std::string& name, ffi::Handler handler);

  py::dict platforms_;
};

void define_methods(Handlers& handlers);
void define_special(Handlers& handlers);

}  // namespace normcore::python::jax
