// The methods of the library, as the cells of bench/shapes.json call them.
#pragma once

#include <any>
#include <array>

#include "cells.h"
#include "normcore/normcore.h"
#include "ops/signatures.h"

namespace normcore::bench {

// The arguments of a cell's call. Vectors are by channel, or over the normalized axis.
struct Arguments {
  const Cell& cell;
  int axis, channel_axis;
  Index groups;
  Context context{};
  Tensor x{}, dy{}, out{};
  Tensor weight{}, bias{}, dweight{}, dbias{};
  ConstTensor own[2]{};  // parameters of the method's own, in their order, and their gradients
  Tensor down[2]{};
  Tensor running_mean{}, running_scale{};  // the latter a variance, a deviation or a scale
  Tensor mask{};                           // absent, or what each position counts
  Tensor mixing{}, dmixing{};              // weights of all pairs of channels
  Tensor pooled{}, given{};                // statistics, from forward to backward
  Tensor reduced{}, reduced_too{};         // x's shape with 1 along the axis
  Tensor left{}, right{};                  // vectors of a matrix
  std::any options{};                      // of a method over channels, settled before its calls

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
  // Of a method over channels.
  void (*set_options)(Arguments&) = nullptr;
  std::array<OwnShape, 2> own{};
};

const Method& method_of(const Cell& cell);  // throws value_error

}  // namespace normcore::bench
