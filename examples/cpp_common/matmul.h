// Matrix products of row-major float32 matrices: by a BLAS, or by plain loops where the build found
// none.
#pragma once

#include <cstddef>

namespace example {

// Rows of `cols` numbers, `stride` apart.
struct Matrix {
  float* data;
  std::ptrdiff_t rows, cols, stride;
};
struct ConstMatrix {
  const float* data;
  std::ptrdiff_t rows, cols, stride;
  ConstMatrix(const float* d, std::ptrdiff_t r, std::ptrdiff_t c, std::ptrdiff_t s)
      : data(d), rows(r), cols(c), stride(s) {}
  ConstMatrix(const Matrix& m) : ConstMatrix(m.data, m.rows, m.cols, m.stride) {}
};

// c = a b
void matmul(const ConstMatrix& a, const ConstMatrix& b, const Matrix& c);
// c = a b^T
void matmul_transposed(const ConstMatrix& a, const ConstMatrix& b, const Matrix& c);

// Dense layers, a row an input: y = x w + bias, and y = x w^T + bias.
void linear(const ConstMatrix& x, const ConstMatrix& w, const float* bias, const Matrix& y);
void linear_transposed(const ConstMatrix& x, const ConstMatrix& w, const float* bias,
                       const Matrix& y);

// For programs with threads of their own: products run on the thread that asks for them.
void use_one_blas_thread();

const char* matmul_library();

}  // namespace example
