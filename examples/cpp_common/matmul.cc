#include "matmul.h"

#include <algorithm>

#ifdef HAVE_CBLAS
#include <cblas.h>
#endif

namespace example {
namespace {

// c = a b + beta c or a b^T + beta c, with beta 0 or 1.
#ifdef HAVE_CBLAS
void product(const ConstMatrix& a, const ConstMatrix& b, bool transposed, float beta,
             const Matrix& c) {
  cblas_sgemm(CblasRowMajor, CblasNoTrans, transposed ? CblasTrans : CblasNoTrans, c.rows, c.cols,
              a.cols, 1, a.data, a.stride, b.data, b.stride, beta, c.data, c.stride);
}
#else
void product(const ConstMatrix& a, const ConstMatrix& b, bool transposed, float beta,
             const Matrix& c) {
  for (std::ptrdiff_t i = 0; i < c.rows; ++i) {
    const float* row = a.data + i * a.stride;
    float* out = c.data + i * c.stride;
    if (beta == 0) std::fill_n(out, c.cols, 0.0f);
    if (transposed) {
      for (std::ptrdiff_t j = 0; j < c.cols; ++j) {
        float sum = 0;
        for (std::ptrdiff_t k = 0; k < a.cols; ++k) sum += row[k] * b.data[j * b.stride + k];
        out[j] += sum;
      }
    } else {
      for (std::ptrdiff_t k = 0; k < a.cols; ++k) {
        for (std::ptrdiff_t j = 0; j < c.cols; ++j) out[j] += row[k] * b.data[k * b.stride + j];
      }
    }
  }
}
#endif

void fill_rows(const float* values, const Matrix& m) {
  for (std::ptrdiff_t i = 0; i < m.rows; ++i) std::copy_n(values, m.cols, m.data + i * m.stride);
}

}  // namespace

void matmul(const ConstMatrix& a, const ConstMatrix& b, const Matrix& c) {
  product(a, b, false, 0, c);
}

void matmul_transposed(const ConstMatrix& a, const ConstMatrix& b, const Matrix& c) {
  product(a, b, true, 0, c);
}

void linear(const ConstMatrix& x, const ConstMatrix& w, const float* bias, const Matrix& y) {
  fill_rows(bias, y);
  product(x, w, false, 1, y);
}

void linear_transposed(const ConstMatrix& x, const ConstMatrix& w, const float* bias,
                       const Matrix& y) {
  fill_rows(bias, y);
  product(x, w, true, 1, y);
}

void use_one_blas_thread() {
#ifdef HAVE_OPENBLAS_THREADS
  openblas_set_num_threads(1);
#endif
}

const char* matmul_library() {
#ifdef HAVE_OPENBLAS_THREADS
  return "OpenBLAS";
#elif defined(HAVE_CBLAS)
  return "BLAS";
#else
  return "plain loops";
#endif
}

}  // namespace example
