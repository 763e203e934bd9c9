// Memory of CUDA devices for callers that are no CUDA code themselves. The build without CUDA
// throws.
#pragma once

#include <cstddef>
#include <memory>

#include "normcore/context.h"

namespace normcore::cuda {

// Memory of our own for results of libraries that make no arrays for us. Who reads it, and on which
// streams, is not known when the last owner drops it: it is given back once the whole device has
// passed that point, which a later call waits for when much has gathered. Dropping it asks nothing
// of the device, from any thread and at any time.
NORMCORE_API std::shared_ptr<void> allocate_shared(std::size_t bytes, const Context& where);

// What was queued on `first` is done before what is queued on `then` from now on.
NORMCORE_API void order_streams(const Context& first, const Context& then);

// Copies what both have, on the stream; where `wait`, it is done afterwards. Memory of the host may
// be either.
NORMCORE_API void copy(void* to, const void* from, std::size_t bytes, const Context& where,
                       bool wait = false);

// The device of an address; of null, which has no memory, the thread's.
NORMCORE_API int device_of(const void* address);

// Keeps `owner` until what is queued on `where` now has been done. What is done is dropped at the
// next calls, by threads that may drop it.
NORMCORE_API void keep_until_done(std::shared_ptr<void> owner, const Context& where);
NORMCORE_API void drop_what_is_done();
// Waits for what is kept.
NORMCORE_API void wait_for_kept();

// Waits for the devices that calls have used and gives back what our pools hold unused.
NORMCORE_API void empty_cache();

}  // namespace normcore::cuda
