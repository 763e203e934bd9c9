// Counts calls of operator new in a test program that is linked with allocations.cc: what steady
// state must not do.
#pragma once

namespace normcore::testing {

// Calls by any thread so far.
long allocations();

// Calls of operator new in ten calls of f, in the steady state: a thread's first task may come
// late, so not at once. What every call allocates never goes away.
template <class F>
long allocations_of(F f) {
  long count = 0;
  for (int round = 0; round < 20; ++round) {
    const long before = allocations();
    for (int i = 0; i < 10; ++i) f();
    count = allocations() - before;
    if (count == 0) break;
  }
  return count;
}

}  // namespace normcore::testing
