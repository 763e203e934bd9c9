// The cells of bench/shapes.json.
#pragma once

#include <string>
#include <vector>

#include "options.h"

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

// A cell in one dtype and pass; "batch_norm/train/32x64x56x56/NHWC/bf16/forward".
struct CellVariant {
  const Cell& cell;
  DType dtype;
  bool backward;
  std::string name;
};

// All of them; with options.tiny of few elements, for a look at whether all of them run.
std::vector<CellVariant> variants(const Options& options);

}  // namespace normcore::bench
