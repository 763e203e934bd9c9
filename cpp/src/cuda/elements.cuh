// Storage types of the device, and packs of 16 bytes of them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "normcore/dtype.h"
#include "pipeline/arguments.h"
#include "plan/round_to_odd.h"

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
__device__ T narrow_double(double v) {
  return narrow<T>(sizeof(T) == 2 ? Compute<T>(round_to_odd(v)) : Compute<T>(v));
}

template <class T>
inline constexpr DType kDTypeOf = std::is_same_v<T, __half>          ? DType::kFloat16
                                  : std::is_same_v<T, __nv_bfloat16> ? DType::kBFloat16
                                                                     : DTypeOf<Compute<T>>::value;

// a * b + c, rounded once. Kernels are compiled without contraction (-fmad=false), and say where
// they want it: all instances of a kernel, and the emulation, then give the same bits.
__device__ inline float fused(float a, float b, float c) { return fmaf(a, b, c); }
__device__ inline double fused(double a, double b, double c) { return fma(a, b, c); }

template <class T>
inline constexpr int kPack = 16 / int(sizeof(T));

// kPack elements as the words that move together. They are taken apart where they are used, not
// where they are loaded: only so do several loads of a thread wait at the same time.
template <class T>
struct Pack {
  uint4 bits;

  __device__ void widen(Compute<T> (&f)[kPack<T>]) const {
    const unsigned w[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, double>) {
        if (i < 2) f[i] = __hiloint2double(int(w[2 * i + 1]), int(w[2 * i]));
      } else if constexpr (std::is_same_v<T, float>) {
        f[i] = __uint_as_float(w[i]);
      } else if constexpr (std::is_same_v<T, __nv_bfloat16>) {
        f[2 * i] = __uint_as_float(w[i] << 16);
        f[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
      } else {
        __half2 pair;
        memcpy(&pair, &w[i], 4);
        f[2 * i] = __low2float(pair);
        f[2 * i + 1] = __high2float(pair);
      }
    }
  }
  // Each rounded once, to nearest even.
  __device__ static Pack narrowed(const Compute<T> (&f)[kPack<T>]) {
    unsigned w[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if constexpr (std::is_same_v<T, double>) {
        w[i] = unsigned(i % 2 ? __double2hiint(f[i / 2]) : __double2loint(f[i / 2]));
      } else if constexpr (std::is_same_v<T, float>) {
        w[i] = __float_as_uint(f[i]);
      } else {
        std::conditional_t<std::is_same_v<T, __half>, __half2, __nv_bfloat162> pair;
        if constexpr (std::is_same_v<T, __half>) {
          pair = __floats2half2_rn(f[2 * i], f[2 * i + 1]);
        } else {
          pair = __floats2bfloat162_rn(f[2 * i], f[2 * i + 1]);
        }
        memcpy(&w[i], &pair, 4);
      }
    }
    return {{w[0], w[1], w[2], w[3]}};
  }
  // All elements alike.
  __device__ static Pack filled(Compute<T> value) {
    Compute<T> f[kPack<T>];
#pragma unroll
    for (Compute<T>& v : f) v = value;
    return narrowed(f);
  }
};

// 16 bytes on their boundary, without a branch: what is not `inside` stays as it is. kStream: they
// are read once, and give way to what is read again.
template <bool kStream>
__device__ void load_words(const void* from, bool inside, uint4& bits) {
  if (!inside) return;
  bits = kStream ? __ldcs(static_cast<const uint4*>(from)) : *static_cast<const uint4*>(from);
}
__device__ inline void store_words(void* to, const uint4& bits) {
  __stcs(static_cast<uint4*>(to), bits);
}

// 16 bytes on their way into shared memory, where they need no register to wait in; zeros where not
// `inside`. A thread waits for its own copies, and may then read what they brought.
__device__ inline void copy_words_async(void* shared, const void* from, bool inside) {
#if defined(__CUDA_ARCH__) && defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(
                   unsigned(__cvta_generic_to_shared(shared))),
               "l"(from), "r"(inside ? 16 : 0)
               : "memory");
#else
  uint4 bits{};
  if (inside) bits = *static_cast<const uint4*>(from);
  *static_cast<uint4*>(shared) = bits;
#endif
}
// Ends a group of copies, and waits until no more than the newest kGroups of them are on their way.
__device__ inline void end_of_copies() {
#if defined(__CUDA_ARCH__) && defined(__CUDACC__)
  asm volatile("cp.async.commit_group;\n" ::: "memory");
#endif
}
template <int kGroups>
__device__ void wait_for_copies() {
#if defined(__CUDA_ARCH__) && defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kGroups) : "memory");
#endif
}

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

// Elements [first, first + kPack) of a row of n that lies anywhere; zeros beyond its end. Which
// elements a thread holds does not depend on where the row begins, so neither do the bits of its
// sums.
template <class T>
__device__ Pack<T> load_pack(const T* row, int first, int n) {
  constexpr int V = kPack<T>;
  const T* from = row + first;
  if (first + V <= n && on_pack_boundary(from)) {
    return {*reinterpret_cast<const uint4*>(from)};
  }
  // Off the boundary, away from the ends of the row: two packs that lie on it.
  if (first >= V && first + 2 * V <= n) {
    const unsigned past = unsigned(reinterpret_cast<std::uintptr_t>(from) % 16);
    const auto* packs = reinterpret_cast<const uint4*>(reinterpret_cast<const char*>(from) - past);
    return {shifted(packs[0], packs[1], past)};
  }
  T elements[V];
#pragma unroll
  for (int e = 0; e < V; ++e) {
    elements[e] = first + e < n ? from[e] : narrow<T>(Compute<T>(0));
  }
  Pack<T> pack;
  memcpy(&pack, elements, 16);
  return pack;
}
template <class T>
__device__ void store_pack(T* row, int first, int n, const Pack<T>& pack) {
  if (first + kPack<T> <= n && on_pack_boundary(row + first)) {
    *reinterpret_cast<uint4*>(row + first) = pack.bits;
    return;
  }
  T elements[kPack<T>];
  memcpy(elements, &pack, 16);
#pragma unroll
  for (int e = 0; e < kPack<T>; ++e) {
    if (first + e < n) row[first + e] = elements[e];
  }
}

// As store_pack, for all lanes of a warp at once; `lanes` of them follow each other along a row.
// Off the boundary a lane writes the pack that begins on it: the end of its own and the start of
// the next lane's. What has no such partner goes element by element.
template <class T>
__device__ void store_pack_by_warp(T* row, int first, int n, const Pack<T>& pack, int lanes) {
  constexpr int V = kPack<T>;
  const auto past = unsigned(reinterpret_cast<std::uintptr_t>(row + first) % 16);
  if (!__any_sync(0xffffffffu, past != 0 && first < n)) {
    store_pack(row, first, n, pack);
    return;
  }
  const uint4 own = pack.bits;
  uint4 next;
  next.x = __shfl_down_sync(0xffffffffu, own.x, 1);
  next.y = __shfl_down_sync(0xffffffffu, own.y, 1);
  next.z = __shfl_down_sync(0xffffffffu, own.z, 1);
  next.w = __shfl_down_sync(0xffffffffu, own.w, 1);
  // In place, a lane writes what the next one has read: a shuffle orders no memory.
  __syncwarp();
  if (first >= n) return;
  if (past == 0) {
    store_pack(row, first, n, pack);
    return;
  }
  const int lane = int(threadIdx.x) % lanes, skip = int((16 - past) / sizeof(T));
  const bool before = lane > 0 && first >= V && first + skip <= n;  // the lane before has my start
  const bool after = lane + 1 < lanes && first + skip + V <= n;
  if (after) {
    *reinterpret_cast<uint4*>(row + first + skip) = shifted(own, next, 16 - past);
  }
  T elements[V];
  memcpy(elements, &pack, 16);
#pragma unroll
  for (int e = 0; e < V; ++e) {
    if (first + e < n && !(e < skip ? before : after)) row[first + e] = elements[e];
  }
}

// A parameter by element, as it lies in the caller's memory: T or the compute type of T, in order.
// Null: all are `missing`.
struct ElementValues {
  const void* data;
  double missing;
};

// The place of element i, of an array that may be absent: to a null pointer nothing may be added.
template <class T>
__device__ const T* place_of(const T* data, int i) {
  return data ? data + i : data;
}

// The parameters of the elements [first, first + V) of a row of n; kWhole: whole packs.
template <bool kWhole, class W, int V>
__device__ void load_parameters(const ElementValues& values, int first, int n,
                                Compute<W> (&out)[V]) {
  constexpr int U = kPack<W>;
  const auto* data = static_cast<const W*>(values.data);
#pragma unroll
  for (int e = 0; e < V; e += U) {
    Pack<W> pack = Pack<W>::filled(Compute<W>(values.missing));
    if (kWhole) {
      load_words<false>(place_of(data, first + e), data && first < n, pack.bits);
    } else if (data) {
      pack = load_pack(data, first + e, n);
    }
    Compute<W> f[U];
    pack.widen(f);
#pragma unroll
    for (int j = 0; j < U; ++j) out[e + j] = f[j];
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

// A Column to read; all are `missing` where data is null.
struct Source {
  const void* data = nullptr;
  DType dtype = DType::kFloat64;
  Index stride = 1;
  double missing = 0;

  __host__ __device__ explicit operator bool() const { return data != nullptr; }
  __device__ double operator()(Index i) const {
    if (!data) return missing;
    switch (dtype) {
      case DType::kFloat64:
        return static_cast<const double*>(data)[i * stride];
      case DType::kFloat32:
        return double(static_cast<const float*>(data)[i * stride]);
      case DType::kFloat16:
        return double(widen(static_cast<const __half*>(data)[i * stride]));
      case DType::kBFloat16:
        return double(widen(static_cast<const __nv_bfloat16*>(data)[i * stride]));
    }
    return missing;
  }
};

__device__ inline void put(const Column& to, Index i, double value) {
  switch (to.dtype) {
    case DType::kFloat64:
      static_cast<double*>(to.data)[i * to.stride] = value;
      break;
    case DType::kFloat32:
      static_cast<float*>(to.data)[i * to.stride] = float(value);
      break;
    case DType::kFloat16:
      static_cast<__half*>(to.data)[i * to.stride] = narrow_double<__half>(value);
      break;
    case DType::kBFloat16:
      static_cast<__nv_bfloat16*>(to.data)[i * to.stride] = narrow_double<__nv_bfloat16>(value);
  }
}

__device__ inline void write_statistics(const StatisticsColumns& out, Index i, double mean,
                                        double var, double rstd) {
  if (out.mean.data) put(out.mean, i, mean);
  if (out.var.data) put(out.var, i, var);
  if (out.rstd.data) put(out.rstd, i, rstd);
  if (out.pooled_mean.data) {
    put(out.pooled_mean, i, mean);
    put(out.pooled_var, i, var);
  }
}

}  // namespace normcore::cuda
