// Parameters that run along the elements of a cell, as backends take them.
#pragma once

#include "normcore/dtype.h"

namespace normcore {

// A parameter of the elements of a cell, [count]; or the values that all of its chunks share, with
// step 0: one that nobody gave takes no memory of a cell's size. Rows of the table have the same,
// or each its own: Plan::parameters_by_row.
template <class C>
struct ElementParameter {
  const C* values = nullptr;
  Index step = 1;
  Index row = 0;
  // On a device, whose kernels read any dtype: in place of values the caller's own array, in order,
  // and what is added to it. data null: all are the offset.
  bool as_given = false;
  const void* data = nullptr;
  DType dtype = DTypeOf<C>::value;
  double offset = 0;

  explicit operator bool() const { return values != nullptr || as_given; }
  const C* at(Index o, Index element) const { return values + o * row + element * step; }
};

}  // namespace normcore
