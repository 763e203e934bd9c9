// Storage types of the device, and packs of 16 bytes of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "normcore/dtype.h"

namespace normcore::cuda {

template <class T>
struct ComputeOf {
  using type = float;
};
template <>
struct ComputeOf<double> {
  using type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::type;

__device__ inline float widen(float v) { return v; }
__device__ inline double widen(double v) { return v; }
__device__ inline float widen(__half v) { return __half2float(v); }
__device__ inline float widen(__nv_bfloat16 v) { return __bfloat162float(v); }

// One rounding, to nearest even.
template <class T>
__device__ T narrow(Compute<T> v) {
  if constexpr (std::is_same_v<T, __half>) {
    return __float2half_rn(v);
  } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return __float2bfloat16_rn(v);
  } else {
    return v;
  }
}

template <class T>
inline constexpr int kPack = 16 / int(sizeof(T));

// kPack elements, moved as one.
template <class T>
struct alignas(16) Pack {
  T at[kPack<T>];
};

template <class T>
__device__ bool on_pack_boundary(const T* p) {
  return reinterpret_cast<std::uintptr_t>(p) % 16 == 0;
}
// The 16 bytes that begin `bytes` (a multiple of 2, under 16) into two neighbouring packs.
__device__ inline uint4 shifted(uint4 low, uint4 high, unsigned bytes) {
  unsigned w[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
  for (int i = 0; i < 6; ++i) w[i] = bytes & 8 ? w[i + 2] : w[i];
#pragma unroll
  for (int i = 0; i < 5; ++i) w[i] = bytes & 4 ? w[i + 1] : w[i];
  const unsigned bits = bytes % 4 * 8;
  return {__funnelshift_r(w[0], w[1], bits), __funnelshift_r(w[1], w[2], bits),
          __funnelshift_r(w[2], w[3], bits), __funnelshift_r(w[3], w[4], bits)};
}

// Elements [first, first + kPack) of a row of n; zeros beyond its end. Which elements a thread
// holds does not depend on where the row begins, so neither do the bits of its sums.
template <class T>
__device__ Pack<T> load_pack(const T* row, Index first, Index n) {
  constexpr int V = kPack<T>;
  Pack<T> pack;
  const T* from = row + first;
  if (first + V <= n && on_pack_boundary(from)) {
    return *reinterpret_cast<const Pack<T>*>(from);
  }
  // Off the boundary, away from the ends of the row: two packs that lie on it.
  if (first >= V && first + 2 * V <= n) {
    const unsigned past = unsigned(reinterpret_cast<std::uintptr_t>(from) % 16);
    const auto* packs = reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(from) - past);
    const uint4 bits = shifted(packs[0], packs[1], past);
    memcpy(&pack, &bits, 16);
    return pack;
  }
#pragma unroll
  for (int e = 0; e < V; ++e) {
    pack.at[e] = first + e < n ? from[e] : narrow<T>(Compute<T>(0));
  }
  return pack;
}
template <class T>
__device__ void store_pack(T* row, Index first, Index n, const Pack<T>& pack) {
  if (first + kPack<T> <= n && on_pack_boundary(row + first)) {
    *reinterpret_cast<Pack<T>*>(row + first) = pack;
    return;
  }
#pragma unroll
  for (int e = 0; e < kPack<T>; ++e) {
    if (first + e < n) row[first + e] = pack.at[e];
  }
}

// As store_pack, for all lanes of a warp at once; `lanes` of them follow each other along a row.
// Off the boundary a lane writes the pack that begins on it: the end of its own and the start of
// the next lane's. What has no such partner goes element by element.
template <class T>
__device__ void store_pack_by_warp(T* row, Index first, Index n, const Pack<T>& pack, int lanes) {
  constexpr int V = kPack<T>;
  const auto past = unsigned(reinterpret_cast<std::uintptr_t>(row + first) % 16);
  if (!__any_sync(0xffffffffu, past != 0 && first < n)) {
    store_pack(row, first, n, pack);
    return;
  }
  uint4 own, next;
  memcpy(&own, &pack, 16);
  next.x = __shfl_down_sync(0xffffffffu, own.x, 1);
  next.y = __shfl_down_sync(0xffffffffu, own.y, 1);
  next.z = __shfl_down_sync(0xffffffffu, own.z, 1);
  next.w = __shfl_down_sync(0xffffffffu, own.w, 1);
  if (first >= n) return;
  if (past == 0) {
    store_pack(row, first, n, pack);
    return;
  }
  const int lane = int(threadIdx.x) % lanes, skip = int((16 - past) / sizeof(T));
  const bool before = lane > 0 && first >= V && first + skip <= n;  // the lane before has my start
  const bool after = lane + 1 < lanes && first + skip + V <= n;
  if (after) {
    const uint4 bits = shifted(own, next, 16 - past);
    Pack<T> joined;
    memcpy(&joined, &bits, 16);
    *reinterpret_cast<Pack<T>*>(row + first + skip) = joined;
  }
#pragma unroll
  for (int e = 0; e < V; ++e) {
    if (first + e < n && !(e < skip ? before : after)) row[first + e] = pack.at[e];
  }
}

// The parameters of the elements [first, first + V) of a row of n.
template <int V, class C>
__device__ void load_parameters(const C* parameters, Index first, Index n, C (&out)[V]) {
#pragma unroll
  for (int e = 0; e < V; e += kPack<C>) {
    const Pack<C> pack = load_pack(parameters, first + e, n);
#pragma unroll
    for (int j = 0; j < kPack<C>; ++j) out[e + j] = pack.at[j];
  }
}

// f(a value of the storage type of dtype).
template <class F>
void with_element_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kFloat64:
      return f(double{});
    case DType::kFloat32:
      return f(float{});
    case DType::kFloat16:
      return f(__half{});
    case DType::kBFloat16:
      return f(__nv_bfloat16{});
  }
}

}  // namespace normcore::cuda
