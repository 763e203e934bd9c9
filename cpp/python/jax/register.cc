#include "register.h"

namespace normcore::python::jax {
namespace {

ffi::Error* error_of(const ffi::CallFrame& frame, ffi::ErrorCode code, const char* message) {
  ffi::ErrorArguments arguments{
      {offsetof(ffi::ErrorArguments, code) + sizeof code, nullptr}, message, code};
  return frame.api->create_error(&arguments);
}

// Whether the call asks what the handler is, which it is then told.
bool answers(const ffi::CallFrame& frame) {
  ffi::Extension* const extension = frame.header.extensions;
  if (!extension || extension->type != ffi::kMetadata) return false;
  ffi::Metadata& metadata = *reinterpret_cast<ffi::MetadataExtension*>(extension)->metadata;
  metadata.api_version.major_version = ffi::kMajorVersion;
  metadata.api_version.minor_version = ffi::kMinorVersion;
  metadata.traits = 0;
  return true;
}

}  // namespace

ffi::Error* handle(ffi::CallFrame* frame, Run run, Device device) noexcept {
  if (answers(*frame)) return nullptr;
  if (frame->header.struct_size < sizeof *frame || frame->stage != ffi::kExecute) {
    return error_of(*frame, ffi::kInternal, "normcore.jax: another call than one to be executed");
  }
  try {
    Call call(*frame, device);
    run(call);
    return nullptr;
  } catch (const std::invalid_argument& e) {
    return error_of(*frame, ffi::kInvalidArgument, e.what());
  } catch (const std::exception& e) {
    return error_of(*frame, ffi::kInternal, e.what());
  } catch (...) {
    return error_of(*frame, ffi::kInternal, "normcore.jax: unknown error");
  }
}

void Handlers::add(const char* platform, const std::string& name, ffi::Handler handler) {
  if (!platforms_.contains(platform)) platforms_[platform] = py::dict();
  platforms_[platform][name.c_str()] =
      py::capsule(reinterpret_cast<void*>(handler), "xla._CUSTOM_CALL_TARGET");
}

}  // namespace normcore::python::jax

namespace normcore::python {

void register_jax(py::module_& m) {
  m.def(
      "jax_handlers",
      [] {
        jax::Handlers handlers;
        jax::define_methods(handlers);
        jax::define_special(handlers);
        return handlers.take();
      },
      "By the platform's name the handlers of XLA's foreign function interface, as "
      "jax.ffi.register_ffi_target takes them.");
}

}  // namespace normcore::python
