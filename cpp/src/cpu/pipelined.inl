// Two phases in one loop: the rows of one tile are written while those of the next are reduced.
// Either alone is a stream of reads, or of writes; together they are a copy, which runs at nearly
// twice the speed. What is computed, and in which order, is as in the kernels of one phase.
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
  if (cols <= 4 * N) {  // of several rows at a time: a processor overlaps these by itself
    moments_rows_impl<T, kCentred>(next, rows, cols, mean, m2);
    affine_impl<T, kRows, kWeighted>(x, y, rows, cols, f, weight, bias);
    return;
  }
  auto run = [&]<bool kStream>() __attribute__((always_inline)) {
    for (Index r = 0; r < rows; ++r) {
      RowMoments<T, kCentred> moments(row<T>(next, r), cols, next.ahead);
      Sweep<kStream, T, AffineRows<T, kRows, kWeighted, 1>> sweep(row<T>(y, r), y.stride, cols,
                                                                  {x, r, f, weight, bias});
      Index i = 0;
      for (; i + 4 * N <= cols && sweep.template steps<4>(); i += 4 * N) {
        for (int j = 0; j < 4; ++j) moments.add(i + j * N, j, Full{});
      }
      sweep.finish();
      moments.finish(i, mean + r, m2 + r);
    }
  };
  if (streams<T>(y, cols)) {
    run.template operator()<true>();
    stream_fence();
  } else {
    run.template operator()<false>();
  }
}

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
