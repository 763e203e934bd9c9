// Divisive norm and GDN on a device: y_i = g_i sgn(x_i) |x_i|^p D_i^(-e), D = b^q + W |x|^a over
// the channels of every pixel. All of it is computed in double, the products on the tensor cores
// for double: no power of a number of another type leaves its range, one channel does not drown the
// others, and a pixel's bits are its own. Few channels would leave such a tile empty: for them a
// thread has a pixel.
//
// Where tables are needed the pixels are worked on in runs, whose tables the second-level cache
// holds: backward keeps t = dL/dD and what dy brings to dx beside it. Tables have an element for
// each of x, channels or pixels behind each other as in x.
#pragma once

#include "cuda/mma.cuh"
#include "cuda/special.cuh"
#include "special/mixing_formulas.h"
#include "special/numbers.h"

namespace normcore::cuda {

inline constexpr Index kFewChannels = 16;
using Double = Numbers<double>;

struct Mixture : ChannelLayout {
  const double *weights, *offset, *gain;
  double a, p, e;
  Index first, run;  // pixels of the launch

  __device__ Index at(int operand, Index c, Index n) const {
    return ChannelLayout::at(operand, c, first + n);
  }
  __device__ Index in_table(Index c, Index n) const {
    return last ? n * channels + c : c * run + n;
  }
};

template <class T>
struct MixingArrays {
  const T *x, *dy;
  T* out;
  T* y_table;        // in place of out
  double *t, *rest;  // tables: dL/dD, and what dy brings to dx where D is held
  // Sums of the pixel tiles for offset and gain: [tiles][2][channels]; of the splits for the
  // weights: [splits][channels][channels]; of the blocks for a and e. Absent ones are null.
  double *channels, *weights, *a, *e;
  bool adds;  // to what an earlier run left there
};

__device__ inline void leave(double sum, double* to, bool adds) { *to = adds ? *to + sum : sum; }

// What becomes of a product: y; t and its companions; or from W^T t dx and the sums for a.
enum class Product { kY, kTerms, kGradient };

// A block's tile of a product. Its sums are staged in shared memory 16 rows at a time, so that
// the rest is done by element, in the order of memory.
template <bool kFew>
struct ProductTile {
  static constexpr int kRows = kFew ? 16 : 64, kPixels = kFew ? kBlock : 128, kDepth = 16;
  static constexpr int kStage = 16;  // rows
  // Four more than a multiple of the banks: lanes read 4 rows of 8 neighbours.
  static constexpr int kPitch = kPixels + 4, kRowPitch = kRows + 4;
  static constexpr int kSharers = kBlock / kStage;  // threads that share a row of the stage
  static constexpr int kBytes = (kDepth * (kPitch + kRowPitch) + 2 * kBlock) * int(sizeof(double)) +
                                3 * kPixels * int(sizeof(Index));
};
inline constexpr int kWarpPixels = 16;  // columns of the tile that a warp has on its tensor cores

// sum += w_tile u_tile of the first blocks of 16 rows and the 16 pixels of a warp: 4 x 2 products.
__device__ inline void multiply_tiles(const double* w_tile, const double* u_tile, int blocks,
                                      double* sum) {
  using Tile = ProductTile<false>;
  const int lane = int(threadIdx.x) % 32, group = lane / 4, member = lane % 4;
#pragma unroll
  for (int k = 0; k < Tile::kDepth; k += 8) {
    double b[2][2];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      b[i / 2][i % 2] = u_tile[(k + i % 2 * 4 + member) * Tile::kPitch + i / 2 * 8 + group];
    }
#pragma unroll
    for (int block = 0; block < Tile::kRows / 16; ++block) {
      if (block >= blocks) continue;
      double a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = w_tile[(k + i / 2 * 4 + member) * Tile::kRowPitch + block * 16 + i % 2 * 8 + group];
      }
      multiply_add(sum + block * 8, a, b[0]);
      multiply_add(sum + block * 8 + 4, a, b[1]);
    }
  }
}

template <class T, Product kWhat, bool kFew>
__global__ void __launch_bounds__(kBlock, 2) product_kernel(Mixture m, MixingArrays<T> arrays) {
  constexpr bool kBack = kWhat == Product::kGradient;
  using Tile = ProductTile<kFew>;
  constexpr int kPixels = Tile::kPixels, kRows = Tile::kRows, kDepth = Tile::kDepth;
  constexpr int kPitch = Tile::kPitch, kRowPitch = Tile::kRowPitch, kStage = Tile::kStage;
  double* u_tile = shared_memory();                                  // [kDepth][kPitch]
  double* w_tile = u_tile + kDepth * kPitch;                         // [kDepth][kRowPitch]
  double* row_sums = w_tile + kDepth * kRowPitch;                    // [2][kBlock]
  Index* offsets = reinterpret_cast<Index*>(row_sums + 2 * kBlock);  // [3][kPixels]
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const int group = lane / 4, member = lane % 4;
  const Index first = Index(blockIdx.x) * kPixels, row0 = Index(blockIdx.y) * kRows;
  const Index n = m.channels, left = m.run - first;
  for (int i = thread; i < 3 * kPixels; i += kBlock) {
    if (i % kPixels < left) offsets[i] = m.at(i / kPixels, 0, first + i % kPixels);
  }
  __syncthreads();
  // x or t, and of it |x|^a or t, of which the product is.
  using Raw = std::conditional_t<kBack, double, T>;
  auto raw = [&](Index j, int p) {
    if constexpr (kBack) {
      return arrays.t[m.in_table(j, first + p)];
    } else {
      return arrays.x[offsets[p] + j * m.step[0]];
    }
  };
  auto factor = [&](Raw v) {
    return kBack ? double(widen(v)) : Double::power(fabs(double(widen(v))), m.a);
  };
  const bool by_channels = m.last;
  auto bring_u = [&](Index j0) {
    constexpr int kTogether = 4;  // loads that wait at the same time
#pragma unroll 1
    for (int i0 = thread; i0 < kDepth * kPixels; i0 += kTogether * kBlock) {
      Raw v[kTogether];
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        const int i = i0 + k * kBlock, p = by_channels ? i / kDepth : i % kPixels;
        const Index j = j0 + (by_channels ? i % kDepth : i / kPixels);
        v[k] = j < n && p < left ? raw(j, p) : Raw{};
      }
#pragma unroll
      for (int k = 0; k < kTogether; ++k) {
        const int i = i0 + k * kBlock, p = by_channels ? i / kDepth : i % kPixels;
        u_tile[(by_channels ? i % kDepth : i / kPixels) * kPitch + p] = factor(v[k]);
      }
    }
  };
  auto bring_w = [&](Index j0) {
#pragma unroll
    for (int i = thread; i < kDepth * kRows; i += kBlock) {
      const int j = kBack ? i / kRows : i % kDepth, r = kBack ? i % kRows : i / kDepth;
      const bool inside = j0 + j < n && row0 + r < n;
      const Index at = kBack ? (j0 + j) * n + row0 + r : (row0 + r) * n + j0 + j;
      w_tile[j * kRowPitch + r] = inside ? m.weights[at] : 0;
    }
  };

  // Of 16 rows and a pixel, or of 4 x 2 products of a warp.
  double sum[kFew ? kStage : 32];
#pragma unroll
  for (int i = 0; i < int(sizeof(sum) / sizeof(double)); ++i) {
    const Index row = row0 + (kFew ? i : i / 8 * 16 + i % 4 / 2 * 8 + group);
    sum[i] = kBack || row >= n ? 0 : m.offset[row];
  }
  for (Index j0 = 0; j0 < n; j0 += kDepth) {
    if constexpr (!kFew) bring_u(j0);
    bring_w(j0);
    __syncthreads();
    if constexpr (kFew) {
      for (int j = 0; j < int(n) && thread < left; ++j) {
        const double u = factor(raw(j, thread));
#pragma unroll
        for (int r = 0; r < kStage; ++r) sum[r] = fused(w_tile[j * kRowPitch + r], u, sum[r]);
      }
    } else if (warp * kWarpPixels < left) {
      const int blocks = n - row0 < kRows ? int(n - row0 + 15) / 16 : kRows / 16;
      multiply_tiles(w_tile, u_tile + warp * kWarpPixels, blocks, sum);
    }
    __syncthreads();
  }

  double* stage = u_tile;  // [kStage][kPitch]
  double block_sum = 0;    // for a or e
  for (int block = 0; block < kRows / kStage && row0 + block * kStage < n; ++block) {
    if constexpr (kFew) {
#pragma unroll
      for (int r = 0; r < kStage; ++r) stage[r * kPitch + thread] = sum[r];
    } else {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if (i / 8 != block) continue;
        stage[(i % 4 / 2 * 8 + group) * kPitch + warp * kWarpPixels + i % 8 / 4 * 8 + member * 2 +
              i % 2] = sum[i];
      }
    }
    __syncthreads();
    const int row = m.last ? thread % kStage : thread / Tile::kSharers;
    const Index c = row0 + block * kStage + row;
    double sums[2] = {};
    for (int p = m.last ? thread / kStage : thread % Tile::kSharers; p < kPixels && p < left;
         p += Tile::kSharers) {
      if (c >= n) break;
      const double of_product = stage[row * kPitch + p];
      const double v = double(widen(arrays.x[offsets[p] + c * m.step[0]]));
      const Index i = m.in_table(c, first + p);
      if constexpr (kWhat == Product::kY) {
        const double y = mixing::y<Double>(v, of_product, m.gain[c], m.p, m.e);
        T* to =
            arrays.y_table ? arrays.y_table + i : arrays.out + offsets[kPixels + p] + c * m.step[1];
        *to = narrow_double<T>(y);
      } else if constexpr (kWhat == Product::kTerms) {
        const double g = double(widen(arrays.dy[offsets[kPixels + p] + c * m.step[1]]));
        const mixing::Terms<Double> terms(g, v, of_product, m.gain[c], m.p, m.e);
        arrays.t[i] = terms.d;
        arrays.rest[i] = terms.x;
        sums[0] += terms.d;
        sums[1] += terms.gain;
        if (arrays.e) block_sum += terms.e();
      } else {
        const double size = Double::power(fabs(v), m.a);
        const double dx = fused(mixing::slope<Double>(v, size, m.a), of_product, arrays.rest[i]);
        arrays.out[offsets[2 * kPixels + p] + c * m.step[2]] = narrow_double<T>(dx);
        if (arrays.a) block_sum += of_product * mixing::slope_of_exponent<Double>(v, size);
      }
    }
    if constexpr (kWhat == Product::kTerms) {
#pragma unroll
      for (int k = 0; k < 2; ++k) row_sums[k * kBlock + thread] = sums[k];
      __syncthreads();
      const int k = thread / kStage, r = thread % kStage;
      const Index to = row0 + block * kStage + r;
      if (k < 2 && to < n) {
        double total = 0;
        for (int s = 0; s < Tile::kSharers; ++s) {
          total += row_sums[k * kBlock + (m.last ? s * kStage + r : r * Tile::kSharers + s)];
        }
        leave(total, arrays.channels + (Index(blockIdx.x) * 2 + k) * n + to, arrays.adds);
      }
    }
    __syncthreads();
  }
  if constexpr (kWhat != Product::kY) {
    double* out = kBack ? arrays.a : arrays.e;
    if (!out) return;
    const double total = block_total(block_sum, row_sums);
    if (thread == 0) leave(total, out + Index(blockIdx.y) * gridDim.x + blockIdx.x, arrays.adds);
  }
}

// dW = sum over the pixels of t u^T, u = |x|^a: a tile of it over the pixels of a split. Of few
// channels a thread has one product.
template <bool kFew>
struct OuterTile {
  static constexpr int kChannels = kFew ? 16 : 64, kRun = kFew ? 128 : 32;  // pixels at once
  static constexpr int kPitch = kChannels + (kFew ? 1 : 4);
  static constexpr int kBytes = kRun * (2 * kPitch * int(sizeof(double)) + int(sizeof(Index)));
};
template <class T, bool kFew>
__global__ void __launch_bounds__(kBlock)
    outer_kernel(Mixture m, MixingArrays<T> arrays, Index splits) {
  using Tile = OuterTile<kFew>;
  constexpr int kChannels = Tile::kChannels, kRun = Tile::kRun, kPitch = Tile::kPitch;
  double* t_tile = shared_memory();  // [kRun][kPitch]
  double* u_tile = t_tile + kRun * kPitch;
  Index* offsets = reinterpret_cast<Index*>(u_tile + kRun * kPitch);  // [kRun]
  const Index n = m.channels, tiles = (n + kChannels - 1) / kChannels;
  const Index row0 = blockIdx.x / tiles * kChannels, col0 = blockIdx.x % tiles * kChannels;
  const Index split = blockIdx.y;
  const Index p0 = m.run * split / splits, p1 = m.run * (split + 1) / splits;
  const int thread = int(threadIdx.x), lane = thread % 32, group = lane / 4, member = lane % 4;
  // A warp has 16 rows and 32 columns; a thread of few channels one of each.
  const int my_row = kFew ? thread / 16 : thread / 64 * 16;
  const int my_col = kFew ? thread % 16 : thread / 32 % 2 * 32;
  double sum[kFew ? 1 : 16] = {};
  for (Index p = p0; p < p1; p += kRun) {
    if (thread < kRun && p + thread < p1) offsets[thread] = m.at(0, 0, p + thread);
    __syncthreads();  // nobody reads the tiles of the pixels before any more
#pragma unroll 4
    for (int i = thread; i < kRun * kChannels; i += kBlock) {
      const int c = m.last ? i % kChannels : i / kRun, q = m.last ? i / kChannels : i % kRun;
      double left = 0, right = 0;
      if (p + q < p1) {
        if (row0 + c < n) left = arrays.t[m.in_table(row0 + c, p + q)];
        if (col0 + c < n) {
          const T v = arrays.x[offsets[q] + (col0 + c) * m.step[0]];
          right = Double::power(fabs(double(widen(v))), m.a);
        }
      }
      t_tile[q * kPitch + c] = left;
      u_tile[q * kPitch + c] = right;
    }
    __syncthreads();
    if constexpr (kFew) {
      for (int q = 0; q < kRun; ++q) {
        sum[0] = fused(t_tile[q * kPitch + my_row], u_tile[q * kPitch + my_col], sum[0]);
      }
    } else if (row0 + my_row < n && col0 + my_col < n) {
#pragma unroll
      for (int k = 0; k < kRun; k += 8) {
        double a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          a[i] = t_tile[(k + i / 2 * 4 + member) * kPitch + my_row + i % 2 * 8 + group];
        }
#pragma unroll
        for (int block = 0; block < 4; ++block) {
          double b[2];
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            b[i] = u_tile[(k + i * 4 + member) * kPitch + my_col + block * 8 + group];
          }
          multiply_add(sum + block * 4, a, b);
        }
      }
    }
  }
#pragma unroll
  for (int i = 0; i < int(sizeof(sum) / sizeof(double)); ++i) {
    const Index row = row0 + my_row + (kFew ? 0 : i % 4 / 2 * 8 + group);
    const Index col = col0 + my_col + (kFew ? 0 : i / 4 * 8 + member * 2 + i % 2);
    if (row >= n || col >= n) continue;
    leave(sum[i], arrays.weights + (split * n + row) * n + col, arrays.adds);
  }
}

// out[i] = factor times the sum over the rows of from [rows][n], in a fixed order, by a warp.
struct Fold {
  const double* from;
  Index rows, n;
  double* out;
  double factor;
};
inline constexpr int kFolds = 4;
struct Folds {
  Fold fold[kFolds];
};
static __global__ void fold_kernel(Folds folds) {
  const Fold& f = folds.fold[blockIdx.y];
  const int lane = int(threadIdx.x) % 32;
  const Index i = Index(blockIdx.x) * kWarps + int(threadIdx.x) / 32;
  if (i >= f.n) return;
  double sum = 0;
  for (Index row = lane; row < f.rows; row += 32) sum += f.from[row * f.n + i];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (lane == 0) f.out[i] = f.factor * sum;
}

}  // namespace normcore::cuda
