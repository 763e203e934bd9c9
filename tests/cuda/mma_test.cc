// The product of a warp's tensor cores in the emulation, on fragments as PTX lays them out, against
// a loop over the matrices.
#include "cuda/mma.cuh"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "cuda/launch.h"

namespace normcore {
namespace {

constexpr int kRows = 16, kColumns = 8, kDepth = 8;

// c += a b, a lane with what PTX says of it for mma.m16n8k8 and .f64.
__global__ void product(const double* a, const double* b, double* c) {
  const int lane = int(threadIdx.x), group = lane >> 2, member = lane & 3;
  const int rows[] = {group, group + 8}, columns[] = {2 * member, 2 * member + 1};
  const double of_a[] = {a[rows[0] * kDepth + member], a[rows[1] * kDepth + member],
                         a[rows[0] * kDepth + member + 4], a[rows[1] * kDepth + member + 4]};
  const double of_b[] = {b[member * kColumns + group], b[(member + 4) * kColumns + group]};
  double of_c[4];
  for (int i = 0; i < 4; ++i) of_c[i] = c[rows[i / 2] * kColumns + columns[i % 2]];
  cuda::multiply_add(of_c, of_a, of_b);
  for (int i = 0; i < 4; ++i) c[rows[i / 2] * kColumns + columns[i % 2]] = of_c[i];
}

TEST(TensorCores, MultiplyAsALoop) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  std::vector<double> a(kRows * kDepth), b(kDepth * kColumns), c(kRows * kColumns);
  for (auto* matrix : {&a, &b, &c}) {
    for (double& v : *matrix) v = normal(random);
  }
  std::vector<double> want = c;
  for (int r = 0; r < kRows; ++r) {
    for (int k = 0; k < kDepth; ++k) {
      for (int s = 0; s < kColumns; ++s) {
        double& sum = want[r * kColumns + s];
        sum = std::fma(a[r * kDepth + k], b[k * kColumns + s], sum);
      }
    }
  }
  cuda::launch({1, 32}, nullptr, product, a.data(), b.data(), c.data());
  EXPECT_EQ(c, want);
}

}  // namespace
}  // namespace normcore
