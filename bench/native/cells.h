// The cells of bench/shapes.json.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "options.h"

namespace normcore::bench {

struct Cell {
  const char* op;
  const char* variant;
  std::vector<Index> shape;  // logical, channels second
  const char* layout;        // C, NC, NCHW or NHWC
  struct Option {
    std::string_view name;
    double value;
  };
  std::vector<Option> options;  // by the names of the call's arguments
  bool has_backward;
  // In tensors read or written, where a tensor fits the last-level cache and beyond.
  struct Traffic {
    double in_cache, beyond;
  } forward, backward;

  std::optional<double> option(std::string_view wanted) const {
    for (const auto& [name, value] : options) {
      if (name == wanted) return value;
    }
    return {};
  }
  int axis() const { return int(option("axis").value_or(1)); }  // else that of the channels
  Index groups() const { return Index(option("num_groups").value_or(1)); }
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
