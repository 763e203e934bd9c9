// Moments of what a mask lets count. A cell is cut into pieces: a warp takes one where elements of
// a cell follow each other, else a thread does, neighbouring threads neighbouring cells. Pieces are
// merged in a fixed order.
#include <algorithm>

#include "cuda/launch.h"
#include "cuda/summers.cuh"
#include "pipeline/masked.h"
#include "plan/pool.h"

namespace normcore::cuda {
namespace {

constexpr Index kMaskedPiece = 4096;
// Of a cell: a warp merges them.
constexpr Index kMostPieces = 8192;

// In float64, which holds the square of any float: around a first mean, for an exact one.
template <class T>
__global__ void masked_pieces(Summers by, Geometry g, View x, View mask, double* weight,
                              double* mean, double* m2) {
  const Index at = by.entry(), cells = g.outer * g.cells;
  if (at >= cells * g.pieces) return;
  const bool alone = by.lanes == 1;
  const Index cell = alone ? at % cells : at / g.pieces;
  const Index index = alone ? at / cells : at % g.pieces;
  const T* from = x.cell_start<const T>(g, cell);
  const Compute<T>* weights = mask.cell_start<const Compute<T>>(g, cell);
  auto each = [&](auto f) {
    const Index first = index * g.piece, last = first + g.elements_of(index);
    for (Index s = first + by.lane(); s < last; s += by.lanes) {
      const double w = double(weights[mask.step(g, s)]);
      if (w > 0) f(w, double(widen(from[x.step(g, s)])));
    }
  };
  double sum = 0, of_x = 0;
  each([&](double w, double v) {
    sum += w;
    of_x += w * v;
  });
  by.sum(sum, of_x);
  const double center = sum > 0 ? of_x / sum : 0;
  double rest = 0, squares = 0;
  each([&](double w, double v) {
    const double d = v - center;
    rest += w * d;
    squares += w * d * d;
  });
  by.sum(rest, squares);
  if (by.lane() != 0) return;
  const Index to = cell * g.pieces + index;
  const double delta = sum > 0 ? rest / sum : 0, around_mean = squares - delta * rest;
  weight[to] = sum;
  mean[to] = center + delta;
  // Rounding may leave less than nothing; a NaN stays.
  m2[to] = around_mean < 0 ? 0 : around_mean;
}

// A warp, or a thread, for each cell: lanes merge every 32nd piece, and then each other.
static __global__ void merge_masked(Summers by, Geometry g, const double* weights,
                                    const double* means, const double* m2s, double* weight,
                                    double* mean, double* m2) {
  const Index cell = by.entry();
  if (cell >= g.outer * g.cells) return;
  double w = 0, m = 0, q = 0;
  for (Index p = by.lane(); p < g.pieces; p += by.lanes) {
    const Index at = cell * g.pieces + p;
    merge_weighted(1, &w, &m, &q, weights + at, means + at, m2s + at);
  }
  for (int d = 16; by.lanes > 1 && d > 0; d /= 2) {
    const double w_d = __shfl_xor_sync(0xffffffffu, w, d);
    const double m_d = __shfl_xor_sync(0xffffffffu, m, d);
    const double q_d = __shfl_xor_sync(0xffffffffu, q, d);
    merge_weighted(1, &w, &m, &q, &w_d, &m_d, &q_d);
  }
  if (by.lane() != 0) return;
  weight[cell] = w;
  mean[cell] = m;
  m2[cell] = q;
}

}  // namespace

void masked_moments(const Plan& plan, DType dtype, const void* x, const void* mask, Memory& memory,
                    double* weight, double* mean, double* m2) {
  const cudaStream_t stream = static_cast<DeviceMemory&>(memory).stream();
  const Index cells = plan.outer * plan.cells;
  Geometry g = geometry_of(plan);
  g.piece = std::max<Index>(kMaskedPiece, (g.count + kMostPieces - 1) / kMostPieces);
  g.pieces = (g.count + g.piece - 1) / g.piece;
  double* weights = memory.take<double>(cells * g.pieces);
  double* means = memory.take<double>(cells * g.pieces);
  double* m2s = memory.take<double>(cells * g.pieces);
  const bool together =
      g.space_dims > 0 && plan.access[kX].space[plan.space_dims - 1] == 1 && g.count >= 32;
  const Summers by_pieces(together ? 32 : 1), by_cells(g.pieces);
  with_element_type(dtype, [&]<class T>(T) {
    launch(each_by(by_pieces, cells * g.pieces), stream, masked_pieces<T>, by_pieces, g,
           view_of(plan, kX, x), view_of(plan, kMask, mask), weights, means, m2s);
  });
  launch(each_by(by_cells, cells), stream, merge_masked, by_cells, g, weights, means, m2s, weight,
         mean, m2);
}

}  // namespace normcore::cuda
