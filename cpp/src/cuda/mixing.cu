// Divisive norm and GDN on a device: y_i = g_i sgn(x_i) |x_i|^p D_i^(-e), D = b^q + W |x|^a over
// the channels of every pixel. All of it is computed in double: no power of a number of another
// type leaves its range, and devices of compute capability 8.0 and 9.0 are half as fast in it as in
// float.
//
// Tables have an element for each of x, channels or pixels behind each other as in x. Backward
// fills two, D and t = dL/dD, before anything is written that may lie over x or dy.
#include "cuda/special.cuh"
#include "cuda/special.h"
#include "special/mixing_formulas.h"

namespace normcore::cuda {
namespace {

constexpr int kRows = 64, kPixels = 64, kDepth = 32;  // of a tile of W |x|^a
constexpr int kRowsOfThread = kRows / kWarps;
// One more than a multiple of the banks, where the tile is written across.
constexpr int kPixelPitch = kPixels + 1, kRowPitch = kRows + 2;

struct Mixture {
  WindowAxes pixels;
  Index channels;
  Index step[3];  // from channel to channel: x, then y; or x, dy, dx
  bool last;      // channels are neighbours in memory
  const double *weights, *offset, *gain;
  double a, p, e;

  __device__ Index at(int operand, Index c, Index n) const {
    return pixels.at(operand, n) + c * step[operand];
  }
  __device__ Index in_table(Index c, Index n) const {
    return last ? n * channels + c : c * pixels.count + n;
  }
};

// What becomes of a product: y, the table of D, or from W^T t dx and the block's part of dL/da.
enum class Product { kY, kTable, kGradient };

template <class T, Product kWhat>
__global__ void product_kernel(Mixture m, const T* x, const T* dy, T* out, const double* d,
                               const double* t, double* table) {
  constexpr bool kBack = kWhat == Product::kGradient;
  double* u_tile = shared_memory();                                        // [kDepth][kPixelPitch]
  double* w_tile = u_tile + kDepth * kPixelPitch;                          // [kDepth][kRowPitch]
  Index* offsets = reinterpret_cast<Index*>(w_tile + kDepth * kRowPitch);  // [kPixels], of x
  const int thread = int(threadIdx.x), lane = thread % 32, warp = thread / 32;
  const Index first = Index(blockIdx.x) * kPixels, row0 = Index(blockIdx.y) * kRows;
  const Index n = m.channels, left = m.pixels.count - first;
  if (thread < kPixels && thread < left) offsets[thread] = m.pixels.at(0, first + thread);
  __syncthreads();

  double sum[kRowsOfThread][2];
  for (int r = 0; r < kRowsOfThread; ++r) {
    const Index row = row0 + warp * kRowsOfThread + r;
    sum[r][0] = sum[r][1] = kBack || row >= n ? 0 : m.offset[row];
  }
  for (Index j0 = 0; j0 < n; j0 += kDepth) {
#pragma unroll 4
    for (int i = thread; i < kDepth * kPixels; i += kBlock) {
      const int j = m.last ? i % kDepth : i / kPixels, p = m.last ? i / kDepth : i % kPixels;
      double v = 0;
      if (j0 + j < n && p < left) {
        if constexpr (kBack) {
          v = t[m.in_table(j0 + j, first + p)];
        } else {
          const double size = fabs(double(widen(x[offsets[p] + (j0 + j) * m.step[0]])));
          v = mixing::power(size, m.a);
        }
      }
      u_tile[j * kPixelPitch + p] = v;
    }
#pragma unroll 4
    for (int i = thread; i < kDepth * kRows; i += kBlock) {
      const int j = kBack ? i / kRows : i % kDepth, r = kBack ? i % kRows : i / kDepth;
      const bool inside = j0 + j < n && row0 + r < n;
      const Index at = kBack ? (j0 + j) * n + row0 + r : (row0 + r) * n + j0 + j;
      w_tile[j * kRowPitch + r] = inside ? m.weights[at] : 0;
    }
    __syncthreads();
    const int depth = n - j0 < kDepth ? int(n - j0) : kDepth;
    for (int j = 0; j < depth; ++j) {
      const double u0 = u_tile[j * kPixelPitch + lane], u1 = u_tile[j * kPixelPitch + lane + 32];
      const double* w = w_tile + j * kRowPitch + warp * kRowsOfThread;
#pragma unroll
      for (int r = 0; r < kRowsOfThread; ++r) {
        sum[r][0] = fused(w[r], u0, sum[r][0]);
        sum[r][1] = fused(w[r], u1, sum[r][1]);
      }
    }
    __syncthreads();
  }

  double a_sum = 0;
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    const int pixel = lane + 32 * k;
    if (pixel >= left) continue;
    const Index at_out = kWhat == Product::kTable ? 0 : m.pixels.at(kBack ? 2 : 1, first + pixel);
    const Index at_dy = kBack ? m.pixels.at(1, first + pixel) : 0;
#pragma unroll
    for (int r = 0; r < kRowsOfThread; ++r) {
      const Index c = row0 + warp * kRowsOfThread + r;
      if (c >= n) continue;
      const Index i = m.in_table(c, first + pixel);
      if constexpr (kWhat == Product::kTable) {
        table[i] = sum[r][k];
      } else {
        const double v = double(widen(x[offsets[pixel] + c * m.step[0]]));
        if constexpr (kWhat == Product::kY) {
          const double y =
              m.gain[c] * mixing::signed_power(v, m.p) * mixing::divisor_power(sum[r][k], v, m.e);
          out[at_out + c * m.step[1]] = narrow<T>(Compute<T>(y));
        } else {
          const double g = double(widen(dy[at_dy + c * m.step[1]]));
          const double direct = mixing::direct(g, v, d[i], m.gain[c], m.p, m.e);
          const double dx = fused(mixing::slope(v, m.a), sum[r][k], direct);
          out[at_out + c * m.step[2]] = narrow<T>(Compute<T>(dx));
          if (table) a_sum += sum[r][k] * mixing::slope_of_exponent(v, m.a);
        }
      }
    }
  }
  if (kBack && table) {
    const double total = block_total(a_sum, u_tile);
    if (thread == 0) table[Index(blockIdx.y) * gridDim.x + blockIdx.x] = total;
  }
}

// y from the table of D.
template <class T>
__global__ void divide_kernel(Mixture m, const T* x, T* y, const double* d) {
  const Index i = my_index();
  if (i >= m.channels * m.pixels.count) return;
  const Index c = m.last ? i % m.channels : i / m.pixels.count;
  const Index n = m.last ? i / m.channels : i % m.pixels.count;
  const double v = double(widen(x[m.at(0, c, n)]));
  const double value =
      m.gain[c] * mixing::signed_power(v, m.p) * mixing::divisor_power(d[i], v, m.e);
  y[m.at(1, c, n)] = narrow<T>(Compute<T>(value));
}

// t = dL/dD, and the sums of t, of what belongs to the gain, and to e, for each channel.
template <class T>
__global__ void terms_kernel(Mixture m, ChannelSums sums, const T* x, const T* dy, const double* d,
                             double* t, double* partial) {
  sums.run<3>(partial, [&](Index c, Index n, double (&to)[3]) {
    const double v = double(widen(x[m.at(0, c, n)])), g = double(widen(dy[m.at(1, c, n)]));
    const Index i = m.in_table(c, n);
    const mixing::Terms terms = mixing::terms(g, v, d[i], m.gain[c], m.p, m.e);
    t[i] = terms.d;
    to[0] += terms.d;
    to[1] += terms.gain;
    to[2] += terms.e;
  });
}

// dW = sum over the pixels of t u^T, u = |x|^a: a tile of it over the pixels of a split.
constexpr int kTile = 64, kRun = 16;  // channels, pixels at once
constexpr int kPitch = kTile + 1;
template <class T>
__global__ void outer_kernel(Mixture m, const T* x, const double* t, Index splits,
                             double* partial) {
  double* t_tile = shared_memory();  // [kRun][kPitch]
  double* u_tile = t_tile + kRun * kPitch;
  const Index n = m.channels, tiles = (n + kTile - 1) / kTile;
  const Index row0 = blockIdx.x / tiles * kTile, col0 = blockIdx.x % tiles * kTile;
  const Index split = blockIdx.y;
  const Index p0 = m.pixels.count * split / splits, p1 = m.pixels.count * (split + 1) / splits;
  const int thread = int(threadIdx.x), mine_r = thread / 16 * 4, mine_c = thread % 16;
  double sum[4][4] = {};
  for (Index p = p0; p < p1; p += kRun) {
#pragma unroll 4
    for (int i = thread; i < kRun * kTile; i += kBlock) {
      const int c = m.last ? i % kTile : i / kRun, q = m.last ? i / kTile : i % kRun;
      double left = 0, right = 0;
      if (p + q < p1) {
        if (row0 + c < n) left = t[m.in_table(row0 + c, p + q)];
        if (col0 + c < n) {
          right = mixing::power(fabs(double(widen(x[m.at(0, col0 + c, p + q)]))), m.a);
        }
      }
      t_tile[q * kPitch + c] = left;
      u_tile[q * kPitch + c] = right;
    }
    __syncthreads();
    const int run = p1 - p < kRun ? int(p1 - p) : kRun;
    for (int q = 0; q < run; ++q) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          sum[r][c] = fused(t_tile[q * kPitch + mine_r + r], u_tile[q * kPitch + mine_c + 16 * c],
                            sum[r][c]);
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < 4; ++r) {
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const Index row = row0 + mine_r + r, col = col0 + mine_c + 16 * c;
      if (row < n && col < n) partial[(split * n + row) * n + col] = sum[r][c];
    }
  }
}

__global__ void powers_kernel(const double* values, Index n, double exponent, double* out) {
  const Index i = my_index();
  if (i < n) out[i] = mixing::power(values[i], exponent);
}
// Gradients by b from those by b^q.
__global__ void chain_kernel(double* sums, const double* b, Index n, double q) {
  const Index i = my_index();
  if (i < n) sums[i] *= b[i] == 0 && q < 1 ? 0 : q * mixing::power(b[i], q - 1);
}

constexpr int kProductBytes =
    (kDepth * (kPixelPitch + kRowPitch)) * int(sizeof(double)) + kPixels * int(sizeof(Index));

// The parameters of a call, loaded.
struct Loaded {
  const double* b;  // the offset, to the power of 1
  Mixture m;

  Loaded(const MixingCall& call, const ConstTensor* const (&operands)[3], DeviceMemory& memory)
      : m{WindowAxes(operands, call.channel_axis, nullptr, nullptr),
          call.channels(),
          {},
          false,
          memory.load<double>(call.weights, whole_walk(call.weights)),
          nullptr,
          per_channel(call.gain, call.channels(), 1, memory),
          call.a,
          call.p,
          call.e} {
    for (int o = 0; o < 3; ++o) {
      m.step[o] = operands[o] ? operands[o]->stride(call.channel_axis) : 0;
    }
    m.last = m.step[0] == 1 && m.pixels.count > 1 && m.channels > 1;
    b = per_channel(call.offset, m.channels, 1, memory);
    m.offset = b;
    if (call.offset_power == 1) return;
    double* powers = memory.take<double>(m.channels);
    launch(one_each(m.channels), memory.stream(), powers_kernel, b, m.channels, call.offset_power,
           powers);
    m.offset = powers;
  }
  Launch products() const {
    return {ceil_div(m.pixels.count, Index(kPixels)), kBlock, kProductBytes, 1,
            ceil_div(m.channels, Index(kRows))};
  }
};

}  // namespace

void mix_forward(const MixingCall& call, const Tensor& y, const Context& context) {
  CallMemory of_call(context);
  auto& memory = static_cast<DeviceMemory&>(of_call.get());
  const ConstTensor out(y);
  const ConstTensor* const operands[] = {&call.x, &out, nullptr};
  const Loaded loaded(call, operands, memory);
  const Mixture& m = loaded.m;
  // Over x a block may write only what no other block reads.
  const bool direct = call.x.data() != y.data() || m.channels <= kRows;
  with_element_type(call.x.dtype(), [&]<class T>(T) {
    const T* x = static_cast<const T*>(call.x.data());
    T* to = static_cast<T*>(y.data());
    const T* no_dy = nullptr;
    const double* none = nullptr;
    double* no_table = nullptr;
    T* no_out = nullptr;
    if (direct) {
      return launch(loaded.products(), memory.stream(), product_kernel<T, Product::kY>, m, x, no_dy,
                    to, none, none, no_table);
    }
    double* d = memory.take<double>(call.x.size());
    launch(loaded.products(), memory.stream(), product_kernel<T, Product::kTable>, m, x, no_dy,
           no_out, none, none, d);
    launch(one_each(call.x.size()), memory.stream(), divide_kernel<T>, m, x, to,
           static_cast<const double*>(d));
  });
}

void mix_backward(const MixingCall& call, const ConstTensor& dy, const Tensor& dx,
                  const MixingTensors& gradients, const Context& context) {
  CallMemory of_call(context);
  auto& memory = static_cast<DeviceMemory&>(of_call.get());
  const ConstTensor out(dx);
  const ConstTensor* const operands[] = {&call.x, &dy, &out};
  const Loaded loaded(call, operands, memory);
  const Mixture& m = loaded.m;
  const Index n = m.channels, pixels = m.pixels.count;
  const ChannelSums channel_sums(n, pixels, m.last);
  const Index tiles = ceil_div(n, Index(kTile)) * ceil_div(n, Index(kTile));
  const Index most_splits = std::max<Index>(1, 512 / tiles);
  const Index splits = std::clamp<Index>(pixels / 1024, 1, most_splits);
  const Launch products = loaded.products();
  const Index blocks = std::max<Index>(1, products.blocks * products.blocks_y);
  double* d = memory.take<double>(call.x.size());
  double* t = memory.take<double>(call.x.size());
  double* partial = memory.take<double>(channel_sums.splits * 3 * n);
  double* sums = memory.take<double>(3 * n);
  double* outer = gradients.weights ? memory.take<double>(splits * n * n) : nullptr;
  double* weights = gradients.weights ? memory.take<double>(n * n) : nullptr;
  double* a_parts = gradients.a ? memory.take_filled<double>(blocks, 0.0) : nullptr;
  with_element_type(call.x.dtype(), [&]<class T>(T) {
    const T* x = static_cast<const T*>(call.x.data());
    const T* g = static_cast<const T*>(dy.data());
    T* to = static_cast<T*>(dx.data());
    const T* no_dy = nullptr;
    T* no_out = nullptr;
    const double* none = nullptr;
    launch(products, memory.stream(), product_kernel<T, Product::kTable>, m, x, no_dy, no_out, none,
           none, d);
    launch(channel_sums.launch_of(3), memory.stream(), terms_kernel<T>, m, channel_sums, x, g, d, t,
           partial);
    if (outer) {
      launch({tiles, kBlock, 2 * kRun * kPitch * int(sizeof(double)), 1, splits}, memory.stream(),
             outer_kernel<T>, m, x, t, splits, outer);
    }
    launch(products, memory.stream(), product_kernel<T, Product::kGradient>, m, x, g, to, d, t,
           a_parts);
  });
  launch(one_each(3 * n), memory.stream(), add_splits_kernel, partial, channel_sums.splits, 3 * n,
         sums);
  if (outer) {
    launch(one_each(n * n), memory.stream(), add_splits_kernel, outer, splits, n * n, weights);
    memory.store(weights, gradients.weights, whole_walk(gradients.weights));
  }
  if (gradients.offset && call.offset_power != 1) {
    launch(one_each(n), memory.stream(), chain_kernel, sums, loaded.b, n, call.offset_power);
  }
  store_per_channel(sums, n, gradients.offset, memory);
  store_per_channel(sums + n, n, gradients.gain, memory);
  if (gradients.e) {
    memory.scale(sums + 2 * n, n, gradients.sign_of_e);
    store_per_channel(sums + 2 * n, n, gradients.e, memory);
  }
  store_per_channel(a_parts, blocks, gradients.a, memory);
}

}  // namespace normcore::cuda
