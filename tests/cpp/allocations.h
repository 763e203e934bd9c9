// Counts calls of operator new in a test program that is linked with allocations.cc: what steady
// state must not do.
#pragma once

namespace normcore::testing {

// Calls by any thread so far.
long allocations();

}  // namespace normcore::testing
