// A plan as kernels take it: the table of cells, the pieces of a cell that are reduced at once, and
// where the operands have their elements.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/elements.cuh"
#include "normcore/errors.h"
#include "plan/pool.h"

namespace normcore::cuda {

// Division by what the host knows: by a multiplication. Of numbers under 2^31.
struct Division {
  unsigned divisor = 1, factor = 1;
  int shift = 0;

  Division() = default;
  explicit Division(Index by) : divisor(unsigned(by)) {
    while ((1ull << shift) < divisor) ++shift;
    factor = unsigned(((1ull << 32) * ((1ull << shift) - divisor)) / divisor + 1);
  }
  struct Parts {
    unsigned quotient, rest;
  };
  __device__ Parts operator()(Index n) const {
    const auto small = unsigned(n);
    const auto high = unsigned((std::uint64_t(small) * factor) >> 32);
    const unsigned quotient = (high + small) >> shift;
    return {quotient, small - quotient * divisor};
  }
};

// Axes that are left after merging; more is refused.
inline constexpr int kMostAxes = 8;

struct Geometry {
  Index outer, cells, count;
  Index piece;       // elements of a piece
  Index pieces;      // of a cell
  bool shared_rows;  // coefficients do not depend on the row of the table
  int outer_dims, space_dims;
  Index outer_sizes[kMostAxes], space_sizes[kMostAxes];
  Division by_pieces, by_cells, by_outer[kMostAxes];  // where cells and their pieces are few enough

  __host__ __device__ Index coefficient_rows() const { return shared_rows ? 1 : outer; }
  __host__ __device__ Index coefficient_cells() const { return coefficient_rows() * cells; }
  __device__ Index coefficient_of(Index cell) const {
    return shared_rows ? by_cells(cell).rest : cell;
  }
  // The pieces of a coefficient cell, of all rows where they share it, and the i-th of them in the
  // tables of pieces.
  __host__ __device__ Index coefficient_pieces() const {
    return (shared_rows ? outer : 1) * pieces;
  }
  __device__ Index coefficient_piece(Index cell, Index i) const {
    const auto [o, piece] = by_pieces(i);
    return (cell + o * cells) * pieces + piece;
  }
  __device__ Index elements_of(Index p) const {
    const Index left = count - p * piece;
    return left < piece ? left : piece;
  }
};

// An operand: element (o, k, s) of the table.
struct View {
  void* data;
  Index outer[kMostAxes];
  Index cell;
  Index space[kMostAxes];

  // Element (o, k, 0), cell = o * cells + k.
  template <class T>
  __device__ T* cell_start(const Geometry& g, Index cell_index) const {
    const auto [o, k] = g.by_cells(cell_index);
    return at<T>(g, o, k);
  }
  template <class T>
  __device__ T* at(const Geometry& g, unsigned o, Index k) const {
    return static_cast<T*>(data) + k * cell + row_offset(g, o);
  }
  // To element (o, 0, 0).
  __device__ Index row_offset(const Geometry& g, unsigned o) const {
    Index offset = 0;
    for (int d = g.outer_dims - 1; d > 0; --d) {
      const auto [rest, digit] = g.by_outer[d](o);
      offset += digit * outer[d];
      o = rest;
    }
    return g.outer_dims > 0 ? offset + o * outer[0] : 0;
  }
  // From element (o, k, 0) to (o, k, s).
  __device__ Index step(const Geometry& g, Index s) const {
    if (g.space_dims <= 1) return s * (g.space_dims == 1 ? space[0] : 0);
    Index offset = 0;
    for (int d = g.space_dims - 1; d >= 0; --d) {
      offset += s % g.space_sizes[d] * space[d];
      s /= g.space_sizes[d];
    }
    return offset;
  }
};

// The cells of one pool of a method: entry e of a table [rows, cols].
struct PoolShape {
  Extent extent;
  Index rows, cols;
  Index across;                      // neighbouring cells of an entry
  double count;                      // elements of an entry
  const Weighed* counted = nullptr;  // what counts in their place; null: all, and no others

  // A pool of nothing has an infinite variance, and counts as one.
  __device__ double size() const {
    if (!counted) return count;
    const double sum = counted->sum;
    return sum > 0 ? sum : 1;
  }
  __host__ __device__ Index entries() const { return rows * cols; }
  // Cells of an entry, in a fixed order: the m-th of cells_of_entry.
  __host__ __device__ Index cells_of_entry(const Geometry& g) const {
    return extent == Extent::column ? g.outer : across;
  }
  __device__ Index cell_of(const Geometry& g, Index entry, Index m) const {
    return extent == Extent::column ? m * g.cells + entry : entry * across + m;
  }
  __device__ Index entry_of(const Geometry& g, Index cell) const {
    return extent == Extent::column ? cell % g.cells : cell / across;
  }
};

// ---- of a plan

// For divisions by a multiplication.
inline bool is_few(Index n) { return n > 0 && n <= 0x7fffffff; }

inline Geometry geometry_of(const Plan& plan) {
  if (plan.outer_dims > kMostAxes || plan.space_dims > kMostAxes) {
    throw value_error("x has more than 8 axes that do not merge, which CUDA refuses");
  }
  Geometry g{};
  g.outer = plan.outer;
  g.cells = plan.cells;
  g.count = plan.count;
  g.shared_rows = plan.merged_outer;
  g.outer_dims = plan.outer_dims;
  g.space_dims = plan.space_dims;
  if (is_few(g.outer) && is_few(g.cells)) {
    g.by_cells = Division(g.cells);
    for (int d = 0; d < plan.outer_dims; ++d) g.by_outer[d] = Division(plan.outer_sizes[d]);
  }
  for (int d = 0; d < plan.outer_dims; ++d) g.outer_sizes[d] = plan.outer_sizes[d];
  for (int d = 0; d < plan.space_dims; ++d) g.space_sizes[d] = plan.space_sizes[d];
  return g;
}

inline PoolShape pool_of(const Plan& plan, Extent extent) {
  PoolShape p{};
  p.extent = extent;
  p.rows = plan.pool_rows(extent);
  p.cols = plan.pool_cols(extent);
  p.across = cells_across(extent, plan);
  p.count = elements_of(extent, plan);
  return p;
}

inline View view_of(const Plan& plan, int operand, const void* data) {
  const Access& a = plan.access[operand];
  View v{};
  v.data = const_cast<void*>(data);
  v.cell = a.cell;
  for (int d = 0; d < plan.outer_dims; ++d) v.outer[d] = a.outer[d];
  for (int d = 0; d < plan.space_dims; ++d) v.space[d] = a.space[d];
  return v;
}

}  // namespace normcore::cuda
