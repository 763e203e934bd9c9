// Local response normalization with windows along the channels: a block has a tile of pixels with
// their channels in shared memory.
#pragma once

#include "cuda/special.cuh"
#include "special/numbers.h"
#include "special/response_formulas.h"

namespace normcore::cuda {

inline constexpr int kPixels = 32;  // of a tile
inline constexpr int kPitch = kPixels + 1;

struct ChannelTile : ChannelLayout {
  Index segment;  // channels that a block writes
  Index before, after;
};

// The formulas' powers for any exponent.
template <class C>
__device__ response::Powers<Numbers<C>> response_powers(C d, C beta) {
  return response::with_exponent(beta, [&]<response::Exponent kExponent>() {
    return response::powers<Numbers<C>, kExponent>(d, beta);
  });
}

// Calls f(channel, pixel) for channels [c0, c1) of the tile, in the order of memory.
template <bool kLast, class F>
__device__ void each_element(Index c0, Index c1, int count, F f) {
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  if constexpr (kLast) {
    for (int p = warp; p < count; p += kWarps) {
      for (Index c = c0 + lane; c < c1; c += 32) f(c, p);
    }
  } else {
    if (lane >= count) return;
    for (Index c = c0 + warp; c < c1; c += kWarps) f(c, lane);
  }
}

// The same in two steps, use(channel, pixel, load(channel, pixel)), so that several loads of a
// thread wait together.
template <bool kLast, class Load, class Use>
__device__ void each_loaded(Index c0, Index c1, int count, Load load, Use use) {
  constexpr int kTogether = kPixels / kWarps;
  const int lane = int(threadIdx.x) % 32, warp = int(threadIdx.x) / 32;
  // A lane has pixels of one channel, or channels of one pixel.
  for (Index c = c0 + (kLast ? lane : warp); c < c1; c += kLast ? 32 : kWarps * kTogether) {
    auto channel = [&](int k) { return kLast ? c : c + k * kWarps; };
    auto pixel = [&](int k) { return kLast ? warp + k * kWarps : lane; };
    auto is_there = [&](int k) { return channel(k) < c1 && pixel(k) < count; };
    decltype(load(c, 0)) v[kTogether] = {};
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (is_there(k)) v[k] = load(channel(k), pixel(k));
    }
#pragma unroll
    for (int k = 0; k < kTogether; ++k) {
      if (is_there(k)) use(channel(k), pixel(k), v[k]);
    }
  }
}

template <class T, bool kBackward, bool kLast>
__global__ void channels_kernel(ChannelTile g, const T* x, const T* dy, T* out, ResponseFormula f) {
  using C = Compute<T>;
  constexpr int kOut = kBackward ? 2 : 1;
  const Index first = Index(blockIdx.x) * kPixels;
  const int count = int(g.pixels.count - first < kPixels ? g.pixels.count - first : kPixels);
  const Index c0 = Index(blockIdx.y) * g.segment;
  const Index c1 = c0 + g.segment < g.channels ? c0 + g.segment : g.channels;
  auto low = [](Index c) { return c < 0 ? 0 : c; };
  auto high = [&](Index c) { return c < g.channels ? c : g.channels; };
  // Terms of channels [t0, t1) reach these; squares of [s0, s1) reach those.
  const Index t0 = kBackward ? low(c0 - g.after) : c0, t1 = kBackward ? high(c1 + g.before) : c1;
  const Index s0 = low(t0 - g.before), s1 = high(t1 + g.after);

  Index* offsets = reinterpret_cast<Index*>(shared_memory());  // [3][kPixels]
  double* terms = reinterpret_cast<double*>(offsets + 3 * kPixels);
  C* direct = reinterpret_cast<C*>(terms + (kBackward ? (t1 - t0) * kPitch : 0));
  C* values = direct + (kBackward ? (t1 - t0) * kPitch : 0);
  if (int(threadIdx.x) < count) {
    for (int o = 0; o <= kOut; ++o) {
      offsets[o * kPixels + threadIdx.x] = g.pixels.at(o, first + threadIdx.x);
    }
  }
  __syncthreads();
  auto at = [&](int o, Index c, int p) { return offsets[o * kPixels + p] + c * g.step[o]; };
  each_loaded<kLast>(
      s0, s1, count, [&](Index c, int p) { return widen(x[at(0, c, p)]); },
      [&](Index c, int p, C v) { values[(c - s0) * kPitch + p] = v; });
  if constexpr (kBackward) {  // dy, until what is direct takes its place
    each_loaded<kLast>(
        t0, t1, count, [&](Index c, int p) { return widen(dy[at(1, c, p)]); },
        [&](Index c, int p, C v) { direct[(c - t0) * kPitch + p] = v; });
  }
  __syncthreads();

  // use(powers of the divisor) of channel c's window, in float where its range allows it.
  auto divisor = [&](Index c, int p, auto use) {
    const Index q0 = low(c - g.before), q1 = high(c + g.after + 1);
    C sum = 0;
    for (Index q = q0; q < q1; ++q) {
      const C v = values[(q - s0) * kPitch + p];
      sum = fused(v, v, sum);
    }
    if (sizeof(C) == 8 || double(sum) <= f.limit) {
      return use(
          response_powers(response::divisor<Numbers<C>>(sum, C(f.scale), C(f.k)), C(f.beta)));
    }
    double wide = 0;
    for (Index q = q0; q < q1; ++q) {
      const double v = double(values[(q - s0) * kPitch + p]);
      wide = fused(v, v, wide);
    }
    use(response_powers(response::divisor<Numbers<double>>(wide, f.scale, f.k), f.beta));
  };
  if constexpr (!kBackward) {
    each_element<kLast>(c0, c1, count, [&](Index c, int p) {
      const C v = values[(c - s0) * kPitch + p];
      divisor(c, p, [&](auto of_d) { out[at(kOut, c, p)] = narrow<T>(C(v * of_d.power)); });
    });
  } else {
    each_element<kLast>(t0, t1, count, [&](Index c, int p) {
      const Index i = (c - t0) * kPitch + p;
      const C v = values[(c - s0) * kPitch + p], gradient = direct[i];
      divisor(c, p, [&](auto of_d) {
        // A term may be too small for float, and what multiplies it as large.
        const auto t = response::terms<Numbers<double>>(double(gradient), double(v),
                                                        {double(of_d.power), double(of_d.inverse)});
        direct[i] = C(t.direct);
        terms[i] = t.shared;
      });
    });
    __syncthreads();
    each_element<kLast>(c0, c1, count, [&](Index c, int p) {
      const Index q0 = low(c - g.after), q1 = high(c + g.before + 1);
      double sum = 0;
      for (Index q = q0; q < q1; ++q) sum += terms[(q - t0) * kPitch + p];
      const double v = double(values[(c - s0) * kPitch + p]);
      const double of_y = double(direct[(c - t0) * kPitch + p]);
      const double dx = response::grad<Numbers<double>>(of_y, v, 2 * f.beta * f.scale, sum);
      out[at(kOut, c, p)] = narrow_double<T>(dx);
    });
  }
}

}  // namespace normcore::cuda
