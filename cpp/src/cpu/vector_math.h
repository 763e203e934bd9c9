// Elementary functions of vectors, for float and double alike: signs, absolute values, roots; exp,
// log and pow within 2 ulp everywhere, subnormal results included (vector_math_test.cc), and exact
// at 0, infinity and NaN. Included by the kernel sources alone, and bound by their rules: see
// simd.h.
//
// With 1 + f in [sqrt(1/2), sqrt(2)):  log(2^e (1 + f)) = e log 2 + 2 atanh(s),  s = f / (2 + f),
//   2 atanh(s) = 2 s + s z P(z),  z = s^2,  P(z) = 2/3 + z Q(z);
// with |r| <= log(2) / 2:  exp(n log 2 + r) = 2^n (1 + r + r^2 R(r)).
// Q and R are minimax polynomials (Remez), by the relative error of the logarithm and of the power.
#pragma once

#include "simd.h"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

// ---- signs, absolute values and roots

template <class C>
SI Vec<C> sign_of(Vec<C> u) {
  const Vec<C> zero{}, one = splat(C(1));
  return u > 0 ? one : (u < 0 ? -one : zero);
}
template <class C>
SI Vec<C> abs_of(Vec<C> u) {
#if defined(NORMCORE_NEON)
  if constexpr (sizeof(C) == 4) {
    return (Vec<C>)vabsq_f32((float32x4_t)u);
  } else {
    return (Vec<C>)vabsq_f64((float64x2_t)u);
  }
#else
  return u < 0 ? -u : u;
#endif
}
template <class C>
SI Vec<C> max_abs(Vec<C> a, Vec<C> v) {
  const Vec<C> w = abs_of<C>(v);
  return w > a ? w : a;
}

SI Vec<float> square_root(Vec<float> v) {
#if defined(NORMCORE_X86) && defined(__AVX512F__)
  return (Vec<float>)_mm512_sqrt_ps((__m512)v);
#elif defined(NORMCORE_X86) && defined(__AVX2__)
  return (Vec<float>)_mm256_sqrt_ps((__m256)v);
#elif defined(NORMCORE_X86)
  return (Vec<float>)_mm_sqrt_ps((__m128)v);
#elif defined(NORMCORE_NEON)
  return (Vec<float>)vsqrtq_f32((float32x4_t)v);
#else
  for (int i = 0; i < kLanes<float>; ++i) v[i] = __builtin_sqrtf(v[i]);
  return v;
#endif
}
SI Vec<double> square_root(Vec<double> v) {
#if defined(NORMCORE_X86) && defined(__AVX512F__)
  return (Vec<double>)_mm512_sqrt_pd((__m512d)v);
#elif defined(NORMCORE_X86) && defined(__AVX2__)
  return (Vec<double>)_mm256_sqrt_pd((__m256d)v);
#elif defined(NORMCORE_X86)
  return (Vec<double>)_mm_sqrt_pd((__m128d)v);
#elif defined(NORMCORE_NEON)
  return (Vec<double>)vsqrtq_f64((float64x2_t)v);
#else
  for (int i = 0; i < kLanes<double>; ++i) v[i] = __builtin_sqrt(v[i]);
  return v;
#endif
}

// ---- exp, log and pow: what they are made of

// What there is to know of a format. log 2 = kLog2 + kLog2Low, and two thirds likewise; kLog2 has
// so few digits that its product with any exponent is exact.
template <class C>
struct Format;
template <>
struct Format<float> {
  using Word = std::uint32_t;
  static constexpr int kMantissa = 23;
  static constexpr Word kBias = 127, kSqrtHalf = 0x3f3504f3, kTopHalf = 0xfffff000;
  static constexpr float kMinNormal = 0x1p-126f, kOfMantissa = 0x1p23f, kShift = 0x1.8p23f;
  static constexpr float kLimit = 110;    // exp of more is infinite, of less than -kLimit 0
  static constexpr float kHuge = 0x1p40;  // as an exponent: all powers but 1 are 0 or infinite
  static constexpr float kLog2 = 0x1.62e4p-1f, kLog2Low = 0x1.7f7d1cp-20f;
  static constexpr float kTwoThirds = 0x1.555556p-1f, kTwoThirdsLow = -0x1.555556p-26f;
  static constexpr float kQ[] = {0x1.999ap-2f, 0x1.245296p-2f, 0x1.df9d7p-3f};
  static constexpr float kR[] = {0x1.fffffcp-2f, 0x1.55549p-3f, 0x1.5558f4p-5f, 0x1.123a6cp-7f,
                                 0x1.6a2352p-10f};
};
template <>
struct Format<double> {
  using Word = std::uint64_t;
  static constexpr int kMantissa = 52;
  static constexpr Word kBias = 1023, kSqrtHalf = 0x3fe6a09e667f3bcd, kTopHalf = 0xfffffffff8000000;
  static constexpr double kMinNormal = 0x1p-1022, kOfMantissa = 0x1p52, kShift = 0x1.8p52;
  static constexpr double kLimit = 760, kHuge = 0x1p70;
  static constexpr double kLog2 = 0x1.62e42fefa38p-1, kLog2Low = 0x1.ef35793c7673p-45;
  static constexpr double kTwoThirds = 0x1.5555555555555p-1;
  static constexpr double kTwoThirdsLow = 0x1.5555555555555p-55;
  static constexpr double kQ[] = {0x1.9999999999996p-2, 0x1.2492492493036p-2, 0x1.c71c71c58047ep-3,
                                  0x1.745d1832623b7p-3, 0x1.3b1362b1f4aacp-3, 0x1.1120b63d05322p-3,
                                  0x1.de33584857be1p-4, 0x1.eb11ea8d8647ep-4};
  static constexpr double kR[] = {
      0x1.000000000000ap-1,  0x1.55555555554f9p-3,  0x1.55555555507f1p-5,  0x1.1111111127e85p-7,
      0x1.6c16c1844b03bp-10, 0x1.a01a0129b396dp-13, 0x1.a01999adc5907p-16, 0x1.71df262e20797p-19,
      0x1.28adce785de0ep-22, 0x1.ad7eff9c20f59p-26};
};
template <class C>
using Words = typename VecOf<typename Format<C>::Word, kLanes<C>>::reg;
template <class C>
constexpr C kInfinity = C(__builtin_inff());
template <class C>
constexpr C kNaN = C(__builtin_nanf(""));

template <class C, int N>
SI Vec<C> polynomial(const C (&c)[N], Vec<C> x) {
  Vec<C> sum = splat(c[N - 1]);
  for (int i = N - 2; i >= 0; --i) sum = fma<C>(sum, x, splat(c[i]));
  return sum;
}

// hi + lo, to about twice the digits of one number.
template <class C>
struct Pair {
  Vec<C> hi, lo;
};
// a + b exactly, where |a| >= |b| or a = 0.
template <class C>
SI Pair<C> exact_sum(Vec<C> a, Vec<C> b) {
  const Vec<C> sum = a + b;
  return {sum, b - (sum - a)};
}
// a * b exactly (in double without fused instructions to twice its digits less one).
template <class C>
SI Pair<C> exact_product(Vec<C> a, Vec<C> b) {
  const Vec<C> product = a * b;
  if constexpr (kFused) {
    return {product, fma<C>(a, b, -product)};
  } else {
    const Words<C> top = Words<C>{} + Format<C>::kTopHalf;
    const Vec<C> a1 = bitcast<Vec<C>>(bitcast<Words<C>>(a) & top), a2 = a - a1;
    const Vec<C> b1 = bitcast<Vec<C>>(bitcast<Words<C>>(b) & top), b2 = b - b1;
    return {product, ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2};
  }
}

// ---- exp

// p * 2^n for a whole number n, rounded once also where it is subnormal.
template <class C>
SI Vec<C> scale_by_power(Vec<C> p, Vec<C> n) {
#if defined(NORMCORE_X86) && defined(__AVX512F__)
  if constexpr (sizeof(C) == 4) {
    return (Vec<C>)_mm512_scalef_ps((__m512)p, (__m512)n);
  } else {
    return (Vec<C>)_mm512_scalef_pd((__m512d)p, (__m512d)n);
  }
#else
  using F = Format<C>;
  // In two steps of half the exponent, of which the first is exact.
  auto power = [](Vec<C> k) __attribute__((always_inline)) {
    return bitcast<Vec<C>>(bitcast<Words<C>>(k + (F::kShift + C(F::kBias))) << F::kMantissa);
  };
  const Vec<C> half = (n * C(0.5) + F::kShift) - F::kShift;
  return p * power(half) * power(n - half);
#endif
}

// exp(x + low), low being far smaller than x.
template <class C>
SI Vec<C> exp_of_sum(Vec<C> x, Vec<C> low) {
  using F = Format<C>;
  constexpr C kLog2e = C(1.44269504088896340736L);
  x = x > F::kLimit ? splat(F::kLimit) : x;
  x = x < -F::kLimit ? splat(-F::kLimit) : x;
  const Vec<C> n = fma<C>(x, splat(kLog2e), splat(F::kShift)) - F::kShift;  // to nearest
  const Vec<C> r = fma<C>(n, splat(-F::kLog2Low), fma<C>(n, splat(-F::kLog2), x)) + low;
  const Vec<C> p = fma<C>(r * r, polynomial<C>(F::kR, r), r) + C(1);
  return scale_by_power<C>(p, n);
}

template <class C>
SI Vec<C> exp(Vec<C> x) {
  return exp_of_sum<C>(x, Vec<C>{});
}

// ---- log

// x = 2^e * (1 + f), exactly, with 1 + f in [sqrt(1/2), sqrt(2)). For finite x > 0.
template <class C>
struct Binary {
  Vec<C> e, f;
};
template <class C>
SI Binary<C> split(Vec<C> x) {
  using F = Format<C>;
  using Word = typename F::Word;
  const auto subnormal = x < F::kMinNormal;
  x = subnormal ? x * F::kOfMantissa : x;
  const Words<C> from_sqrt_half =
      bitcast<Words<C>>(x) + ((F::kBias << F::kMantissa) - F::kSqrtHalf);
  // As the last digits of a number beyond 2^kMantissa, whose spacing is 1.
  const Word unit = (F::kBias + Word(F::kMantissa)) << F::kMantissa;
  Vec<C> e = bitcast<Vec<C>>((from_sqrt_half >> F::kMantissa) | unit);
  e -= F::kOfMantissa + C(F::kBias);
  e = subnormal ? e - C(F::kMantissa) : e;
  const Words<C> digits = from_sqrt_half & ((Word(1) << F::kMantissa) - 1);
  return {e, bitcast<Vec<C>>(digits + F::kSqrtHalf) - C(1)};
}

template <class C>
SI Vec<C> log(Vec<C> x) {
  using F = Format<C>;
  const Binary<C> b = split<C>(x);
  const Vec<C> s = b.f / (b.f + C(2)), z = s * s;
  const Vec<C> zp = z * fma<C>(polynomial<C>(F::kQ, z), z, splat(F::kTwoThirds));
  // 2 s = f - s f, of which f is exact.
  const Vec<C> rest = fma<C>(s, b.f - zp, b.e * -F::kLog2Low);
  Vec<C> y = fma<C>(b.e, splat(F::kLog2), b.f - rest);
  y = x < kInfinity<C> ? y : x;
  y = x == 0 ? splat(-kInfinity<C>) : y;
  return x >= 0 ? y : splat(kNaN<C>);
}

// log(x) to some 2^-34 of itself in float, 2^-63 in double. For finite x > 0.
template <class C>
SI Pair<C> log_pair(Vec<C> x) {
  using F = Format<C>;
  const Binary<C> b = split<C>(x);
  const Pair<C> d = exact_sum<C>(splat(C(2)), b.f);
  const Vec<C> inverse = C(1) / d.hi, s = b.f * inverse;
  const Pair<C> back = exact_product<C>(s, d.hi);
  const Vec<C> s_low = (((b.f - back.hi) - back.lo) - s * d.lo) * inverse;
  const Pair<C> square = exact_product<C>(s, s);
  const Vec<C> z = square.hi, z_low = fma<C>(s + s, s_low, square.lo);
  const Pair<C> cube = exact_product<C>(s, z);
  const Vec<C> cube_low = cube.lo + fma<C>(s, z_low, s_low * z);
  const Pair<C> third = exact_product<C>(cube.hi, splat(F::kTwoThirds));
  const Vec<C> third_low = third.lo + (cube.hi * F::kTwoThirdsLow + cube_low * F::kTwoThirds);
  const Pair<C> atanh = exact_sum<C>(s + s, third.hi);
  const Pair<C> sum = exact_sum<C>(b.e * F::kLog2, atanh.hi);
  const Vec<C> tail = fma<C>(cube.hi * z, polynomial<C>(F::kQ, z), b.e * F::kLog2Low);
  return exact_sum<C>(sum.hi, sum.lo + (atanh.lo + (third_low + (s_low + s_low + tail))));
}

// ---- pow

// x^y for x >= 0, with 0^0 = 1; NaN where x is negative.
template <class C>
SI Vec<C> pow(Vec<C> x, C y) {
  using F = Format<C>;
  const C at_zero = y > 0 ? C(0) : (y < 0 ? kInfinity<C> : C(1));
  const C at_infinity = y > 0 ? kInfinity<C> : (y < 0 ? C(0) : C(1));
  y = y > F::kHuge ? F::kHuge : (y < -F::kHuge ? -F::kHuge : y);
  const Pair<C> l = log_pair<C>(x);
  const Pair<C> product = exact_product<C>(l.hi, splat(y));
  Vec<C> low = fma<C>(l.lo, splat(y), product.lo);
  low = product.hi < F::kLimit ? low : Vec<C>{};  // or it is no longer small
  low = product.hi > -F::kLimit ? low : Vec<C>{};
  Vec<C> power = exp_of_sum<C>(product.hi, low);
  power = x == 0 ? splat(at_zero) : power;
  power = x == kInfinity<C> ? splat(at_infinity) : power;
  return x >= 0 ? power : splat(kNaN<C>);
}

// Not in line: it is long, and its callers are many.
template <class C>
[[gnu::noinline]] Vec<C> pow_of(Vec<C> x, C y) {
  return pow<C>(x, y);
}

// ---- powers that often need no pow

// 1 / sqrt(v).
SI Vec<double> inverse_root(Vec<double> v) { return 1.0 / square_root(v); }
SI Vec<float> inverse_root(Vec<float> v) {
#if defined(NORMCORE_X86) && defined(__AVX512F__)
  // A root and a division would take as long as sixteen products. The estimate is good to 2^-14,
  // and one step of Newton's takes it to half a unit in the last place and a little. Of 0,
  // infinities and numbers below 0 the estimate is the answer, and the step none.
  const Vec<float> r = (Vec<float>)_mm512_rsqrt14_ps((__m512)v);
  const Vec<float> rest = fma<float>(-(v * r), r, splat(1.0f));
  const Vec<float> better = fma<float>(r * 0.5f, rest, r);
  return better == better ? better : r;
#else
  return 1.0f / square_root(v);
#endif
}

// x^e for x >= 0, by products and roots where they do it.
template <class C>
SI Vec<C> power(Vec<C> x, C e) {
  if (e == 0) return splat(C(1));
  if (e == 1) return x;
  if (e == 2) return x * x;
  if (e == 3) return x * x * x;
  if (e == C(0.5)) return square_root(x);
  if (e == C(-0.5)) return inverse_root(x);
  if (e == -1) return C(1) / x;
  return pow_of<C>(x, e);
}

// What formulas of elements compute with here: see special/formulas.h.
template <class C>
struct VectorMath {
  using Value = Vec<C>;
  using Number = C;
  SI static Value fma(Value a, Value b, Value c) { return NORMCORE_ISA::fma<C>(a, b, c); }
  SI static Value sqrt(Value v) { return square_root(v); }
  SI static Value log(Value v) { return NORMCORE_ISA::log<C>(v); }
  SI static Value abs(Value v) { return abs_of<C>(v); }
  SI static Value sign(Value v) { return sign_of<C>(v); }
  SI static Value power(Value v, C exponent) { return NORMCORE_ISA::power<C>(v, exponent); }
};

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
