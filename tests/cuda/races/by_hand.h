// What tests that launch kernels by hand share: the launch, and arrays.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <vector>

#include "cuda/elements.cuh"

namespace normcore::cuda {

using Values = std::vector<float>;
using Doubles = std::vector<double>;

inline constexpr unsigned kTestBytes =
    48 * 1024;  // of shared memory: more than a kernel needs here

template <class... Params, class... Args>
void launch(dim3 blocks, unsigned threads, int cluster, void (*kernel)(Params...),
            const Args&... args) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {unsigned(cluster), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = blocks;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = kTestBytes;
  config.attrs = &attribute;
  config.numAttrs = cluster > 1;
  cudaLaunchKernelEx(&config, kernel, Params(args)...);
}

inline Values numbers(Index n) {
  Values v(std::size_t(n), 0);
  for (std::size_t i = 0; i < v.size(); ++i) v[i] = float(i * 7919 % 1013) / 500 - 1;
  return v;
}
inline Column column(Doubles& v) { return {v.data(), DType::kFloat64, 1}; }
template <class V>
bool finite(const V& v) {
  for (const auto e : v) {
    if (!std::isfinite(e)) return false;
  }
  return true;
}

}  // namespace normcore::cuda
