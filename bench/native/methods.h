// The methods of the library, as the cells of bench/shapes.json call them.
#pragma once

#include "cells.h"
#include "normcore/normcore.h"

namespace normcore::bench {

// The arguments of a cell's call. Vectors are by channel, or over the normalized axis.
struct Arguments {
  const Cell& cell;
  bool training;
  int channel_axis;
  Context context{};
  Tensor x{}, dy{}, out{};
  Tensor weight{}, bias{}, rho{}, mean_logits{}, var_logits{};
  Tensor dweight{}, dbias{}, drho{}, dmean_logits{}, dvar_logits{};
  Tensor running_mean{}, running_scale{};  // the latter a variance, a deviation or a scale
  Tensor mask{};                           // absent, or what each position counts
  Tensor mixing{}, dmixing{};              // weights of all pairs of channels
  Tensor pooled{}, given{};                // statistics, from forward to backward
  Tensor reduced{}, reduced_too{};         // x's shape with 1 along the axis
  Tensor left{}, right{};                  // vectors of a matrix

  SavedStats saved() const { return {pooled, given}; }
  Gradients gradients() const { return {out, dweight, dbias}; }
};

// What the pairs of a method's saved statistics stand for: nothing, a row, a channel, a channel or
// group of a sample.
enum class Saved { none, rows, channels, instances, groups };

// A method's calls on the arguments; `stats` are those that forward is to write, or none.
struct Method {
  const char* name;
  Saved saved;
  void (*forward)(const Arguments&, const StatsOut& stats);
  void (*backward)(const Arguments&);  // null where there is none
};

const Method& method_of(const Cell& cell);  // throws value_error

}  // namespace normcore::bench
