// Two phases in one loop: the rows of one tile are written while those of the next are reduced.
// Either alone is a stream of reads, or of writes; together they keep the memory busy both ways, as
// a copy does. What is computed, and in which order, is as in the kernels of one phase.
#pragma once

#include "affine.inl"
#include "moments.inl"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

template <class T, bool kWeighted, bool kCentred>
void affine_moments(In x, Out y, Index rows, Index cols, Affine<Compute<T>> f,
                    const Compute<T>* weight, const Compute<T>* bias, In next, double* mean,
                    double* m2) {
  using C = Compute<T>;
  constexpr Index N = kLanes<C>;
  // Several short rows at a time are overlapped by the processor itself, and what goes through a
  // room to memory has its own loop. The stores ask for what will be reduced after this.
  if (cols <= 4 * N || (y.stream && !streams<T>(y, cols))) {
    if (next.ahead != 0) {
      x.ahead = static_cast<const T*>(next.data) - static_cast<const T*>(x.data) + next.ahead;
      next.ahead = 0;
    }
    affine_tile<T, kRows, kWeighted>(x, y, rows, cols, f, weight, bias);
    moments_rows_impl<T, kCentred>(next, rows, cols, mean, m2);
    return;
  }
  auto run = [&]<bool kStream>() __attribute__((always_inline)) {
    using Step = AffineRows<T, kRows, kWeighted, 1>;
    using Rows4 = RowMoments<T, kCentred, 4>;
    auto sweep_of = [&](Index r, Index written) __attribute__((always_inline)) {
      return Sweep<kStream, T, Step>(row<T>(y, r), y.stride, cols, Step(x, r, f, weight, bias),
                                     written);
    };
    auto group = [&]<int R>(Index r) __attribute__((always_inline)) {
      RowMoments<T, kCentred, R> moments(next, r, cols);
      for (int k = 0; k < R; ++k) {
        auto sweep = sweep_of(r + k, 0);
        moments.sum(k, [&] { return sweep.template steps<4>(); });
        sweep.finish();
      }
      moments.finish(mean, m2);
    };
    auto in_strips = [&](Index r) __attribute__((always_inline)) {
      Rows4 moments(next, r, cols);
      typename Rows4::Sums sums[4];
      Index written[4] = {};
      for (Index i = 0, end; i < cols; i = end) {
        end = cols - i > kRowStrip<C> ? i + kRowStrip<C> : cols;
        for (int k = 0; k < 4; ++k) {
          auto sweep = sweep_of(r + k, written[k]);
          typename Rows4::Sums so_far = sums[k];
          moments.add(k, i, end, so_far, [&] { return sweep.template steps<4>(); });
          sums[k] = so_far;
          if (end == cols) sweep.finish();
          written[k] = sweep.i;
        }
      }
      for (int k = 0; k < 4; ++k) moments.take(k, sums[k]);
      moments.finish(mean, m2);
    };
    Index r = 0;
    if (kWeighted && cols >= kManyStrips * kRowStrip<C>) {
      for (; r + 4 <= rows; r += 4) in_strips(r);
    }
    for (; r + 4 <= rows; r += 4) group.template operator()<4>(r);
    for (; r < rows; ++r) group.template operator()<1>(r);
  };
  if (streams<T>(y, cols)) {
    run.template operator()<true>();
  } else {
    run.template operator()<false>();
  }
}

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
