// Geometry of windows over the axes of a tensor, settled once per call. The axes of x, in memory
// order, become independent slices, each a grid of rows; a row holds a run of memory, or several.
//
//   slice: one position of all axes that no window is along
//   row:   one position of the outermost axis with a window (or, where only the run has one, of an
//          axis without)
//   mid:   axes with a window between the rows and the run
//   run:   elements one behind the other: an axis with a window times the lanes within each of its
//          positions, or lanes alone
#pragma once

#include "normcore/tensor.h"

namespace normcore {

struct WindowAxis {
  static constexpr int kOperands = 3;
  Index size = 1;
  Index before = 0, after = 0;  // of the window, beside the element
  Index stride[kOperands] = {};

  Index window() const { return before + 1 + after; }
  Index padded() const { return before + size + after; }
  bool windowed() const { return before + after > 0; }
};

struct WindowPlan {
  int slice_dims = 0, mids = 0;
  WindowAxis slice[kMaxDims];
  WindowAxis row;
  WindowAxis mid[kMaxDims];
  WindowAxis run;    // of size 1 where the run is lanes alone
  WindowAxis lanes;  // its strides are those of the run's elements
  Index slices = 1;

  Index run_size() const { return run.size * lanes.size; }
};

// before, after: per axis of x. The first operand is x; absent ones are null.
void make_window_plan(const ConstTensor* const (&operands)[WindowAxis::kOperands],
                      const Index* before, const Index* after, WindowPlan* plan);

}  // namespace normcore
