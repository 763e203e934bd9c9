// The vector shim: loads, stores and conversions between storage types and vectors of the compute
// type, on the vector extensions of GCC and Clang. Included only by the kernel sources, one per
// ISA. All of it sits in an anonymous namespace inside a namespace per ISA, and it uses nothing of
// the standard library: an inline function shared by two sources of different flags could be taken
// from the wrong one by the linker and fault on an older CPU.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/shuffle.h"

#if defined(__SSE2__) && !defined(NORMCORE_KERNELS_GENERIC)
#include <immintrin.h>
#define NORMCORE_X86 1
#elif defined(__aarch64__) && !defined(NORMCORE_KERNELS_GENERIC)
// Of armv8-a nothing is optional that is used here: fused multiply-adds, roots and conversions of
// float16 are in all of them.
#include <arm_neon.h>
#define NORMCORE_NEON 1
#endif

#define SI [[gnu::always_inline]] inline

namespace normcore::cpu::NORMCORE_ISA {
namespace {

struct BF16 {
  std::uint16_t bits;
};
struct F16 {
  std::uint16_t bits;
};

#if defined(NORMCORE_X86) && defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(NORMCORE_X86) && defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

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

template <class C>
constexpr int kLanes = kBytes / int(sizeof(C));

template <class E, int N>
struct VecOf {
  typedef E reg __attribute__((vector_size(N * sizeof(E))));
  typedef E mem __attribute__((vector_size(N * sizeof(E)), aligned(alignof(E)), may_alias));
};
template <class C>
using Vec = typename VecOf<C, kLanes<C>>::reg;

using F32 = Vec<float>;
using U32 = typename VecOf<std::uint32_t, kLanes<float>>::reg;

// How much of a vector a step of a sweep covers. Stream: all of it, stored past the caches.
struct Full {};
struct Stream {};
struct Part {
  int lanes;  // 1 .. kLanes - 1
};
// The first and the second of two neighbouring vectors that may share out their elements in any
// way, as sums of all of them do.
struct FirstOfTwo : Full {};
struct SecondOfTwo : Full {};

template <class C>
SI Vec<C> splat(C v) {
  return v - Vec<C>{};
}

// Whether a multiply-add is one instruction, rounded once.
#if defined(NORMCORE_X86) && defined(__FMA__)
constexpr bool kFused = true;
#elif !defined(NORMCORE_X86) && defined(__FP_FAST_FMA)
constexpr bool kFused = true;
#else
constexpr bool kFused = false;
#endif

// a * b + c, rounded once where the instruction set can. Contraction by the compiler is switched
// off: it may differ between two copies of one loop, and with it the bits of a row.
template <class C>
SI Vec<C> fma(Vec<C> a, Vec<C> b, Vec<C> c) {
#if defined(NORMCORE_X86) && defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) {
    return (Vec<C>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
  } else {
    return (Vec<C>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
  }
#elif defined(NORMCORE_X86) && defined(__FMA__)
  if constexpr (sizeof(C) == 4) {
    return (Vec<C>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
  } else {
    return (Vec<C>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
  }
#elif defined(NORMCORE_NEON)
  if constexpr (sizeof(C) == 4) {
    return (Vec<C>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
  } else {
    return (Vec<C>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
  }
#elif defined(__FP_FAST_FMA)
  for (int i = 0; i < kLanes<C>; ++i) {
    c[i] = sizeof(C) == 4 ? __builtin_fmaf(a[i], b[i], c[i]) : __builtin_fma(a[i], b[i], c[i]);
  }
  return c;
#else
  return a * b + c;
#endif
}

template <class To, class From>
SI To bitcast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  return (To)v;
}

template <class E, int N>
SI typename VecOf<E, N / 2>::reg fold_halves(typename VecOf<E, N>::reg v) {
  typename VecOf<E, N / 2>::reg half[2];
  __builtin_memcpy(half, &v, sizeof(v));
  return half[0] + half[1];
}
// Sum of the lanes, by halves: few steps, and the same order on every run.
template <class E, int N>
SI E sum_lanes(typename VecOf<E, N>::reg v) {
  if constexpr (N == 2) {
    return v[0] + v[1];
  } else {
    return sum_lanes<E, N / 2>(fold_halves<E, N>(v));
  }
}
template <class E, int N>
SI typename VecOf<E, 4>::reg to_quad(typename VecOf<E, N>::reg v) {
  if constexpr (N == 4) {
    return v;
  } else {
    return to_quad<E, N / 2>(fold_halves<E, N>(v));
  }
}
template <class C>
SI C hsum(Vec<C> v) {
  return sum_lanes<C, kLanes<C>>(v);
}

// Sums of the lanes of four vectors, in the order of hsum: steps that halve and put side by side.
template <class C>
SI void hsum4(const Vec<C> (&v)[4], C (&out)[4]) {
  constexpr Index N = kLanes<C>;
  if constexpr (N == 16) {
    auto halves = [](Vec<C> a, Vec<C> b) __attribute__((always_inline)) {
      return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
             __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30,
                                     31);
    };
    const Vec<C> a = halves(v[0], v[1]), b = halves(v[2], v[3]);
    // A quarter of each, and in these the lanes two and one further on.
    Vec<C> s =
        __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
        __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
    s += __builtin_shufflevector(s, s, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    s += __builtin_shufflevector(s, s, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    // The four in front; GCC 11 shuffles to vectors of as many lanes alone.
    const Vec<C> sums =
        __builtin_shufflevector(s, s, 0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    __builtin_memcpy(out, &sums, sizeof(out));
  } else if constexpr (N >= 4) {
    using Quad = typename VecOf<C, 4>::reg;
    Quad q[4];
    for (int i = 0; i < 4; ++i) q[i] = to_quad<C, kLanes<C>>(v[i]);
    Quad lo01 = __builtin_shufflevector(q[0], q[1], 0, 1, 4, 5);
    Quad hi01 = __builtin_shufflevector(q[0], q[1], 2, 3, 6, 7);
    Quad lo23 = __builtin_shufflevector(q[2], q[3], 0, 1, 4, 5);
    Quad hi23 = __builtin_shufflevector(q[2], q[3], 2, 3, 6, 7);
    Quad s01 = lo01 + hi01, s23 = lo23 + hi23;
    Quad even = __builtin_shufflevector(s01, s23, 0, 2, 4, 6);
    Quad odd = __builtin_shufflevector(s01, s23, 1, 3, 5, 7);
    Quad sums = even + odd;
    __builtin_memcpy(out, &sums, sizeof(sums));
  } else {
    for (int i = 0; i < 4; ++i) out[i] = hsum<C>(v[i]);
  }
}

// Whether a comparison holds in any lane.
template <class M>
SI bool any_lane(M mask) {
#if defined(NORMCORE_X86) && defined(__AVX512F__)
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(NORMCORE_X86) && defined(__AVX2__)
  return _mm256_testz_si256((__m256i)mask, (__m256i)mask) == 0;
#elif defined(NORMCORE_NEON)
  return vmaxvq_u32((uint32x4_t)mask) != 0;
#else
  std::uint64_t words[sizeof(M) / 8], all = 0;
  __builtin_memcpy(words, &mask, sizeof(M));
  for (const std::uint64_t word : words) all |= word;
  return all != 0;
#endif
}

// The largest of all lanes of four vectors, if it is more than 0. A NaN is passed over.
template <class C>
SI C largest_lane(const Vec<C> (&v)[4]) {
#if defined(NORMCORE_NEON)
  if constexpr (sizeof(C) == 4) {
    const float32x4_t low = vmaxnmq_f32((float32x4_t)v[0], (float32x4_t)v[1]);
    const float32x4_t high = vmaxnmq_f32((float32x4_t)v[2], (float32x4_t)v[3]);
    return __builtin_fmaxf(0, vmaxnmvq_f32(vmaxnmq_f32(low, high)));
  } else {
    const float64x2_t low = vmaxnmq_f64((float64x2_t)v[0], (float64x2_t)v[1]);
    const float64x2_t high = vmaxnmq_f64((float64x2_t)v[2], (float64x2_t)v[3]);
    return __builtin_fmax(0, vmaxnmvq_f64(vmaxnmq_f64(low, high)));
  }
#else
  C largest = 0;
  for (const Vec<C>& w : v) {
    for (int i = 0; i < kLanes<C>; ++i) largest = w[i] > largest ? w[i] : largest;
  }
  return largest;
#endif
}

// Mask whose first `lanes` lanes are all ones.
template <class C>
SI auto lane_mask(int lanes) {
  if constexpr (sizeof(C) == 4) {
    typename VecOf<std::int32_t, kLanes<C>>::reg index;
    for (int i = 0; i < kLanes<C>; ++i) index[i] = i;
    return index < lanes;
  } else {
    typename VecOf<std::int64_t, kLanes<C>>::reg index;
    for (int i = 0; i < kLanes<C>; ++i) index[i] = i;
    return index < std::int64_t(lanes);
  }
}

// Zero in the lanes that a partial step does not cover.
template <class C>
SI Vec<C> keep(Vec<C> v, Full) {
  return v;
}
template <class C>
SI Vec<C> keep(Vec<C> v, Stream) {
  return v;
}
template <class C>
SI Vec<C> keep(Vec<C> v, Part p) {
#if defined(NORMCORE_X86) && defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) {
    return (Vec<C>)_mm512_maskz_mov_ps(__mmask16((1u << p.lanes) - 1), (__m512)v);
  } else {
    return (Vec<C>)_mm512_maskz_mov_pd(__mmask8((1u << p.lanes) - 1), (__m512d)v);
  }
#else
  auto mask = lane_mask<C>(p.lanes);
  return (Vec<C>)((decltype(mask))v & mask);
#endif
}

// ---- 16-bit patterns <-> 32-bit lanes. GCC 12 lowers the generic conversion poorly: name it.
using U16Mem = typename VecOf<std::uint16_t, kLanes<float>>::mem;

SI U32 widen(const std::uint16_t* p) {
#if defined(NORMCORE_X86) && defined(__AVX512F__)
  return (U32)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#elif defined(NORMCORE_X86) && defined(__AVX2__)
  return (U32)_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
#elif defined(NORMCORE_X86) && defined(__SSE4_1__)
  return (U32)_mm_cvtepu16_epi32(_mm_loadl_epi64((const __m128i*)p));
#else
  return __builtin_convertvector(*(const U16Mem*)p, U32);
#endif
}

#if defined(NORMCORE_X86) && defined(__AVX512F__)
using Narrow = __m256i;
SI Narrow narrow(U32 v) { return _mm512_cvtepi32_epi16((__m512i)v); }
SI void put(std::uint16_t* p, Narrow v, Full) { _mm256_storeu_si256((__m256i*)p, v); }
SI void put(std::uint16_t* p, Narrow v, Stream) { _mm256_stream_si256((__m256i*)p, v); }
SI void put(std::uint16_t* p, Narrow v, Part t) {
  _mm256_mask_storeu_epi16(p, __mmask16((1u << t.lanes) - 1), v);
}
#else
#if defined(NORMCORE_X86) && defined(__AVX2__)
using Narrow = __m128i;
SI Narrow narrow(U32 v) {
  __m256i packed = _mm256_packus_epi32((__m256i)v, (__m256i)v);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
SI void put(std::uint16_t* p, Narrow v, Full) { _mm_storeu_si128((__m128i*)p, v); }
SI void put(std::uint16_t* p, Narrow v, Stream) { _mm_stream_si128((__m128i*)p, v); }
#else
using Narrow = typename VecOf<std::uint16_t, kLanes<float>>::reg;
SI Narrow narrow(U32 v) {
#if defined(NORMCORE_X86) && defined(__SSE4_1__)
  return (Narrow)_mm_cvtsi128_si64(_mm_packus_epi32((__m128i)v, (__m128i)v));
#elif defined(NORMCORE_NEON)
  return (Narrow)vmovn_u32((uint32x4_t)v);
#else
  return __builtin_convertvector(v, Narrow);
#endif
}
SI void put(std::uint16_t* p, Narrow v, Full) { *(U16Mem*)p = v; }
SI void put(std::uint16_t* p, Narrow v, Stream) { *(U16Mem*)p = v; }
#endif
SI void put(std::uint16_t* p, Narrow v, Part t) {
  std::uint16_t lanes[kLanes<float>];
  __builtin_memcpy(lanes, &v, sizeof(lanes));
  for (int i = 0; i < t.lanes; ++i) p[i] = lanes[i];
}
#endif

// ---- storage <-> compute, both ways exact or rounded once to nearest even
SI F32 load_bf16(const std::uint16_t* p) {
#if defined(NORMCORE_NEON)
  // One instruction after the load: each pattern above a zero.
  const Narrow bits = *(const U16Mem*)p;
  return bitcast<F32>(__builtin_shufflevector(Narrow{}, bits, 0, 4, 1, 5, 2, 6, 3, 7));
#else
  return bitcast<F32>(widen(p) << 16);
#endif
}

// The upper halves of the lanes become the nearest patterns, ties to even. Not for NaN, which could
// round up into infinity.
SI U32 round_to_upper_half(F32 v) {
  U32 u = bitcast<U32>(v);
#if defined(NORMCORE_NEON)
  // The same sum: the bit is shifted to the top, and comes down as it is added.
  return (U32)vsraq_n_u32((uint32x4_t)(u + 0x7fffu), (uint32x4_t)(u << 15), 31);
#else
  return u + 0x7fffu + ((u >> 16) & 1u);
#endif
}

#if defined(NORMCORE_NEON)
// The same for all numbers; a NaN comes out quiet.
SI U32 round_or_quiet(F32 v) {
  const U32 quiet = bitcast<U32>(v) | 0x400000u;
  const uint32x4_t is_number = vceqq_f32((float32x4_t)v, (float32x4_t)v);
  return (U32)vbslq_u32(is_number, (uint32x4_t)round_to_upper_half(v), (uint32x4_t)quiet);
}
#endif

SI Narrow f32_to_bf16(F32 v) {
#if defined(NORMCORE_NEON)
  return narrow(round_or_quiet(v) >> 16);
#endif
  U32 u = bitcast<U32>(v), rounded = round_to_upper_half(v);
#if defined(NORMCORE_X86) && defined(__AVX512F__)
  // As below; named, because GCC would spell out the comparison as a vector.
  const __mmask16 is_nan = _mm512_cmp_ps_mask((__m512)v, (__m512)v, _CMP_UNORD_Q);
  const __m512i quiet = _mm512_set1_epi32(0x400000);
  return narrow((U32)_mm512_mask_or_epi32((__m512i)rounded, is_nan, (__m512i)u, quiet) >> 16);
#endif
  U32 nan = bitcast<U32>(v != v);
  // A NaN comes out quiet.
  return narrow(((nan & (u | 0x400000u)) | (~nan & rounded)) >> 16);
}

#if defined(NORMCORE_X86) && defined(__AVX512F__)
SI F32 load_f16(const std::uint16_t* p) {
  return (F32)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
}
SI Narrow f32_to_f16(F32 v) { return _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(NORMCORE_X86) && defined(__F16C__)
SI F32 load_f16(const std::uint16_t* p) {
  return (F32)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
}
SI Narrow f32_to_f16(F32 v) { return _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT); }
#elif defined(NORMCORE_NEON)
SI F32 load_f16(const std::uint16_t* p) {
  return (F32)vcvt_f32_f16((float16x4_t) * (const U16Mem*)p);
}
SI Narrow f32_to_f16(F32 v) { return (Narrow)vcvt_f16_f32((float32x4_t)v); }
#else
SI F32 load_f16(const std::uint16_t* p) {
  U32 h = widen(p), sign = (h & 0x8000u) << 16, em = h & 0x7fffu;
  U32 finite = bitcast<U32>(bitcast<F32>(em << 13) * 0x1p112f);  // exact, subnormals too
  U32 special = bitcast<U32>(em >= 0x7c00u);
  U32 quiet = bitcast<U32>(em > 0x7c00u) & 0x400000u;
  return bitcast<F32>((special & ((em << 13) | 0x7f800000u | quiet)) | (~special & finite) | sign);
}
SI Narrow f32_to_f16(F32 v) {
  U32 u = bitcast<U32>(v), sign = (u >> 16) & 0x8000u, a = u & 0x7fffffffu;
  U32 nan = bitcast<U32>(a > 0x7f800000u), big = bitcast<U32>(a >= 0x477ff000u);
  U32 tiny = bitcast<U32>(a < 0x38800000u);
  U32 normal = (a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13;
  U32 subnormal = bitcast<U32>(bitcast<F32>(a) + 0.5f) - 0x3f000000u;  // the adder rounds at 2^-24
  U32 r = (tiny & subnormal) | (~tiny & normal);
  r = (big & 0x7c00u) | (~big & r);
  r = (nan & (0x7e00u | ((a >> 13) & 0x3ffu))) | (~nan & r);
  return narrow(r | sign);
}
#endif

// ---- load: storage type -> compute vector; lanes beyond a partial step are zero
SI Vec<float> load(const float* p, Full) { return *(const VecOf<float, kLanes<float>>::mem*)p; }
SI Vec<double> load(const double* p, Full) { return *(const VecOf<double, kLanes<double>>::mem*)p; }
SI F32 load(const BF16* p, Full) { return load_bf16(&p->bits); }
SI F32 load(const F16* p, Full) { return load_f16(&p->bits); }
// Of the pairs of elements the lower halves and the upper ones: without a shuffle. Layer norm's
// sums in cache take 0.9 of the time, those of backward without a weight 0.67.
using PairsMem = typename VecOf<std::uint16_t, 2 * kLanes<float>>::mem;
SI F32 load(const BF16* p, FirstOfTwo) {
  return bitcast<F32>(bitcast<U32>(*(const PairsMem*)p) << 16);
}
SI F32 load(const BF16* p, SecondOfTwo) {
  return bitcast<F32>(bitcast<U32>(*(const PairsMem*)(p - kLanes<float>)) & 0xffff0000u);
}

template <class T>
SI Vec<Compute<T>> load(const T* p, Stream) {
  return load(p, Full{});
}

template <class T>
SI Vec<Compute<T>> load(const T* p, Part t) {
#if defined(NORMCORE_X86) && defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Vec<float>)_mm512_maskz_loadu_ps(__mmask16((1u << t.lanes) - 1), p);
  } else if constexpr (sizeof(T) == 8) {
    return (Vec<double>)_mm512_maskz_loadu_pd(__mmask8((1u << t.lanes) - 1), p);
  } else {
    T lanes[kLanes<float>];
    __m256i v = _mm256_maskz_loadu_epi16(__mmask16((1u << t.lanes) - 1), p);
    __builtin_memcpy(lanes, &v, sizeof(lanes));
    return load(lanes, Full{});
  }
#else
  T lanes[kLanes<Compute<T>>] = {};
  for (int i = 0; i < t.lanes; ++i) lanes[i] = p[i];
  return load(lanes, Full{});
#endif
}

// ---- store: compute vector -> storage
SI void store(float* p, Vec<float> v, Full) { *(VecOf<float, kLanes<float>>::mem*)p = v; }
SI void store(double* p, Vec<double> v, Full) { *(VecOf<double, kLanes<double>>::mem*)p = v; }
template <class C>
SI void store_stream(C* p, Vec<C> v) {
#if defined(NORMCORE_X86) && defined(__AVX512F__)
  _mm512_stream_si512((__m512i*)p, (__m512i)v);
#elif defined(NORMCORE_X86) && defined(__AVX2__)
  _mm256_stream_si256((__m256i*)p, (__m256i)v);
#elif defined(NORMCORE_X86)
  _mm_stream_si128((__m128i*)p, (__m128i)v);
#else
  store(p, v, Full{});
#endif
}
SI void store(float* p, Vec<float> v, Stream) { store_stream(p, v); }
SI void store(double* p, Vec<double> v, Stream) { store_stream(p, v); }
template <class C>
SI void store_part(C* p, Vec<C> v, Part t) {
#if defined(NORMCORE_X86) && defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) {
    _mm512_mask_storeu_ps(p, __mmask16((1u << t.lanes) - 1), (__m512)v);
  } else {
    _mm512_mask_storeu_pd(p, __mmask8((1u << t.lanes) - 1), (__m512d)v);
  }
#else
  for (int i = 0; i < t.lanes; ++i) p[i] = v[i];
#endif
}
SI void store(float* p, Vec<float> v, Part t) { store_part(p, v, t); }
SI void store(double* p, Vec<double> v, Part t) { store_part(p, v, t); }
template <class Tag>
SI void store(BF16* p, F32 v, Tag t) {
  put(&p->bits, f32_to_bf16(v), t);
}
template <class Tag>
SI void store(F16* p, F32 v, Tag t) {
  put(&p->bits, f32_to_f16(v), t);
}

// Two vectors at p: 16-bit patterns are rounded and packed together.
template <class T, class Tag>
SI void store_pair(T* p, Vec<Compute<T>> a, Vec<Compute<T>> b, Tag t) {
  store(p, a, t);
  store(p + kLanes<Compute<T>>, b, t);
}
#if defined(NORMCORE_X86) && defined(__AVX512F__)
using Patterns = __m512i;
SI bool any_nan(F32 a, F32 b) {
  return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_UNORD_Q) != 0;
}
// The halves of the lanes are sorted first, so that those of a and b are rounded at once. Upwards
// where the lower half is above a tie; a tie is where the upper one is odd.
SI Patterns nearest_bf16(F32 a, F32 b) {
  alignas(64) static constexpr std::uint16_t kLower[32] = {
      0,  2,  4,  6,  8,  10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30,
      32, 34, 36, 38, 40, 42, 44, 46, 48, 50, 52, 54, 56, 58, 60, 62};
  const __m512i one = _mm512_set1_epi16(1), lower_halves = _mm512_load_si512(kLower);
  const __m512i upper_halves = _mm512_add_epi16(lower_halves, one);
  const __m512i lower = _mm512_permutex2var_epi16((__m512i)a, lower_halves, (__m512i)b);
  const __m512i upper = _mm512_permutex2var_epi16((__m512i)a, upper_halves, (__m512i)b);
  const __m512i or_odd = _mm512_ternarylogic_epi32(lower, upper, one, 0xf8);  // lower | (upper & 1)
  const __mmask32 up = _mm512_cmpgt_epu16_mask(or_odd, _mm512_set1_epi16(short(0x8000)));
  return _mm512_mask_add_epi16(upper, up, upper, one);
}
SI void put_patterns(std::uint16_t* p, Patterns v, Full) { _mm512_storeu_si512(p, v); }
SI void put_patterns(std::uint16_t* p, Patterns v, Stream) { _mm512_stream_si512((__m512i*)p, v); }
#elif defined(NORMCORE_X86) && defined(__AVX2__)
using Patterns = __m256i;
SI bool any_nan(F32 a, F32 b) {
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_UNORD_Q)) != 0;
}
SI Patterns nearest_bf16(F32 a, F32 b) {
  const U32 low = round_to_upper_half(a) >> 16, high = round_to_upper_half(b) >> 16;
  return _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)low, (__m256i)high), 0xd8);
}
SI void put_patterns(std::uint16_t* p, Patterns v, Full) { _mm256_storeu_si256((__m256i*)p, v); }
SI void put_patterns(std::uint16_t* p, Patterns v, Stream) { _mm256_stream_si256((__m256i*)p, v); }
#endif
#if defined(NORMCORE_X86) && defined(__AVX2__)
// As two single stores, with the care for what is rare taken out of the common path.
template <class Tag>
SI void store_pair_bf16(BF16* p, F32 a, F32 b, Tag t) {
#if defined(__AVX512BF16__)
  // One instruction, which rounds to nearest even too but takes subnormals for zeros. A loop in
  // cache that loads, multiplies, adds and stores takes 0.74 of the time.
  constexpr int kSubnormal = 0x20;
  const bool rare = !_kortestz_mask16_u8(_mm512_fpclass_ps_mask((__m512)a, kSubnormal),
                                         _mm512_fpclass_ps_mask((__m512)b, kSubnormal));
  auto nearest = [=]() __attribute__((always_inline)) {
    return (Patterns)_mm512_cvtne2ps_pbh((__m512)b, (__m512)a);
  };
#else
  const bool rare = any_nan(a, b);
  auto nearest = [=]() __attribute__((always_inline)) { return nearest_bf16(a, b); };
#endif
  if (__builtin_expect(rare, 0)) {
    store(p, a, t);
    store(p + kLanes<float>, b, t);
  } else {
    put_patterns(&p->bits, nearest(), t);
  }
}
SI void store_pair(BF16* p, F32 a, F32 b, Full t) { store_pair_bf16(p, a, b, t); }
SI void store_pair(BF16* p, F32 a, F32 b, Stream t) { store_pair_bf16(p, a, b, t); }
#elif defined(NORMCORE_NEON)
// Both with one choice for NaN each: to look for one first would take as many instructions.
template <class Tag>
SI void store_pair(BF16* p, F32 a, F32 b, Tag) {
  const uint16x8_t low = (uint16x8_t)round_or_quiet(a), high = (uint16x8_t)round_or_quiet(b);
  *(PairsMem*)p = (PairsMem)vuzp2q_u16(low, high);
}
template <class Tag>
SI void store_pair(F16* p, F32 a, F32 b, Tag) {
  const float16x4_t low = vcvt_f16_f32((float32x4_t)a);
  *(PairsMem*)p = (PairsMem)vcvt_high_f16_f32(low, (float32x4_t)b);
}
#endif

// Asks for the line at p, which need not be mapped.
SI void prefetch(const void* p) { __builtin_prefetch(p, 0, 2); }

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
