// Masks: given beside x, or the one that a NumPy masked array brings along.
#pragma once

#include <optional>

#include "array.h"

namespace normcore::python {

// The arguments x and mask of a function that has a mask. A masked array is its data, and what it
// does not hide is the mask; that must be the same for all channels where there is a channel axis,
// else None.
struct Maskable {
  py::object x, mask;
  Maskable(py::handle x, py::handle mask, py::handle channel_axis);
};

// What each position of x counts, as the operations take it; absent where the mask is None.
Array read_mask(py::handle mask, const Array& x, std::optional<int> channel_axis);

}  // namespace normcore::python
