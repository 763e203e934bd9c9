// Parameters that run along the elements of a cell, as backends take them.
#pragma once

#include "normcore/dtype.h"

namespace normcore {

// A parameter of the elements of a row, [count]; or the values that all of its chunks share, with
// step 0: one that nobody gave takes no memory of a row's size.
template <class C>
struct ElementParameter {
  const C* values = nullptr;
  Index step = 1;

  explicit operator bool() const { return values != nullptr; }
  const C* at(Index element) const { return values + element * step; }
};

}  // namespace normcore
