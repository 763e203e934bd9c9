// Moments of what a mask lets count, and the count itself. The positions of an entry, a cell or a
// channel of all samples, are cut into pieces: a warp takes one where elements of a cell follow
// each other, else a thread does, neighbouring threads neighbouring entries. Pieces are merged in a
// fixed order.
#include <algorithm>
#include <limits>

#include "cuda/population.h"
#include "cuda/summers.cuh"
#include "pipeline/masked.h"

namespace normcore::cuda {
namespace {

// Positions of a piece: of a warp, and of a thread.
constexpr Index kWarpPiece = 4096, kThreadPiece = 256;
// Of a mask alone, of which there is little.
constexpr Index kWeightsPiece = 1024;
// Of an entry: a warp merges them.
constexpr Index kMostPieces = 8192;

// The entries of a pool and the pieces of each.
struct Positions {
  Geometry g;
  PoolShape pool;
  Index count, piece, pieces;  // positions of an entry and of a piece; pieces of an entry
  Division by_count;

  Positions(const Plan& plan, Extent extent) : g(geometry_of(plan)), pool(pool_of(plan, extent)) {
    count = pool.cells_of_entry(g) * g.count;
    if (!down() || count == 0) return;
    if (!is_few(count)) throw device_error("more than 2^31 - 1 values a channel: x is too large");
    by_count = Division(g.count);
  }
  void cut(Index most) {
    piece = std::max(most, ceil_div(count, kMostPieces));
    pieces = std::max<Index>(1, ceil_div(count, piece));
  }
  // Whether an entry goes on from row to row of the table.
  __host__ __device__ bool down() const { return pool.extent == Extent::column; }
  // f(row of the table, cell of the row, element) for the positions of a piece that are `by`'s.
  template <class F>
  __device__ void each(const Summers& by, Index entry, Index index, F f) const {
    const Index first = index * piece, left = count - first;
    const Index last = first + (left < piece ? left : piece);
    const auto [row, cell] = g.by_cells(entry);
    for (Index i = first + by.lane(); i < last; i += by.lanes) {
      if (down()) {
        const auto [o, s] = by_count(i);
        f(o, entry, Index(s));
      } else {
        f(row, Index(cell), i);
      }
    }
  }
};

// In float64, which holds the square of any float: around a first mean, for an exact one.
template <class T>
__global__ void masked_pieces(Summers by, Positions at, View x, View mask, double* weight,
                              double* mean, double* m2) {
  const Index task = by.entry(), entries = at.pool.entries();
  if (task >= entries * at.pieces) return;
  const bool alone = by.lanes == 1;
  const Index entry = alone ? task % entries : task / at.pieces;
  const Index index = alone ? task / entries : task % at.pieces;
  auto each = [&](auto f) {
    at.each(by, entry, index, [&](unsigned o, Index k, Index s) {
      const double w = double(mask.at<const Compute<T>>(at.g, o, k)[mask.step(at.g, s)]);
      if (w > 0) f(w, double(widen(x.at<const T>(at.g, o, k)[x.step(at.g, s)])));
    });
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
  const Index to = entry * at.pieces + index;
  const double delta = sum > 0 ? rest / sum : 0, around_mean = squares - delta * rest;
  weight[to] = sum;
  mean[to] = center + delta;
  // Rounding may leave less than nothing; a NaN stays.
  m2[to] = around_mean < 0 ? 0 : around_mean;
}

// A warp, or a thread, for each entry: lanes merge every 32nd piece, and then each other. `weight`
// null: the variance is wanted in the place of m2.
static __global__ void merge_masked(Summers by, Index entries, Index pieces, const double* weights,
                                    const double* means, const double* m2s, double* weight,
                                    double* mean, double* m2) {
  const Index entry = by.entry();
  if (entry >= entries) return;
  double w = 0, m = 0, q = 0;
  for (Index p = by.lane(); p < pieces; p += by.lanes) {
    const Index at = entry * pieces + p;
    merge_weighted(1, &w, &m, &q, weights + at, means + at, m2s + at);
  }
  for (int d = 16; by.lanes > 1 && d > 0; d /= 2) {
    const double w_d = __shfl_xor_sync(0xffffffffu, w, d);
    const double m_d = __shfl_xor_sync(0xffffffffu, m, d);
    const double q_d = __shfl_xor_sync(0xffffffffu, q, d);
    merge_weighted(1, &w, &m, &q, &w_d, &m_d, &q_d);
  }
  if (by.lane() != 0) return;
  mean[entry] = m;
  if (weight) {
    weight[entry] = w;
    m2[entry] = q;
  } else {
    m2[entry] = w > 0 ? q / w : std::numeric_limits<double>::infinity();
  }
}

void moments(const Plan& plan, Extent extent, DType dtype, const void* x, const void* mask,
             DeviceMemory& memory, double* weight, double* mean, double* m2) {
  Positions at(plan, extent);
  const Index entries = at.pool.entries();
  const bool together =
      at.g.space_dims > 0 && plan.access[kX].space[plan.space_dims - 1] == 1 && at.count >= 32;
  at.cut(together ? kWarpPiece : kThreadPiece);
  double* weights = memory.take<double>(entries * at.pieces);
  double* means = memory.take<double>(entries * at.pieces);
  double* m2s = memory.take<double>(entries * at.pieces);
  const Summers by_pieces(together ? 32 : 1), by_entries(at.pieces);
  with_element_type(dtype, [&]<class T>(T) {
    launch(each_by(by_pieces, entries * at.pieces), memory.stream(), masked_pieces<T>, by_pieces,
           at, view_of(plan, kX, x), view_of(plan, kMask, mask), weights, means, m2s);
  });
  launch(each_by(by_entries, entries), memory.stream(), merge_masked, by_entries, entries,
         at.pieces, weights, means, m2s, weight, mean, m2);
}

// A warp sums the weights of a piece, and the products of their pairs in units of that sum, which
// no product leaves: see weigh in ops/mask.h.
template <class C>
__global__ void weigh_pieces(Summers by, Positions at, View mask, Weighed* parts) {
  const Index index = by.entry();
  if (index >= at.pieces) return;
  auto each = [&](auto f) {
    at.each(by, 0, index, [&](unsigned o, Index k, Index s) {
      const double w = double(mask.at<const C>(at.g, o, k)[mask.step(at.g, s)]);
      if (w > 0) f(w);
    });
  };
  double sum = 0;
  each([&](double w) { sum += w; });
  by.sum(sum);
  const double unit = sum > 0 ? 1 / sum : 0;
  double before = 0, pairs = 0;
  each([&](double w) {
    pairs += (w * unit) * before;
    before += w;
  });
  for (int d = 16; by.lanes > 1 && d > 0; d /= 2) {
    const double other = __shfl_xor_sync(0xffffffffu, before, d);
    pairs += __shfl_xor_sync(0xffffffffu, pairs, d) + (before * unit) * other;
    before += other;
  }
  if (by.lane() == 0) parts[index] = {sum, 2 * pairs};
}

static __global__ void merge_weights(Index n, const Weighed* parts, Weighed* out) {
  const int lane = int(threadIdx.x);
  Weighed all{0, 0};
  for (Index i = lane; i < n; i += 32) all = Weighed::joined(all, parts[i]);
  for (int d = 16; d > 0; d /= 2) {
    const Weighed other{__shfl_xor_sync(0xffffffffu, all.sum, d),
                        __shfl_xor_sync(0xffffffffu, all.divisor, d)};
    all = Weighed::joined(all, other);
  }
  if (lane == 0) *out = all;
}

}  // namespace

void masked_moments(const Plan& plan, DType dtype, const void* x, const void* mask, Memory& memory,
                    double* weight, double* mean, double* m2) {
  moments(plan, Extent::cell, dtype, x, mask, static_cast<DeviceMemory&>(memory), weight, mean, m2);
}

BatchMoments masked_batch_moments(const Plan& plan, DType dtype, const void* x, const void* mask,
                                  DeviceMemory& memory) {
  const BatchMoments out{memory.take<double>(plan.cells), memory.take<double>(plan.cells)};
  moments(plan, Extent::column, dtype, x, mask, memory, nullptr, out.mean, out.var);
  return out;
}

const Weighed* weigh_mask(const Plan& plan, DType dtype, const void* mask, DeviceMemory& memory) {
  Positions at(plan, Extent::column);
  at.cut(kWeightsPiece);
  const Summers by(at.count);
  auto* parts = memory.take<Weighed>(at.pieces);
  auto* out = memory.take<Weighed>(1);
  const View view = view_of(plan, kMask, mask);
  if (statistics_dtype(dtype) == DType::kFloat64) {
    launch(each_by(by, at.pieces), memory.stream(), weigh_pieces<double>, by, at, view, parts);
  } else {
    launch(each_by(by, at.pieces), memory.stream(), weigh_pieces<float>, by, at, view, parts);
  }
  launch({1, 32}, memory.stream(), merge_weights, at.pieces, parts, out);
  return out;
}

}  // namespace normcore::cuda
