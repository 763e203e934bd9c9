// Where a call runs, from where its arrays lie.
#include "bind.h"

namespace normcore::python {
namespace {

std::string device_text(const Context& c) {
  return c.device == Device::kCpu ? "the CPU" : "CUDA device " + std::to_string(c.device_index);
}

}  // namespace

Context call_context(const Array& x, std::initializer_list<Named> others) {
  const Context& where = x.where();
  for (const Named& other : others) {
    if (!other.array) continue;
    const Context& there = other.array.where();
    if (there.device != where.device || there.device_index != where.device_index) {
      throw value_error(std::string(other.name) + " is on " + device_text(there) + ", expected " +
                        device_text(where) + ", where x is");
    }
    if (where.device == Device::kCuda) {
      cuda::order_streams(there, where);
      other.array.use_on(where);
    }
  }
  Context context = where;
  context.exchange = current_exchange();
  context.interrupt = current_signals();
  return context;
}

}  // namespace normcore::python
