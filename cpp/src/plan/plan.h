// The plan: all geometry of a call, settled once. It views x as a table of cells [outer, cells],
// each cell being `count` elements that are reduced together, and decides how the table lies in
// memory, which axes merge, what is worked on at a time, and whether reduce and apply happen block
// by block in cache or in two sweeps. Every branch on geometry is here. No decision depends on the
// number of threads, and no decision about a single cell depends on how many others there are.
#pragma once

#include <algorithm>
#include <array>
#include <initializer_list>

#include "normcore/method.h"
#include "normcore/tensor.h"

namespace normcore {

enum class Role : std::uint8_t {
  outer,    // keeps its place in the table (N)
  channel,  // the last axis of the table (C)
  space     // reduced (S)
};

// rows: a cell's elements follow each other in memory. cols: neighbouring cells do, or runs of a
// few elements of each.
enum class Layout : int { rows = 0, columns = 1 };

// What weight and bias belong to.
enum class Affinity { channel, element };

// How a pool of the method lies in the table.
enum class Extent {
  cell,   // one cell
  group,  // consecutive cells of a row of the table
  row,    // all cells of a row
  column  // the same cell of every row
};

// The operands of a plan by name: their places in it, forward and backward.
inline constexpr int kMaxOperands = 4;
enum ForwardOperand : int {
  kX,  // what is normalized: with a residual the sum, h
  kY,
  kResidual,
  kXIn,  // with a residual: what it is added to
};
enum BackwardOperand : int { kDy = kX + 1, kDx, kDh };
inline constexpr int kMask = kMaxOperands - 1;  // both ways
static_assert(kXIn < kMaxOperands && kDh < kMaxOperands);

// Divisions whose answer is mostly known beforehand: a small call would spend a fifth of its time
// on them.
inline Index ceil_div(Index a, Index b) { return a <= b ? Index(a > 0) : (a + b - 1) / b; }
inline Index round_up(Index a, Index unit) { return ceil_div(a, unit) * unit; }
struct Split {
  Index quotient, rest;
};
inline Split split(Index a, Index b) { return a < b ? Split{0, a} : Split{a / b, a % b}; }
// The lesser of n and room / size, and 1 at least.
inline Index at_most(Index n, Index room, Index size) {
  return n * size <= room ? n : std::max<Index>(1, room / size);
}

// How one array is reached: element (o, k, s) is at sum of digits of o times outer[] + k * cell +
// sum of digits of s times space[].
struct Access {
  Index outer[kMaxDims];
  Index cell;
  Index space[kMaxDims];
  bool direct;  // tiles can be used where they lie; otherwise they are gathered and scattered
};

// A set of extents.
class Extents {
 public:
  constexpr Extents() = default;  // no default argument: GCC 11 would not see a list's constructor
  constexpr Extents(std::initializer_list<Extent> extents) {
    for (const Extent e : extents) add(e);
  }
  constexpr void add(Extent e) { bits_ |= bit(e); }
  constexpr bool has(Extent e) const { return (bits_ & bit(e)) != 0; }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr bool operator==(const Extents&) const = default;

 private:
  static constexpr unsigned bit(Extent e) { return 1u << static_cast<int>(e); }
  unsigned bits_ = 0;
};

struct PlanRequest {
  const Role* roles;  // one per axis of x
  Affinity affinity = Affinity::channel;
  // What a block must be closed under: the pools that are computed from x. Where there are none,
  // statistics are given per channel, or there is no need of any.
  Extents pools{};
  int parameter_axis = -1;  // kept, beside one other: along it parameters of elements differ too
  Index groups = 1;         // of the channels, for Extent::group
  bool one_block = false;   // pools reach beyond the table: nothing is closed but the whole
  bool wide_cells = false;  // whether the backend knows cells of several columns
  std::array<const ConstTensor*, kMaxOperands> operands{};  // x first; absent ones null

  void set_operands(std::initializer_list<const ConstTensor*> all) {
    std::copy(all.begin(), all.end(), operands.begin());
  }
};

struct Plan {
  Layout layout;
  Affinity affinity;
  Index outer, cells, count;  // the table [outer, cells] and the elements of a cell, or of a column
  // of one: a cell of column tiles may have several, a plane's, where samples are rows.
  Index cell_columns = 1;
  Index groups;
  Extent extent;           // of the widest pool
  bool parameters_by_row;  // of elements: each row of the table has its own
  bool merged_outer;       // statistics do not depend on the row of the table

  // Axes of x in memory order, outermost first: what tables and parameters are indexed by.
  int outer_axis_count, space_axis_count;
  int outer_axes[kMaxDims], space_axes[kMaxDims];

  // The same axes after merging.
  int outer_dims, space_dims;
  Index outer_sizes[kMaxDims], space_sizes[kMaxDims];
  Access access[kMaxOperands];

  // Work. A chunk is what a kernel reduces at once; a piece is the unit of partial sums, spanning
  // rows of the table (column pools only) or part of a cell; a block is closed under the pools.
  Index chunk;
  Index piece_outer, piece_space;
  bool fused;
  Index block_outer, block_cells;
  Index unit_cells;    // cells of one task of a sweep within a block
  Index tile_cells;    // cells side by side in one tile
  bool second_sweep;   // applying is one: statistics come from x
  bool stream;         // the output is too large to stay in cache
  bool backwards;      // tiles of the second sweep: the last ones are still in a near cache
  Index bytes;         // of all operands, for the choice of threads
  const char* reason;  // for NORMCORE_VERBOSE

  Index cell_elements() const { return count * cell_columns; }
  Index space_pieces() const { return ceil_div(count, piece_space); }
  // One at least: of a call without elements a block of no rows.
  Index outer_blocks() const { return std::max<Index>(1, ceil_div(outer, block_outer)); }
  Index cell_blocks() const { return std::max<Index>(1, ceil_div(cells, block_cells)); }
  Index blocks() const { return outer_blocks() * cell_blocks(); }
  // Rows of parameters of elements, [count] each.
  Index parameter_rows() const { return parameters_by_row ? outer : 1; }
  // Statistics that pools of an extent have.
  Index pool_rows(Extent e) const { return e == Extent::column ? 1 : outer; }
  Index pool_cols(Extent e) const {
    return e == Extent::row ? 1 : e == Extent::group ? groups : cells;
  }
};

// Rows [o0, o0 + on) and cells [k0, k0 + kn) of the table, elements [s0, s0 + sn) of each cell.
struct Range {
  Index o0, on, k0, kn, s0, sn;
};

// Axes of x that matter, those of more than one element, outermost in memory first; the number of
// them. Broadcast axes count as outermost.
int sort_axes(const ConstTensor& x, int* axes);

Extent extent_of(Pool pool, Affinity affinity);

void make_plan(const PlanRequest& request, Plan* plan);

}  // namespace normcore
