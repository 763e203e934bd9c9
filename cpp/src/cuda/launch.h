// Calls of the CUDA runtime, each with its code checked, and launches.
#pragma once

#include <cuda_runtime.h>

#include <string>
#include <vector>

#include "cuda/elements.cuh"
#include "normcore/errors.h"
#include "pipeline/memory.h"

namespace normcore::cuda {

inline void check(cudaError_t code, const char* what) {
  if (code == cudaSuccess) return;
  cudaGetLastError();  // which the caller's own calls would find
  throw device_error(std::string(what) + ": " + cudaGetErrorString(code));
}

// The device of a call while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    changed_ = device != before_;
    if (changed_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  // Setting a device makes a context on it, which a process may not want on this one.
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

struct DeviceFacts {
  int multiprocessors;
  int cache_bytes;          // of the second level
  int most_cluster;         // blocks that may share a row: 1 before compute capability 9.0
  Index most_shared_bytes;  // of a block that asks
  bool cooperative;         // whether all blocks of a launch may wait for each other
};
const DeviceFacts& facts_of(int device);

// Memory of our own pool, from and to be given back on `stream`; the device is current. Where there
// are no pools both wait for the device.
void* allocate(std::size_t bytes, int device, cudaStream_t stream);
void release(void* memory, int device, cudaStream_t stream) noexcept;

// Shared memory that a block has without asking.
inline constexpr int kSharedBytes = 48 << 10;

struct Launch {
  std::int64_t blocks;
  int threads;
  int shared_bytes = 0;
  int cluster = 1;
  std::int64_t blocks_y = 1;
  bool cooperative = false;  // all blocks run at once, and wait for each other; without clusters
};

// As the runtime takes it.
struct LaunchConfig {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attribute{};

  LaunchConfig(const Launch& l, const void* kernel, cudaStream_t stream) {
    config.gridDim = dim3(unsigned(l.blocks), unsigned(l.blocks_y));
    config.blockDim = dim3(unsigned(l.threads));
    config.dynamicSmemBytes = std::size_t(l.shared_bytes);
    config.stream = stream;
    if (l.cluster == 1 && !l.cooperative) return;
    config.attrs = &attribute;
    config.numAttrs = 1;
    if (l.cooperative) {
      attribute.id = cudaLaunchAttributeCooperative;
      attribute.val.cooperative = 1;
      return;
    }
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {unsigned(l.cluster), 1, 1};
    if (l.cluster > 8) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1),
            "cudaFuncSetAttribute");
    }
  }
  LaunchConfig(const LaunchConfig&) = delete;
  LaunchConfig& operator=(const LaunchConfig&) = delete;
};

template <class... Params, class... Args>
void launch(const Launch& l, cudaStream_t stream, void (*kernel)(Params...), Args... args) {
  if (l.blocks == 0) return;
  if (l.blocks > 0x7fffffff || l.blocks_y > 65535) {
    throw device_error("more than 2^31 - 1 blocks: the array is too large");
  }
  LaunchConfig config(l, reinterpret_cast<const void*>(kernel), stream);
  check(cudaLaunchKernelEx(&config.config, kernel, Params(args)...), "cudaLaunchKernelEx");
}

// Clusters of a kernel, or blocks where it has none, that a device runs at once; 0 where it has no
// room for one. Also asks for more shared memory where a launch needs it.
Index resident_clusters(const void* kernel, const Launch& l, int device);
template <class... Params>
Index resident_clusters(void (*kernel)(Params...), const Launch& l, int device) {
  return resident_clusters(reinterpret_cast<const void*>(kernel), l, device);
}
// Whether clusters of the launch's size have room. It is asked first, since a launch that is
// refused is an error of the call; which sizes a device takes depends on the kernel, and on how
// much of the device there is.
template <class... Params>
bool has_room(void (*kernel)(Params...), const Launch& l, int device) {
  return l.cluster == 1 || resident_clusters(kernel, l, device) > 0;
}

// A step on small arrays, by element: out[i] from in[i], and for a blend from column i of values.
struct Step {
  enum Kind { copy, shift, fill, scale, square, reciprocal, blend } kind = copy;
  Index n = 0;
  Column out{};
  Source in{};
  double a = 0;                    // offset, value, factor, or momentum of a blend
  const double* values = nullptr;  // [rows, n]
  Index rows = 0;
  Counted counted{};  // of a blend
  bool unbiased = false;
};
struct Steps {
  static constexpr int kMost = 16;
  int count = 0;
  Step step[kMost];
};

// The small arrays of a call on a device: in the caller's workspace, then in chunks of the pool,
// which are given back on the stream, after what the call has queued. Steps by element wait until
// something else is launched or the call ends, and then are one launch: element i of all of them,
// in order, is of thread i.
class DeviceMemory final : public Memory {
 public:
  explicit DeviceMemory(const Context& context);
  ~DeviceMemory() override;
  void finish() override { launch_steps(); }

  int device() const { return device_; }
  // For a launch that may read what steps write: those that wait are launched first.
  cudaStream_t stream() {
    launch_steps();
    return stream_;
  }
  // For a launch that reads none of it.
  cudaStream_t stream_ahead_of_steps() const { return stream_; }

  // Where the numbers of a table come from: while they wait to be copied the caller's own array,
  // and they may never be copied. A kernel that asks must read them here, and so must all others.
  Source source(const double* table, double missing = 0);

  void store(const double* values, const Tensor& t, const Walk& w) override;
  void repeat(double* values, Index n, Index total) override;
  void scale(double* values, Index n, double factor) override;
  void transform(Transform t, const double* values, Index n, double* out) override;
  void sum_each(const double* values, Index rows, Index n, double* out) override;
  void blend(const double* old, const double* values, Index rows, Index n, double momentum,
             const Counted& counted, bool unbiased, double* out) override;

 protected:
  void* take_bytes(std::size_t bytes) override;
  template <class C>
  void read_steps(const ConstTensor& t, const Walk& w, C* out);
  static Source of_table(const double* table) { return {table, DType::kFloat64, 1, 0}; }
  void add(Step step);
  // A table that a kernel reads where it is: the copy is wanted after all.
  void need(const double* table) {
    for (int k = 0; k < steps_.count; ++k) {
      if (steps_.step[k].out.data == table) at_source_[k] = false;
    }
  }
  void launch_steps();
  void read(const ConstTensor& t, const Walk& w, float* out) override;
  void read(const ConstTensor& t, const Walk& w, double* out) override;
  void shift(const float* values, Index n, double offset, float* out) override;
  void shift(const double* values, Index n, double offset, double* out) override;
  void fill(float* out, Index n, float value) override;
  void fill(double* out, Index n, double value) override;

 private:
  int device_;
  DeviceGuard guard_;
  cudaStream_t stream_;
  std::vector<void*> chunks_;
  char* free_;
  std::size_t left_;
  Steps steps_;
  bool at_source_[Steps::kMost];  // copies that may never be needed
};

}  // namespace normcore::cuda
