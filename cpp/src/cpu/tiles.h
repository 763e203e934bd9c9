// Tiles: the part of an operand that a kernel is handed. Where the operand's memory has the plan's
// layout the tile is the memory itself; otherwise it is gathered into, or scattered from, a small
// buffer, so arrays of any strides need no copy of the tensor.
#pragma once

#include <cstring>

#include "cpu/kernels.h"
#include "cpu/shuffle.h"
#include "cpu/workspace.h"
#include "plan/plan.h"

namespace normcore::cpu {

// Cells [k0, k0 + kn) of row o of the table, elements [s0, s0 + sn) of each.
struct TileRange {
  Index o, k0, kn, s0, sn;
};

class TileAccess {
 public:
  TileAccess(const Plan& plan, DType dtype)
      : plan_(plan), size_(static_cast<Index>(size_of(dtype))) {}

  Index element_bytes() const { return size_; }
  // Bytes of scratch that an operand needs: none where it is used in place.
  Index scratch_bytes(int operand) const {
    if (plan_.access[operand].direct) return 0;
    const Index length = std::min(plan_.count, plan_.chunk);
    return std::max<Index>(1, length) * plan_.tile_cells * size_;
  }

  In in(int operand, const void* base, const TileRange& r, void* scratch) const {
    if (plan_.access[operand].direct) return {address(operand, base, r), stride(operand)};
    const Index packed = rows() ? r.sn : r.kn;
    copy(operand, const_cast<void*>(base), r, scratch, packed, /*gather=*/true);
    return {scratch, packed};
  }
  // Elements from one tile to another, which may be of another array.
  Index distance(const In& from, const In& to) const {
    return (static_cast<const char*>(to.data) - static_cast<const char*>(from.data)) / size_;
  }
  Out out(int operand, void* base, const TileRange& r, void* scratch) const {
    if (plan_.access[operand].direct) {
      return {const_cast<char*>(address(operand, base, r)), stride(operand), plan_.stream};
    }
    return {scratch, rows() ? r.sn : r.kn, false};
  }
  void commit(int operand, void* base, const TileRange& r, const Out& tile) const {
    if (plan_.access[operand].direct) return;
    copy(operand, base, r, tile.data, tile.stride, /*gather=*/false);
  }

 private:
  bool rows() const { return plan_.layout == Layout::rows; }
  Index stride(int operand) const {
    const Access& a = plan_.access[operand];
    return rows() ? a.cell : space_step(a);
  }
  // Of an operand that is used in place, whose space is one.
  Index space_step(const Access& a) const {
    return plan_.space_dims == 0 ? 0 : a.space[plan_.space_dims - 1];
  }

  Index outer_offset(const Access& a, Index o) const {
    Index offset = 0;
    for (int d = plan_.outer_dims - 1; d > 0; --d) {
      offset += o % plan_.outer_sizes[d] * a.outer[d];
      o /= plan_.outer_sizes[d];
    }
    return plan_.outer_dims > 0 ? offset + o * a.outer[0] : 0;
  }
  const char* address(int operand, const void* base, const TileRange& r) const {
    const Access& a = plan_.access[operand];
    const Index offset = outer_offset(a, r.o) + r.k0 * a.cell + r.s0 * space_step(a);
    return static_cast<const char*>(base) + offset * size_;
  }

  // Copies a tile between the operand and a buffer, run by run along the innermost space axis.
  void copy(int operand, void* base, const TileRange& r, void* buffer, Index packed,
            bool gather) const {
    switch (size_) {
      case 2:
        return copy_as<std::uint16_t>(operand, base, r, buffer, packed, gather);
      case 4:
        return copy_as<std::uint32_t>(operand, base, r, buffer, packed, gather);
      default:
        return copy_as<std::uint64_t>(operand, base, r, buffer, packed, gather);
    }
  }
  template <class E>
  void copy_as(int operand, void* base, const TileRange& r, void* buffer, Index packed,
               bool gather) const {
    const Access& a = plan_.access[operand];
    E* origin = static_cast<E*>(base) + outer_offset(a, r.o) + r.k0 * a.cell;
    E* tile = static_cast<E*>(buffer);
    const int last = plan_.space_dims - 1;
    const Index run_size = last >= 0 ? plan_.space_sizes[last] : 1;
    const Index run_stride = last >= 0 ? a.space[last] : 0;
    const Index tile_k = rows() ? packed : 1, tile_s = rows() ? 1 : packed;
    for (Index s = r.s0; s < r.s0 + r.sn;) {
      const Index start = s % run_size;
      const Index length = std::min(run_size - start, r.s0 + r.sn - s);
      Index offset = start * run_stride, rest = s / run_size;
      for (int d = last - 1; d >= 0; --d) {
        offset += rest % plan_.space_sizes[d] * a.space[d];
        rest /= plan_.space_sizes[d];
      }
      E* there = origin + offset;
      E* here = tile + (s - r.s0) * tile_s;
      // The shorter stride of the operand goes innermost.
      if (std::abs(a.cell) < std::abs(run_stride)) {
        copy_plane(there, run_stride, a.cell, here, tile_s, tile_k, length, r.kn, gather);
      } else {
        copy_plane(there, a.cell, run_stride, here, tile_k, tile_s, r.kn, length, gather);
      }
      s += length;
    }
  }
  template <class E>
  static void copy_plane(E* there, Index there_i, Index there_j, E* here, Index here_i,
                         Index here_j, Index ni, Index nj, bool gather) {
    if (there_j == 1 && here_i == 1 && ni > 1 && nj > 1) {
      return transpose_plane(there, there_i, here, here_j, ni, nj, gather);
    }
    if (there_j == 1 && here_j == 1) {
      for (Index i = 0; i < ni; ++i, there += there_i, here += here_i) {
        std::memcpy(gather ? here : there, gather ? there : here, nj * sizeof(E));
      }
      return;
    }
    for (Index i = 0; i < ni; ++i, there += there_i, here += here_i) {
      if (gather) {
        for (Index j = 0; j < nj; ++j) here[j * here_j] = there[j * there_j];
      } else {
        for (Index j = 0; j < nj; ++j) there[j * there_j] = here[j * here_j];
      }
    }
  }

  // As many rows of as many elements as a vector of every architecture has: in each round a row and
  // the one half of them behind it are interleaved, and after as many rounds as halves rows are
  // columns.
  template <class E>
  static constexpr Index kLanesMoved = 16 / Index(sizeof(E));
  template <class E>
  static void transpose_lanes(const E* from, Index from_step, E* to, Index to_step) {
    constexpr int L = int(kLanesMoved<E>);
    using Lanes [[gnu::vector_size(16)]] = E;
    Lanes rows[L], next[L];
    for (int i = 0; i < L; ++i) std::memcpy(&rows[i], from + i * from_step, sizeof(Lanes));
    for (int round = 1; round < L; round *= 2) {
      for (int i = 0; i < L / 2; ++i) {
        const Lanes a = rows[i], b = rows[i + L / 2];
        if constexpr (L == 2) {
          next[0] = __builtin_shufflevector(a, b, 0, 2);
          next[1] = __builtin_shufflevector(a, b, 1, 3);
        } else if constexpr (L == 4) {
          next[2 * i] = __builtin_shufflevector(a, b, 0, 4, 1, 5);
          next[2 * i + 1] = __builtin_shufflevector(a, b, 2, 6, 3, 7);
        } else {
          next[2 * i] = __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
          next[2 * i + 1] = __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
        }
      }
      for (int i = 0; i < L; ++i) rows[i] = next[i];
    }
    for (int i = 0; i < L; ++i) std::memcpy(to + i * to_step, &rows[i], sizeof(Lanes));
  }

  // there[i, j] and here[j, i] by squares, so that every line is read once and written once,
  // however far lines are apart.
  template <class E>
  static void transpose_plane(E* there, Index there_i, E* here, Index here_j, Index ni, Index nj,
                              bool gather) {
    constexpr Index kSide = 64 / Index(sizeof(E));
    alignas(64) E square[kSide][kSide];
    auto move = [&](Index i0, Index j0, Index in, Index jn) __attribute__((always_inline)) {
      E* from = gather ? there + i0 * there_i + j0 : here + j0 * here_j + i0;
      E* to = gather ? here + j0 * here_j + i0 : there + i0 * there_i + j0;
      const Index from_step = gather ? there_i : here_j, to_step = gather ? here_j : there_i;
      const Index rows = gather ? in : jn, cols = gather ? jn : in;
      if (rows == kSide && cols == kSide) {
        constexpr Index L = kLanesMoved<E>;
        for (Index a = 0; a < kSide; a += L) {
          for (Index b = 0; b < kSide; b += L) {
            transpose_lanes(from + a * from_step + b, from_step, &square[b][a], kSide);
          }
        }
        for (Index b = 0; b < kSide; ++b) std::memcpy(to + b * to_step, square[b], 64);
        return;
      }
      for (Index a = 0; a < rows; ++a) {
        for (Index b = 0; b < cols; ++b) square[b][a] = from[a * from_step + b];
      }
      for (Index b = 0; b < cols; ++b) {
        for (Index a = 0; a < rows; ++a) to[b * to_step + a] = square[b][a];
      }
    };
    for (Index i = 0; i < ni; i += kSide) {
      for (Index j = 0; j < nj; j += kSide) {
        if (i + kSide <= ni && j + kSide <= nj) {
          move(i, j, kSide, kSide);
        } else {
          move(i, j, std::min(kSide, ni - i), std::min(kSide, nj - j));
        }
      }
    }
  }

  const Plan& plan_;
  Index size_;
};

}  // namespace normcore::cpu
