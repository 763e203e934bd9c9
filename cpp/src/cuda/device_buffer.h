// Memory of CUDA devices for callers that are no CUDA code themselves. The build without CUDA
// throws.
#pragma once

#include <cstddef>
#include <memory>

#include "normcore/context.h"

namespace normcore::cuda {

// Stream-ordered memory, given back on the stream that it came from.
std::shared_ptr<void> allocate_shared(std::size_t bytes, const Context& where);

// What was queued on `first` is done before what is queued on `then` from now on.
void order_streams(const Context& first, const Context& then);

// Waits for what was queued on `where`.
void copy_to_host(void* to, const void* from, std::size_t bytes, const Context& where);

// The device of an address.
int device_of(const void* address);

}  // namespace normcore::cuda
