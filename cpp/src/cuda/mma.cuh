// Products of small matrices of doubles on the tensor cores of a warp. PTX has them round each sum
// to nearest; in which order they add the terms of an instruction it does not say.
#pragma once

#include <cuda_runtime.h>

namespace normcore::cuda {

// d += a b by all lanes of a warp, of 16 x 8, 8 x 8 to 16 x 8. With group = lane / 4 and member =
// lane % 4 a lane holds
//   a[i] of row group + i % 2 * 8, column member + i / 2 * 4,
//   b[i] of row member + i * 4, column group,
//   d[i] of row group + i / 2 * 8, column member * 2 + i % 2.
__device__ inline void multiply_add(double* d, const double (&a)[4], const double (&b)[2]) {
#if defined(NORMCORE_MULTIPLY_ADD)  // kernels run on the host, in the tests
  NORMCORE_MULTIPLY_ADD(d, a, b);
#elif defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+d"(d[0]), "+d"(d[1]), "+d"(d[2]), "+d"(d[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b[0]), "d"(b[1]));
#else
  // The same by quarters: 8 x 4, 4 x 8 to 8 x 8.
#pragma unroll
  for (int k = 0; k < 2; ++k) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
          : "+d"(d[2 * r]), "+d"(d[2 * r + 1])
          : "d"(a[2 * k + r]), "d"(b[k]));
    }
  }
#endif
}

}  // namespace normcore::cuda
