// What the operations of special/ share on a device: where elements lie, sums over windows and over
// positions. Sums are of doubles, so that neither order nor magnitude of the elements matters.
#pragma once

#include <algorithm>

#include "cuda/elements.cuh"
#include "cuda/geometry.cuh"
#include "cuda/launch.h"
#include "cuda/reduce.cuh"
#include "cuda/summers.cuh"
#include "plan/plan.h"

namespace normcore::cuda {

inline constexpr int kBlock = 256;
inline constexpr int kWarps = kBlock / 32;

// Division of indices that the host knows the most of: by a multiplication where they are few.
struct IndexDivision {
  Index divisor = 1;
  bool few = false;
  Division quick;

  struct Parts {
    Index quotient, rest;
  };
  IndexDivision() = default;
  // Of numbers under `end`.
  IndexDivision(Index by, Index end) : divisor(by), few(is_few(by) && is_few(end)) {
    if (few) quick = Division(by);
  }
  __device__ Parts operator()(Index n) const {
    if (few) {
      const auto [quotient, rest] = quick(n);
      return {quotient, rest};
    }
    return {n / divisor, n % divisor};
  }
};

// Axes of x, outermost in memory first, and how far windows reach along each. Element i counts
// along them.
struct WindowAxes {
  int dims = 0;
  Index count = 1;
  Index size[kMostAxes], stride[3][kMostAxes];
  Index before[kMostAxes], after[kMostAxes];
  IndexDivision by_size[kMostAxes];

  WindowAxes() = default;
  // All axes of the first operand but `skip`. Absent operands are null.
  WindowAxes(const ConstTensor* const (&operands)[3], int skip, const Index* reach_before,
             const Index* reach_after) {
    const ConstTensor& x = *operands[0];
    int order[kMaxDims];
    const int ndim = sort_axes(x, order);
    for (int i = 0; i < x.ndim(); ++i) count *= i == skip ? 1 : x.shape(i);
    for (int i = 0; i < ndim; ++i) {
      const int axis = order[i];
      if (axis == skip || x.shape(axis) == 1) continue;
      const Index most = x.shape(axis) - 1;
      const Index b = reach_before ? std::min(reach_before[axis], most) : 0;
      const Index a = reach_after ? std::min(reach_after[axis], most) : 0;
      bool merges = dims > 0 && a + b == 0 && before[dims - 1] + after[dims - 1] == 0;
      for (int o = 0; merges && o < 3; ++o) {
        merges = !operands[o] ||
                 stride[o][dims - 1] == operands[o]->stride(axis) * operands[o]->shape(axis);
      }
      if (merges) {
        size[dims - 1] *= x.shape(axis);
      } else if (dims == kMostAxes) {
        throw value_error("x has more than 8 axes that do not merge, which CUDA refuses");
      } else {
        size[dims++] = x.shape(axis);
      }
      before[dims - 1] = b;
      after[dims - 1] = a;
      for (int o = 0; o < 3; ++o) {
        stride[o][dims - 1] = operands[o] ? operands[o]->stride(axis) : 0;
      }
    }
    for (int d = 0; d < dims; ++d) by_size[d] = IndexDivision(size[d], count);
  }
  bool windowed(int d) const { return before[d] + after[d] > 0; }
  __device__ Index at(int operand, Index i) const {
    Index offset = 0;
    for (int d = dims - 1; d > 0; --d) {
      const auto [rest, digit] = by_size[d](i);
      offset += digit * stride[operand][d];
      i = rest;
    }
    return dims > 0 ? offset + i * stride[operand][0] : 0;
  }
};

// Operands by channels and pixels: x, then y; or x, dy, dx.
struct ChannelLayout {
  WindowAxes pixels;
  Index channels = 0;
  Index step[3] = {};  // from channel to channel
  bool last = false;   // channels are neighbours in memory

  ChannelLayout() = default;
  ChannelLayout(const ConstTensor* const (&operands)[3], int axis, const Index* reach_before,
                const Index* reach_after)
      : pixels(operands, axis, reach_before, reach_after), channels(operands[0]->shape(axis)) {
    for (int o = 0; o < 3; ++o) step[o] = operands[o] ? operands[o]->stride(axis) : 0;
    last = step[0] == 1 && channels > 1 && pixels.count > 1;
  }
  __device__ Index at(int operand, Index c, Index n) const {
    return pixels.at(operand, n) + c * step[operand];
  }

  // Element i of so many pixels in the order of memory.
  struct Element {
    Index channel, pixel;
  };
  IndexDivision by_inner(Index n) const { return {last ? channels : n, n * channels}; }
  __device__ Element element(const IndexDivision& by_inner, Index i) const {
    const auto [outer, inner] = by_inner(i);
    return last ? Element{inner, outer} : Element{outer, inner};
  }
};

// ---- windows over a table of positions

// Each sum over how many elements its window has; or each element over how many its own has, which
// is the transposed of that.
enum class Share { kNone, kOfSum, kOfElement };

static __global__ void window_kernel(const double* from, double* to, Index total, Index n,
                                     Index inner, IndexDivision by_inner, IndexDivision by_n,
                                     Index before, Index after, Share share) {
  const Index i = my_index();
  if (i >= total) return;
  const Index at = by_n(by_inner(i).quotient).rest;
  // The transposed windows are symmetric ones, so these are also who reaches this element.
  const Index first = at - before < 0 ? 0 : at - before;
  const Index last = at + after < n ? at + after : n - 1;
  double sum = 0;
  for (Index j = first; j <= last; ++j) {
    double v = from[i + (j - at) * inner];
    if (share == Share::kOfElement) {
      v /= double((j + after < n ? j + after : n - 1) - (j - before < 0 ? 0 : j - before) + 1);
    }
    sum += v;
  }
  to[i] = share == Share::kOfSum ? sum / double(last - first + 1) : sum;
}

// Sums along all axes with a window, one after the other; mirrored: windows reach as far behind an
// element as they did before it. The result is in *table; *spare is scratch.
inline void sum_windows(const WindowAxes& axes, bool mirrored, Share share, double** table,
                        double** spare, cudaStream_t stream) {
  if (axes.count == 0) return;
  Index inner = axes.count;
  for (int d = 0; d < axes.dims; ++d) {
    inner /= axes.size[d];
    if (!axes.windowed(d)) continue;
    launch(one_each(axes.count), stream, window_kernel, *table, *spare, axes.count, axes.size[d],
           inner, IndexDivision(inner, axes.count), axes.by_size[d],
           mirrored ? axes.after[d] : axes.before[d], mirrored ? axes.before[d] : axes.after[d],
           share);
    std::swap(*table, *spare);
  }
}

// ---- sums per channel over positions

// A block sums 32 channels over the positions of its split.
struct ChannelSums {
  Index channels, positions, splits;
  bool last;  // channels are neighbours in memory

  ChannelSums(Index channels_, Index positions_, bool last_)
      : channels(channels_),
        positions(positions_),
        splits(std::clamp<Index>(positions_ / 1024, 1, 128)),
        last(last_) {}
  Launch launch_of(int sums) const {
    return {ceil_div(channels, Index(32)), kBlock, kBlock * sums * int(sizeof(double)), 1, splits};
  }

  // partial: [splits][K][channels]. f(channel, position, sums) adds to sums.
  template <int K, class F>
  __device__ void run(double* partial, F f) const {
    const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
    const Index first = Index(blockIdx.x) * 32, split = blockIdx.y;
    const Index p0 = positions * split / splits, p1 = positions * (split + 1) / splits;
    double* out = partial + split * K * channels;
    if (!last) {
      for (Index c = first + warp; c < channels && c < first + 32; c += kWarps) {
        double sums[K] = {};
        for (Index p = p0 + lane; p < p1; p += 32) f(c, p, sums);
        for (int k = 0; k < K; ++k) {
          for (int d = 16; d > 0; d /= 2) sums[k] += __shfl_xor_sync(0xffffffffu, sums[k], d);
          if (lane == 0) out[k * channels + c] = sums[k];
        }
      }
      return;
    }
    double sums[K] = {};
    const Index c = first + lane;
    for (Index p = p0 + warp; c < channels && p < p1; p += kWarps) f(c, p, sums);
    double* shared = shared_memory();
    for (int k = 0; k < K; ++k) shared[k * kBlock + threadIdx.x] = sums[k];
    __syncthreads();
    if (warp > 0 || c >= channels) return;
    for (int k = 0; k < K; ++k) {
      double sum = 0;
      for (int w = 0; w < kWarps; ++w) sum += shared[k * kBlock + w * 32 + lane];
      out[k * channels + c] = sum;
    }
  }
};

// out[i] = sum over the splits of partial [splits][n], in their order.
[[maybe_unused]] static __global__ void add_splits_kernel(const double* partial, Index splits,
                                                          Index n, double* out) {
  const Index i = my_index();
  if (i >= n) return;
  double sum = 0;
  for (Index s = 0; s < splits; ++s) sum += partial[s * n + i];
  out[i] = sum;
}

// For thread 0: the sum of all threads of the block, in a fixed order; shared: kBlock doubles.
__device__ inline double block_total(double v, double* shared) {
  shared[threadIdx.x] = v;
  for (int d = kBlock / 2; d > 0; d /= 2) {
    __syncthreads();
    if (int(threadIdx.x) < d) shared[threadIdx.x] += shared[threadIdx.x + d];
  }
  return shared[threadIdx.x];
}

// (channels,) from an array of it, one value, or none.
inline const double* per_channel(const ConstTensor& t, Index channels, double absent,
                                 Memory& memory) {
  if (!t) return memory.take_filled<double>(channels, absent);
  Walk w;
  w.append(channels, t.size() == 1 ? 0 : t.stride(0));
  return memory.load<double>(t, w);
}
// Sums over the channels to a gradient, which may be of a single value.
inline void store_per_channel(const double* sums, Index channels, const Tensor& to,
                              Memory& memory) {
  if (!to) return;
  if (to.size() == 1 && channels > 1) {
    double* one = memory.take<double>(1);
    memory.sum_each(sums, 1, channels, one);
    sums = one;
  }
  memory.store(sums, to, whole_walk(to));
}

}  // namespace normcore::cuda
