// The cells of bench/shapes.json.
#pragma once

#include <string>
#include <vector>

#include "normcore/dtype.h"

namespace normcore::bench {

struct Cell {
  const char* op;
  const char* variant;
  std::vector<Index> shape;  // logical, channels second
  const char* layout;        // C, NC, NCHW or NHWC
  int axis;                  // of the channels, without an axis of its own
  Index groups;
  double p;
  Index k;
  Index size, summation_window, suppression_window;
  bool has_backward;
  // In tensors read or written, where a tensor fits the last-level cache and beyond.
  struct Traffic {
    double in_cache, beyond;
  } forward, backward;
};

const std::vector<Cell>& cells();

// The same with few elements, for a look at whether all of them run.
Cell cut_down(Cell cell);

// "batch_norm/train/32x64x56x56/NHWC"
std::string name_of(const Cell& cell);

}  // namespace normcore::bench
