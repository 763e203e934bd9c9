// The pixels of a tensor: all positions beside the channel axis, cut into tiles of whole pixels
// with all their channels. A tile that lies in one run of memory is used where it is; others,
// between runs or of unlike strides, are gathered and scattered.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels.h"
#include "cpu/tiles.h"
#include "plan/plan.h"

namespace normcore {

class Pixels {
 public:
  struct Tile {
    Index first, count;
  };

  // Operands are of x's shape, x first. A tile has at most `along` pixels where they lie along the
  // rows of memory, and `across` where they are such rows; less of these by `unit`, if it is given,
  // where runs are short.
  Pixels(std::initializer_list<const ConstTensor*> operands, int channel_axis, Index along,
         Index across, Index unit = 0) {
    const ConstTensor& x = **operands.begin();
    Role roles[kMaxDims];
    std::fill_n(roles, x.ndim(), Role::space);
    roles[channel_axis] = Role::channel;
    PlanRequest request{.roles = roles};
    request.set_operands(operands);
    make_plan(request, &plan_);
    run_ = plan_.space_dims > 0 ? plan_.space_sizes[plan_.space_dims - 1] : 1;
    most_ = rows() ? along : across;
    // Short runs are taken together: a tile of few pixels is no less work than a full one.
    auto fits = [&](Index n) { return run_ >= 4 * n || run_ % n == 0; };
    bool by_run = fits(most_);
    for (Index n = most_; !by_run && unit > 0 && !rows() && n > unit;) {
      by_run = fits(n -= unit);
      if (by_run) most_ = n;
    }
    if (!by_run) run_ = plan_.count;
    in_memory_ = by_run || plan_.space_dims <= 1;
    tiles_per_run_ = (run_ + most_ - 1) / most_;
  }
  Pixels(const Pixels&) = delete;

  const Plan& plan() const { return plan_; }
  bool rows() const { return plan_.layout == Layout::rows; }
  Index most() const { return most_; }
  Index channels() const { return plan_.cells; }
  Index count() const { return plan_.count; }
  Index tiles() const { return plan_.count / run_ * tiles_per_run_; }
  Tile tile(Index i) const {
    const auto [run, j] = split(i, tiles_per_run_);
    const Index first = head_ > 0 && j > 0 ? head_ + (j - 1) * most_ : j * most_;
    const Index most = head_ > 0 && j == 0 ? head_ : most_;
    return {run * run_ + first, std::min(most, run_ - first)};
  }
  int orientation() const { return static_cast<int>(plan_.layout); }

  // Whether the channels of all operands are rows where they lie.
  bool rows_in_place(int operands) const {
    bool all = rows();
    for (int i = 0; i < operands; ++i) all = all && direct(i);
    return all;
  }

  // Where channels are rows: the first tile of a run ends where a line of the operand does, so that
  // the others are whole lines. False where no tile can be such, or some rows' could not.
  bool begin_on_lines(int operand, const void* base, DType dtype) {
    const Index element = static_cast<Index>(size_of(dtype)), line = 64 / element;
    const Access& a = plan_.access[operand];
    bool alike = most_ % line == 0 && a.cell % line == 0;
    for (int d = 0; d + 1 < plan_.space_dims; ++d) alike = alike && a.space[d] % line == 0;
    if (!alike) return false;
    const auto beyond = static_cast<Index>(reinterpret_cast<std::uintptr_t>(base) % 64) / element;
    // A tile more than before costs as much as a full one: runs of 32 tiles would lose by it.
    if (beyond > 0 && run_ < 64 * most_) return false;
    head_ = beyond > 0 ? line - beyond : 0;
    tiles_per_run_ = (head_ > 0) + ceil_div(run_ - head_, most_);
    return true;
  }

  // Elements of scratch that a gathered tile takes.
  Index scratch() const { return channels() * most_; }

  cpu::In in(int operand, const void* base, DType dtype, const Tile& t, void* scratch) const {
    if (direct(operand)) {
      // While a tile is worked on, the next one along a row is on its way.
      return {address(operand, base, dtype, t), stride(operand), rows() ? most_ : 0};
    }
    return cpu::TileAccess(plan_, dtype).in(operand, base, range(t), scratch);
  }
  cpu::Out out(int operand, void* base, DType dtype, const Tile& t, void* scratch) const {
    if (!direct(operand))
      return cpu::TileAccess(plan_, dtype).out(operand, base, range(t), scratch);
    return {const_cast<char*>(address(operand, base, dtype, t)), stride(operand), plan_.stream};
  }
  void commit(int operand, void* base, DType dtype, const Tile& t, const cpu::Out& tile) const {
    if (!direct(operand)) cpu::TileAccess(plan_, dtype).commit(operand, base, range(t), tile);
  }

 private:
  Index pixel_stride(const Access& a) const {
    return plan_.space_dims > 0 ? a.space[plan_.space_dims - 1] : 1;
  }
  bool direct(int operand) const {
    const Access& a = plan_.access[operand];
    return in_memory_ && (rows() ? pixel_stride(a) == 1 : a.cell == 1);
  }
  Index stride(int operand) const {
    const Access& a = plan_.access[operand];
    return rows() ? a.cell : pixel_stride(a);
  }
  cpu::TileRange range(const Tile& t) const { return {0, 0, channels(), t.first, t.count}; }
  const char* address(int operand, const void* base, DType dtype, const Tile& t) const {
    const Access& a = plan_.access[operand];
    Index offset = 0, rest = t.first;
    for (int d = plan_.space_dims - 1; d >= 0; --d) {
      offset += rest % plan_.space_sizes[d] * a.space[d];
      rest /= plan_.space_sizes[d];
    }
    return static_cast<const char*>(base) + offset * static_cast<Index>(size_of(dtype));
  }

  Plan plan_;
  Index most_, run_, tiles_per_run_;
  Index head_ = 0;  // of a run: elements of a first tile that is shorter
  bool in_memory_;  // no tile lies across runs
};

}  // namespace normcore
