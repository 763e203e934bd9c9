// The kernels of power iteration. A sweep reads the matrix once: a block holds some rows in
// registers, which give their entries of A x and, as soon as these are known, their share of
// A^T (A x). Shares are one row of a table for each block, and added in the order of the blocks;
// then a single cluster of blocks makes vectors of length 1 of the products. A matrix that the
// shared memory of a cluster holds is read once, and all iterations are one launch.
//
// Rows begin on packs of 16 bytes and end in zeros. Any other matrix is copied to such memory
// first.
#pragma once

#include "cuda/elements.cuh"
#include "cuda/reduce.cuh"
#include "cuda/spectral.h"

namespace normcore::cuda {

using special::kColSide;
using special::kRowSide;
using special::Side;

inline constexpr int kSweepThreads = 512;  // at most, of a block
inline constexpr int kNarrowPacks = 128;   // of the rows of which a thread holds one pack
inline constexpr int kPacksInFlight = 8;   // that a thread waits for at once
inline constexpr int kCrewThreads = 256;   // of a block of a crew, and of element-wise kernels
inline constexpr int kCollectWarps = 8;

template <class T>
inline constexpr int kMostSweepPacks = sizeof(T) == 2 ? 2 : 4;  // of a row that a thread holds

// ---- sweeps

template <class C>
struct Sweep {
  const uint4* a;               // rows of packs
  Index rows, cols, stride;     // stride in packs
  int packs;                    // of a row
  const PowerNumbers* numbers;  // null: of the first sweep, before there are any
  const C* x;                   // [cols]
  const C* y;                   // [rows]; of a sweep that has shares alone
  double* dots;                 // [blocks along a row, rows]: A x
  C* shares;                    // [blocks, packs * kPack]: A^T y, where y may be A x
  C* tops;                      // [all blocks]: the largest |element|; null: not wanted
};

// Replaces v by its sums over the block.
template <int R, class C>
__device__ void block_sums(C (&v)[R], int& phase) {
  const int warps = int(blockDim.x) / 32, warp = int(threadIdx.x) / 32;
#pragma unroll
  for (int d = 16; d > 0; d /= 2) {
#pragma unroll
    for (int r = 0; r < R; ++r) v[r] += __shfl_xor_sync(0xffffffffu, v[r], d);
  }
  if (warps == 1) return;
  // Neighbouring calls use different memory, so that one barrier is enough.
  C* slots = reinterpret_cast<C*>(shared_memory()) + (phase++ & 1) * (kSweepThreads / 32 * R);
  if (threadIdx.x % 32 == 0) {
#pragma unroll
    for (int r = 0; r < R; ++r) slots[warp * R + r] = v[r];
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < R; ++r) v[r] = 0;
  for (int w = 0; w < warps; ++w) {
#pragma unroll
    for (int r = 0; r < R; ++r) v[r] += slots[w * R + r];
  }
}

template <class C>
inline constexpr int kSweepSharedBytes = 2 * (kSweepThreads / 32) * kPacksInFlight * int(sizeof(C));

// Blocks walk the rows, R at a time, with the stride of the grid; blocks along y have a part of the
// columns each. With dots and shares the part is the whole row.
template <class T, int P, bool kDots, bool kShares>
__global__ void __launch_bounds__(P == 1 ? kNarrowPacks : kSweepThreads)
    sweep_matrix(Sweep<Compute<T>> s) {
  using C = Compute<T>;
  constexpr int V = kPack<T>, R = kPacksInFlight / P;
  if (s.numbers && s.numbers->done != 0) return;
  const C unit = s.numbers ? C(s.numbers->unit) : C(1);
  const int threads = int(blockDim.x);
  const int first = int(blockIdx.y) * (P * threads) + int(threadIdx.x);
  int pack[P];
  C x[P][V], share[P][V];
#pragma unroll
  for (int p = 0; p < P; ++p) {
    pack[p] = first + p * threads < s.packs ? first + p * threads : s.packs - 1;
#pragma unroll
    for (int e = 0; e < V; ++e) {
      share[p][e] = 0;
      if constexpr (kDots) {
        const Index c = Index(first + p * threads) * V + e;
        x[p][e] = c < s.cols ? s.x[c] * unit : C(0);
      }
    }
  }
  C top[1] = {0};
  int phase = 0;
  for (Index row = Index(blockIdx.x) * R; row < s.rows; row += Index(gridDim.x) * R) {
    // Beyond the end the last ones stand in, with zeros for their factors: no load has a condition.
    uint4 words[R][P];
    C y[R];
#pragma unroll
    for (int r = 0; r < R; ++r) {
      const uint4* a = s.a + (row + r < s.rows ? row + r : s.rows - 1) * s.stride;
#pragma unroll
      for (int p = 0; p < P; ++p) words[r][p] = a[pack[p]];
    }
    if constexpr (!kDots) {
      // The factors are read after a barrier, and so after all other loads have begun: left alone,
      // the compiler takes turns, which saves registers that nothing else needs.
      __syncwarp();
#pragma unroll
      for (int r = 0; r < R; ++r) y[r] = row + r < s.rows ? s.y[row + r] : C(0);
    }
    if constexpr (kDots) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        y[r] = 0;
#pragma unroll
        for (int p = 0; p < P; ++p) {
          C f[V];
          Pack<T>{words[r][p]}.widen(f);
#pragma unroll
          for (int e = 0; e < V; ++e) y[r] = fused(f[e], x[p][e], y[r]);
        }
      }
      block_sums(y, phase);
      double* dots = s.dots + Index(blockIdx.y) * s.rows + row;
#pragma unroll
      for (int r = 0; r < R; ++r) {
        if (row + r >= s.rows) {
          y[r] = 0;
        } else if (threadIdx.x == 0) {
          dots[r] = double(y[r]);
        }
      }
    }
    if constexpr (kShares) {
#pragma unroll
      for (int r = 0; r < R; ++r) {
        const C factor = y[r] * unit;
#pragma unroll
        for (int p = 0; p < P; ++p) {
          C f[V];
          Pack<T>{words[r][p]}.widen(f);
#pragma unroll
          for (int e = 0; e < V; ++e) share[p][e] = fused(f[e], factor, share[p][e]);
        }
      }
    }
    if constexpr (!(kDots && kShares)) {  // the first sweep is of these
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int p = 0; p < P; ++p) {
          C f[V];
          Pack<T>{words[r][p]}.widen(f);
#pragma unroll
          for (int e = 0; e < V; ++e) top[0] = Largest()(std::abs(f[e]), top[0]);
        }
      }
    }
  }
  if constexpr (kShares) {
    constexpr int kWords = V * int(sizeof(C)) / 16, kEach = V / kWords;
#pragma unroll
    for (int p = 0; p < P; ++p) {
      if (first + p * threads >= s.packs) continue;
      C* to = s.shares + Index(blockIdx.x) * s.packs * V + Index(first + p * threads) * V;
#pragma unroll
      for (int w = 0; w < kWords; ++w) {
        uint4 words;
        memcpy(&words, &share[p][w * kEach], 16);
        reinterpret_cast<uint4*>(to)[w] = words;
      }
    }
  }
  if (!(kDots && kShares) && s.tops) {
    __syncthreads();  // the memory of the last sums
    C* slots = reinterpret_cast<C*>(shared_memory());
#pragma unroll
    for (int d = 16; d > 0; d /= 2) {
      top[0] = Largest()(__shfl_xor_sync(0xffffffffu, top[0], d), top[0]);
    }
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = top[0];
    __syncthreads();
    if (threadIdx.x == 0) {
      for (int w = 1; w < threads / 32; ++w) top[0] = Largest()(slots[w], top[0]);
      s.tops[Index(blockIdx.y) * gridDim.x + blockIdx.x] = top[0];
    }
  }
}

// sums[c] = sum of the blocks' shares [blocks, stride] in their order. A block takes 32 columns.
template <class C>
__global__ void collect_shares(const C* shares, Index blocks, Index stride, Index cols,
                               const PowerNumbers* numbers, double* sums) {
  if (numbers && numbers->done != 0) return;
  double* parts = shared_memory();  // [kCollectWarps, 32]
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  const Index c = Index(blockIdx.x) * 32 + lane;
  double sum = 0;
  if (c < cols) {
#pragma unroll 8
    for (Index b = warp; b < blocks; b += kCollectWarps) sum += double(shares[b * stride + c]);
  }
  parts[warp * 32 + lane] = sum;
  __syncthreads();
  if (warp != 0 || c >= cols) return;
  for (int w = 1; w < kCollectWarps; ++w) sum += parts[w * 32 + lane];
  sums[c] = sum;
}

// Of rows that several blocks share: sums the parts [parts, rows] into the first, also as C.
template <class C>
__global__ void collect_dots(double* dots, Index parts, Index rows, const PowerNumbers* numbers,
                             C* narrow) {
  if (numbers && numbers->done != 0) return;
  const Index r = Index(blockIdx.x) * blockDim.x + threadIdx.x;
  if (r >= rows) return;
  double sum = dots[r];
  for (Index k = 1; k < parts; ++k) sum += dots[k * rows + r];
  dots[r] = sum;
  narrow[r] = C(sum);
}

// ---- vectors

// The threads of a launch that is a single cluster of blocks.
class Crew {
 public:
  __device__ explicit Crew(int blocks) : blocks_(blocks), slots_(shared_memory()) {}

  static constexpr int kWarps = kCrewThreads / 32;
  static constexpr int kDoubles = 2 * (kWarps + 1);

  __device__ Index index() const {
    return Index(blocks_ > 1 ? cluster_rank() : 0) * kCrewThreads + threadIdx.x;
  }
  // f(i) for [0, n), shared by all.
  template <class F>
  __device__ void each(Index n, F f) const {
    for (Index i = index(); i < n; i += Index(blocks_) * kCrewThreads) f(i);
  }
  // What has been written before it is there for all after it.
  __device__ void barrier() const {
    if (blocks_ > 1) {
      cluster_barrier();
    } else {
      __syncthreads();
    }
  }
  // v of all threads together, in a fixed order; a barrier.
  template <class Join>
  __device__ double joined(double v, Join join) {
    double* slots = slots_ + (phase_++ & 1) * (kWarps + 1);
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v = join(v, __shfl_xor_sync(0xffffffffu, v, d));
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = v;
    __syncthreads();
    v = slots[0];
    for (int w = 1; w < kWarps; ++w) v = join(v, slots[w]);
    if (blocks_ == 1) return v;
    double* of_all = slots + kWarps;
    if (threadIdx.x == 0) *of_all = v;
    cluster_barrier();
    v = *of_block(of_all, 0);
    for (int b = 1; b < blocks_; ++b) v = join(v, *of_block(of_all, b));
    return v;
  }
  // Last of all: the others still read this block's shared memory.
  __device__ void leave() const {
    if (blocks_ > 1) cluster_barrier();
  }

 private:
  int blocks_;
  double* slots_;
  int phase_ = 0;
};

// The power of two at or below v; 1 where there is none.
__device__ inline double power_of_two(double v) {
  std::uint64_t bits;
  memcpy(&bits, &v, sizeof(bits));
  bits &= std::uint64_t(0x7ff) << 52;
  if (bits == 0 || bits == std::uint64_t(0x7ff) << 52) return 1;
  memcpy(&v, &bits, sizeof(v));
  return v;
}

// |v| of n entries value(i), of any magnitude.
template <class F>
__device__ double norm_of(Crew& crew, Index n, F value) {
  double top = 0;
  crew.each(n, [&](Index i) { top = Largest()(std::abs(value(i)), top); });
  const double scale = power_of_two(crew.joined(top, Largest())), inverse = 1 / scale;
  double squares = 0;
  crew.each(n, [&](Index i) {
    const double v = value(i) * inverse;
    squares += v * v;
  });
  return std::sqrt(crew.joined(squares, Sum())) * scale;
}

template <class C>
struct Settle {
  PowerNumbers* numbers;
  Index length[2];
  double* product[2];
  C* vector[2];
  Side start, from;  // from: of the vector that was multiplied
  bool both;         // and so was its product
  bool residual;
  Index iterations;
  double tol, end_tol, bound;  // of the residual over sigma: it has converged, it need not go on
  int blocks;

  __device__ double norm(Crew& crew, Side s) const {
    const double* p = product[s];
    return norm_of(crew, length[s], [p](Index i) { return p[i]; });
  }
  __device__ void take(const Crew& crew, Side s, double norm) const {
    const double* p = product[s];
    C* v = vector[s];
    crew.each(length[s], [=](Index i) { v[i] = C(p[i] / norm); });
  }
  // |scale * product - sigma * vector|
  __device__ double distance(Crew& crew, Side s, double scale, double sigma) const {
    double squares = 0;
    crew.each(length[s], [&](Index i) {
      const double d = (scale * product[s][i] - sigma * double(vector[s][i])) / sigma;
      squares += d * d;
    });
    return std::sqrt(crew.joined(squares, Sum())) * sigma;
  }
};

// Makes vectors of the product with the vector of side `from`, and where `both` of the product of
// that: the steps of special::PowerIteration. Whether the iterations are over.
template <class C>
__device__ bool settle_products(Crew& crew, const Settle<C>& s, Side from, bool both) {
  PowerNumbers& n = *s.numbers;
  const Side to = special::other(from), aside = special::other(s.start);
  double sigma = n.scaled_sigma, count = n.iterations, residual = 0, done = 0;
  bool asked = false;  // whether the residual is known
  const double norm = s.norm(crew, to);
  auto ask = [&](Side side, double scale) {
    residual = s.distance(crew, side, scale, sigma);
    asked = true;
    done = count >= double(s.iterations) || special::ends_iterations(residual, s.end_tol, sigma);
  };
  if (to == s.start) {
    s.take(crew, to, norm);
    sigma = norm;
    ++count;
    if (both) {
      if (s.residual) ask(aside, 1 / norm);
      if (done == 0) s.take(crew, aside, s.norm(crew, aside));
    }
  } else {
    if (s.residual) ask(to, 1);
    if (done == 0) {
      s.take(crew, to, norm);
      if (both) {
        const double next = s.norm(crew, from);
        s.take(crew, from, next);
        sigma = next / norm;
        ++count;
      }
    }
  }
  if (crew.index() == 0) {
    n.scaled_sigma = sigma;
    n.sigma = sigma / n.unit;
    n.iterations = count;
    if (asked) n.converged = residual <= s.tol * sigma;
    n.done = done;
    const special::Factor f(special::factor_of(n.sigma, s.bound));
    n.p = f.p;
    n.q = f.q;
  }
  return done != 0;
}
template <class C>
__global__ void __launch_bounds__(kCrewThreads) settle(Settle<C> s) {
  if (s.numbers->done != 0) return;
  Crew crew(s.blocks);
  settle_products(crew, s, s.from, s.both);
  crew.leave();
}

// The products that iterations take, one after the other.
class Products {
 public:
  Side from;  // of the vector that is multiplied
  bool both;  // and so is its product

  __host__ __device__ Products(Side start, Index iterations, bool residual)
      : from(special::other(start)), start_(start), left_(iterations), residual_(residual) {
    choose();
  }
  // False: that was the last one.
  __host__ __device__ bool next() {
    const bool renews = from == start_, none_left = left_ == 0;
    if (!renews || both) --left_;
    if (left_ <= 0 && (!residual_ || none_left || (both && !renews))) return false;
    if (!both) from = special::other(from);
    choose();
    return true;
  }

 private:
  __host__ __device__ void choose() {
    both = from == kColSide && (from == start_ ? left_ > 0 : left_ > 1 || residual_);
  }
  Side start_;
  Index left_;  // iterations
  bool residual_;
};

// ---- a matrix that a cluster holds

inline constexpr int kMostHeldPacks = 1024;  // of a row
inline constexpr int kRowsOfWarp = 4;        // that a warp multiplies at once

// How the blocks of a crew share the rows, and what is where in their shared memory.
template <class C>
struct HeldShape {
  Index rows, stride;  // of the matrix; stride in packs
  int packs, pack;     // of a row; elements of one
  int rows_of_block;
  int log_lanes;  // threads side by side along the columns

  HeldShape(Index all_rows, Index row_stride, Index packs_of_row, int elements, int blocks)
      : rows(all_rows),
        stride(row_stride),
        packs(int(packs_of_row)),
        pack(elements),
        rows_of_block(int((all_rows + blocks - 1) / blocks)),
        log_lanes(0) {
    while ((1 << log_lanes) < kCrewThreads && (1 << log_lanes) < packs) ++log_lanes;
  }
  __host__ __device__ int padded_cols() const { return packs * pack; }
  __host__ __device__ int groups() const { return kCrewThreads >> log_lanes; }
  // In bytes, each from where the one before it ends; of whole packs but the last.
  __host__ __device__ Index crew_bytes() const { return Crew::kDoubles * Index(sizeof(double)); }
  __host__ __device__ Index matrix_bytes() const { return Index(rows_of_block) * packs * 16; }
  __host__ __device__ Index vector_bytes() const { return padded_cols() * Index(sizeof(C)); }
  __host__ __device__ Index parts_bytes() const { return groups() * vector_bytes(); }
  __host__ __device__ Index bytes() const {
    const Index sums = groups() > 1 ? parts_bytes() : 0;
    return crew_bytes() + matrix_bytes() + vector_bytes() + sums + rows_of_block * Index(sizeof(C));
  }
};

// The rows of this block. What uses them first, multiply or take_y, has a barrier before it does.
template <class T>
class HeldRows {
 public:
  using C = Compute<T>;
  static constexpr int V = kPack<T>;

  __device__ HeldRows(const HeldShape<C>& shape, const uint4* a, int block)
      : shape_(shape), first_(Index(block) * shape.rows_of_block) {
    const Index left = shape.rows - first_;
    count_ = left <= 0 ? 0 : left < shape.rows_of_block ? int(left) : shape.rows_of_block;
    char* at = reinterpret_cast<char*>(shared_memory()) + shape.crew_bytes();
    a_ = reinterpret_cast<uint4*>(at);
    x_ = reinterpret_cast<C*>(at += shape.matrix_bytes());
    parts_ = reinterpret_cast<C*>(at += shape.vector_bytes());
    y_ = reinterpret_cast<C*>(shape.groups() > 1 ? at + shape.parts_bytes() : at);
    for (int p = lane(); p < shape.packs; p += 1 << shape.log_lanes) {
#pragma unroll 4
      for (int r = group(); r < count_; r += shape.groups()) {
        a_[r * shape.packs + p] = a[(first_ + r) * shape.stride + p];
      }
    }
  }

  // product [rows] = A x unit of these rows, which y keeps too.
  __device__ void multiply(const C* x, Index cols, C unit, double* product) {
    for (int c = int(threadIdx.x); c < shape_.padded_cols(); c += kCrewThreads) {
      x_[c] = c < cols ? x[c] * unit : C(0);
    }
    __syncthreads();
    const int lane = int(threadIdx.x) % 32;
    for (int row = int(threadIdx.x) / 32; row < count_; row += kRowsOfWarp * Crew::kWarps) {
      C sum[kRowsOfWarp] = {};
      for (int p = lane; p < shape_.packs; p += 32) {
        C x_p[V];
#pragma unroll
        for (int e = 0; e < V; ++e) x_p[e] = x_[p * V + e];
#pragma unroll
        for (int k = 0; k < kRowsOfWarp; ++k) {
          const int r = row + k * Crew::kWarps;
          if (r >= count_) continue;
          C f[V];
          Pack<T>{a_[r * shape_.packs + p]}.widen(f);
#pragma unroll
          for (int e = 0; e < V; ++e) sum[k] = fused(f[e], x_p[e], sum[k]);
        }
      }
#pragma unroll
      for (int k = 0; k < kRowsOfWarp; ++k) {
#pragma unroll
        for (int d = 16; d > 0; d /= 2) sum[k] += __shfl_xor_sync(0xffffffffu, sum[k], d);
        const int r = row + k * Crew::kWarps;
        if (lane > 0 || r >= count_) continue;
        y_[r] = sum[k];
        product[first_ + r] = double(sum[k]);
      }
    }
    __syncthreads();
  }
  // y of these rows from a vector.
  __device__ void take_y(const C* vector) {
    for (int r = int(threadIdx.x); r < count_; r += kCrewThreads) y_[r] = vector[first_ + r];
    __syncthreads();
  }
  // shares [padded_cols] = A^T y unit of these rows.
  __device__ void share(C unit, double* shares) {
    const int groups = shape_.groups();
    for (int p = lane(); p < shape_.packs; p += 1 << shape_.log_lanes) {
      C sum[V] = {};
#pragma unroll 4
      for (int r = group(); r < count_; r += groups) {
        const C factor = y_[r] * unit;
        C f[V];
        Pack<T>{a_[r * shape_.packs + p]}.widen(f);
#pragma unroll
        for (int e = 0; e < V; ++e) sum[e] = fused(f[e], factor, sum[e]);
      }
#pragma unroll
      for (int e = 0; e < V; ++e) {
        if (groups == 1) {
          shares[p * V + e] = double(sum[e]);
        } else {
          parts_[group() * shape_.padded_cols() + p * V + e] = sum[e];
        }
      }
    }
    if (groups == 1) return;
    __syncthreads();
    for (int c = int(threadIdx.x); c < shape_.padded_cols(); c += kCrewThreads) {
      double sum = 0;
      for (int g = 0; g < groups; ++g) sum += double(parts_[g * shape_.padded_cols() + c]);
      shares[c] = sum;
    }
  }

 private:
  __device__ int lane() const { return int(threadIdx.x) & ((1 << shape_.log_lanes) - 1); }
  __device__ int group() const { return int(threadIdx.x) >> shape_.log_lanes; }

  const HeldShape<C>& shape_;
  Index first_;
  int count_;
  uint4* a_;  // [rows_of_block, packs]
  C *x_, *parts_, *y_;
};

template <class C>
struct Held {
  Settle<C> settle;
  HeldShape<C> shape;
  const uint4* a;
  double* shares;  // [blocks, padded_cols]
};

// All iterations.
template <class T>
__global__ void __launch_bounds__(kCrewThreads) iterate_held(Held<Compute<T>> s) {
  using C = Compute<T>;
  const Settle<C>& of = s.settle;
  if (of.numbers->done != 0) return;
  const C unit = C(of.numbers->unit);
  const int block = of.blocks > 1 ? cluster_rank() : 0, padded = s.shape.padded_cols();
  Crew crew(of.blocks);
  HeldRows<T> rows(s.shape, s.a, block);
  for (Products products(of.start, of.iterations, of.residual);;) {
    const bool from_cols = products.from == kColSide, shares = !from_cols || products.both;
    if (from_cols) {
      rows.multiply(of.vector[kColSide], of.length[kColSide], unit, of.product[kRowSide]);
    } else {
      rows.take_y(of.vector[kRowSide]);
    }
    if (shares) rows.share(unit, s.shares + Index(block) * padded);
    crew.barrier();
    if (shares) {
      // A thread has the same entries here and wherever a crew works on vectors.
      crew.each(of.length[kColSide], [&](Index c) {
        double sum = 0;
        for (int b = 0; b < of.blocks; ++b) sum += s.shares[Index(b) * padded + c];
        of.product[kColSide][c] = sum;
      });
    }
    if (settle_products(crew, of, products.from, products.both) || !products.next()) break;
    crew.barrier();
  }
  crew.leave();
}

// A fixed vector of length 1.
template <class C>
__device__ void randomize(Crew& crew, C* vector, Index n, int seed) {
  auto value = [seed](Index i) { return special::pseudo_random(std::uint64_t(seed), i); };
  const double norm = norm_of(crew, n, value);
  crew.each(n, [&](Index i) { vector[i] = C(value(i) / norm); });
}
template <class C>
__global__ void __launch_bounds__(kCrewThreads)
    random_vector(C* vector, Index n, int seed, int blocks) {
  Crew crew(blocks);
  randomize(crew, vector, n, seed);
  crew.leave();
}

template <class C>
struct Begin {
  Settle<C> settle;
  const void* a;  // as of a sweep, in elements
  Index stride;
  const C* tops;  // [top_count]
  Index top_count;
  const C* given[2];
  bool keep;
  Side u_side;
  double eps, iterations_of_zeros;
  C* random;        // [length of the start's side]
  double* product;  // of the other side
};

// After the first sweep: the numbers, and what takes the place of a start that tells nothing. That
// is rare, so that a slow product by the crew alone will do.
template <class T>
__global__ void __launch_bounds__(kCrewThreads) begin_iterations(Begin<Compute<T>> s) {
  using C = Compute<T>;
  constexpr double kMost = sizeof(C) == 4 ? 0x1p100 : 0x1p1000;
  const Settle<C>& of = s.settle;
  Crew crew(of.blocks);
  const Side start = of.start, aside = special::other(start);
  double top = 0;
  crew.each(s.top_count, [&](Index i) { top = Largest()(double(s.tops[i]), top); });
  top = crew.joined(top, Largest());
  double norm = of.norm(crew, aside);
  auto tells_nothing = [&] { return norm == 0 || norm < special::least_norm(s.eps, top); };
  for (int i = 0; i < special::kRestarts && top > 0 && tells_nothing(); ++i) {
    randomize(crew, s.random, of.length[start], i);
    crew.barrier();
    const Index step = start == kRowSide ? s.stride : 1, across = start == kRowSide ? 1 : s.stride;
    crew.each(of.length[aside], [&](Index j) {
      const T* a = static_cast<const T*>(s.a) + j * across;
      double sum = 0;
      for (Index k = 0; k < of.length[start]; ++k) {
        sum += double(widen(a[k * step])) * double(s.random[k]);
      }
      s.product[j] = sum;
    });
    norm = of.norm(crew, aside);
  }
  const bool found = !tells_nothing();
  if (found) {
    of.take(crew, aside, norm);
  } else {
    for (const Side side : {kRowSide, kColSide}) {
      const C* given = s.given[side];
      C* vector = of.vector[side];
      if (given && s.keep) {
        crew.each(of.length[side], [=](Index i) { vector[i] = given[i]; });
      } else {
        randomize(crew, vector, of.length[side], side == s.u_side ? 0 : 1);
      }
    }
  }
  if (crew.index() == 0) {
    PowerNumbers& n = *of.numbers;
    const double scale = power_of_two(top);
    n.unit = scale < 1 / kMost ? kMost : scale > kMost ? 1 / kMost : 1 / scale;
    n.sigma = n.scaled_sigma = 0;
    n.iterations = found ? 0 : s.iterations_of_zeros;
    n.converged = !found;
    n.done = !found;
    const special::Factor f(special::factor_of(0, of.bound));
    n.p = f.p;
    n.q = f.q;
  }
  crew.leave();
}

// Without iterations: sigma is the product of a sweep times the other vector.
template <class C>
__global__ void __launch_bounds__(kCrewThreads)
    evaluate(Settle<C> s, const C* given_rows, const C* given_cols) {
  Crew crew(s.blocks);
  const Side to = special::other(s.from);
  const C* given[2] = {given_rows, given_cols};
  double sum = 0;
  crew.each(s.length[to], [&](Index i) { sum += s.product[to][i] * double(given[to][i]); });
  const double sigma = crew.joined(sum, Sum());
  for (const Side side : {kRowSide, kColSide}) {
    crew.each(s.length[side], [&](Index i) { s.vector[side][i] = given[side][i]; });
  }
  if (crew.index() == 0) {
    PowerNumbers& n = *s.numbers;
    n.sigma = sigma;
    const special::Factor f(special::factor_of(sigma, s.bound));
    n.p = f.p;
    n.q = f.q;
  }
  crew.leave();
}

// ---- element by element

// Where element (r, c) of A is in an operand.
struct MatrixAccess {
  bool transposed;
  Index cell;
  int dims;
  Index size[kMaxDims], stride[kMaxDims];

  MatrixAccess(const Plan& plan, int operand)
      : transposed(plan.layout == Layout::columns),
        cell(plan.access[operand].cell),
        dims(plan.space_dims) {
    for (int d = 0; d < dims; ++d) {
      size[d] = plan.space_sizes[d];
      stride[d] = plan.access[operand].space[d];
    }
  }
  __device__ Index at(Index r, Index c) const {
    Index place = transposed ? r : c, offset = (transposed ? c : r) * cell;
    for (int d = dims - 1; d > 0; --d) {
      offset += place % size[d] * stride[d];
      place /= size[d];
    }
    return dims > 0 ? offset + place * stride[0] : offset;
  }
};

// The elements of A, shared by blocks of kCrewThreads: 2^log_lanes threads along a row, and blocks
// along y that walk down the rows.
struct Elements {
  Index rows, cols;
  int log_lanes;

  // f(r, c) for those that are this thread's.
  template <class F>
  __device__ void each(F f) const {
    const int lane = int(threadIdx.x) & ((1 << log_lanes) - 1), at_once = kCrewThreads >> log_lanes;
    const Index c = (Index(blockIdx.x) << log_lanes) + lane;
    if (c >= cols) return;
    Index r = Index(blockIdx.y) * at_once + (int(threadIdx.x) >> log_lanes);
    for (; r < rows; r += Index(gridDim.y) * at_once) f(r, c);
  }
};

// A copy, `all`, whose rows end in zeros.
template <class T>
__global__ void pack_matrix(const T* from, MatrixAccess access, Elements all, Index cols, T* to) {
  all.each([&](Index r, Index c) {
    to[r * all.cols + c] = c < cols ? from[access.at(r, c)] : narrow<T>(Compute<T>(0));
  });
}

// y = p * q * x + left * right^T; left may be null.
template <class T>
__global__ void combine_any(const T* x, MatrixAccess from, T* y, MatrixAccess to, Elements all,
                            const PowerNumbers* numbers, const Compute<T>* left,
                            const Compute<T>* right) {
  using C = Compute<T>;
  const C p = C(numbers->p), q = C(numbers->q);
  all.each([&](Index r, Index c) {
    const C v = widen(x[from.at(r, c)]) * p * q;
    y[to.at(r, c)] = narrow<T>(left ? fused(left[r], right[c], v) : v);
  });
}

// Rows of packs, shared by blocks of kCrewThreads: 2^log_lanes threads along a row, and kDeep rows
// for each thread at once.
struct RowPieces {
  Index rows, x_stride, y_stride;  // in packs
  int packs, log_lanes;

  static constexpr int kDeep = 4;

  __device__ int lanes() const { return 1 << log_lanes; }
  __device__ int pack() const {
    return (int(blockIdx.y) << log_lanes) + (int(threadIdx.x) & (lanes() - 1));
  }
  __device__ int rows_at_once() const { return kCrewThreads >> log_lanes; }
  __device__ Index row(int k) const {
    return (Index(blockIdx.x) * kDeep + k) * rows_at_once() + (int(threadIdx.x) >> log_lanes);
  }
  __device__ bool has(int k) const { return pack() < packs && row(k) < rows; }
  // Row k, or the first where that is none: loads without a condition wait together, and others
  // may write their rows over what they read.
  __device__ Index row_or_first(int k) const { return row(has(k) ? k : 0); }
};

template <class T>
__global__ void __launch_bounds__(kCrewThreads)
    combine_rows(const uint4* x, uint4* y, RowPieces pieces, const PowerNumbers* numbers,
                 const Compute<T>* left, const Compute<T>* right) {
  using C = Compute<T>;
  constexpr int V = kPack<T>;
  if (!pieces.has(0)) return;
  const int at = pieces.pack();
  uint4 words[RowPieces::kDeep];
#pragma unroll
  for (int k = 0; k < RowPieces::kDeep; ++k) {
    words[k] = x[pieces.row_or_first(k) * pieces.x_stride + at];
  }
  const C p = C(numbers->p), q = C(numbers->q);
  C f[V], other[V];
#pragma unroll
  for (int e = 0; e < V; ++e) other[e] = left ? right[Index(at) * V + e] : C(0);
#pragma unroll
  for (int k = 0; k < RowPieces::kDeep; ++k) {
    if (!pieces.has(k)) continue;
    Pack<T>{words[k]}.widen(f);
    const C factor = left ? left[pieces.row(k)] : C(0);
#pragma unroll
    for (int e = 0; e < V; ++e) {
      f[e] = f[e] * p * q;
      if (left) f[e] = fused(factor, other[e], f[e]);
    }
    y[pieces.row(k) * pieces.y_stride + at] = Pack<T>::narrowed(f).bits;
  }
}

// The sum over a block, in thread 0.
__device__ inline double block_sum(double v) {
  double* slots = shared_memory();
#pragma unroll
  for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(0xffffffffu, v, d);
  if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = v;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < int(blockDim.x) / 32; ++w) v += slots[w];
  }
  return v;
}
__device__ inline Index block_number() { return Index(blockIdx.y) * gridDim.x + blockIdx.x; }

// parts [blocks]: <x, y> of the block's elements.
template <class T>
__global__ void inner_any(const T* x, MatrixAccess of_x, const T* y, MatrixAccess of_y,
                          Elements all, double* parts) {
  double sum = 0;
  all.each(
      [&](Index r, Index c) { sum += double(widen(x[of_x.at(r, c)]) * widen(y[of_y.at(r, c)])); });
  sum = block_sum(sum);
  if (threadIdx.x == 0) parts[block_number()] = sum;
}
template <class T>
__global__ void __launch_bounds__(kCrewThreads)
    inner_rows(const uint4* x, const uint4* y, RowPieces pieces, double* parts) {
  using C = Compute<T>;
  constexpr int V = kPack<T>;
  const bool some = pieces.has(0);
  uint4 a[RowPieces::kDeep], b[RowPieces::kDeep];
#pragma unroll
  for (int k = 0; k < RowPieces::kDeep; ++k) {
    a[k] = x[some ? pieces.row_or_first(k) * pieces.x_stride + pieces.pack() : 0];
    b[k] = y[some ? pieces.row_or_first(k) * pieces.y_stride + pieces.pack() : 0];
  }
  C sum = 0;
#pragma unroll
  for (int k = 0; k < RowPieces::kDeep; ++k) {
    if (!pieces.has(k)) continue;
    C f[V], g[V];
    Pack<T>{a[k]}.widen(f);
    Pack<T>{b[k]}.widen(g);
#pragma unroll
    for (int e = 0; e < V; ++e) sum = fused(f[e], g[e], sum);
  }
  const double total = block_sum(double(sum));
  if (threadIdx.x == 0) parts[block_number()] = total;
}

// From <w, dw> in parts: the factor, and the left vector [rows] of what is of rank 1.
template <class C>
__global__ void __launch_bounds__(kCrewThreads)
    settle_gradient(const double* parts, Index count, const double* sigma, double bound,
                    const C* vector, Index rows, PowerNumbers* numbers, C* left) {
  double sum = 0;
#pragma unroll 4
  for (Index i = threadIdx.x; i < count; i += kCrewThreads) sum += parts[i];
  sum = block_sum(sum);
  double* shared = shared_memory() + Crew::kWarps;
  if (threadIdx.x == 0) *shared = special::rank_one_factor(*sigma, bound, sum);
  __syncthreads();
  const double factor = *shared;
  for (Index r = threadIdx.x; r < rows; r += kCrewThreads) left[r] = C(factor * double(vector[r]));
  if (threadIdx.x == 0) {
    const special::Factor f(special::factor_of(*sigma, bound));
    numbers->p = f.p;
    numbers->q = f.q;
  }
}

}  // namespace normcore::cuda
