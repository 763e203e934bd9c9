// Device memory, and the kernels for the small arrays of a call.
#include <algorithm>
#include <array>
#include <exception>
#include <map>
#include <mutex>
#include <tuple>

#include "cuda/device_buffer.h"
#include "cuda/elements.cuh"
#include "cuda/launch.h"
#include "normcore/errors.h"

namespace normcore::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMostDevices = 64;
constexpr int kMostWalkAxes = 8;
constexpr std::size_t kAlignment = 256;

Launch one_each(Index n) { return {(n + kThreads - 1) / kThreads, kThreads}; }
__device__ Index my_index() { return Index(blockIdx.x) * blockDim.x + threadIdx.x; }

// A walk whose axes are merged where they can be.
struct DeviceWalk {
  int ndim = 0;
  Index size[kMostWalkAxes], stride[kMostWalkAxes];

  explicit DeviceWalk(const Walk& w) {
    for (int i = 0; i < w.ndim; ++i) {
      if (w.size[i] == 1) continue;
      if (ndim > 0 && stride[ndim - 1] == w.stride[i] * w.size[i]) {
        size[ndim - 1] *= w.size[i];
        stride[ndim - 1] = w.stride[i];
        continue;
      }
      if (ndim == kMostWalkAxes) {
        throw value_error("an argument has more than 8 axes that do not merge, which CUDA refuses");
      }
      size[ndim] = w.size[i];
      stride[ndim++] = w.stride[i];
    }
  }
  __device__ Index at(Index i) const {
    Index offset = 0;
    for (int d = ndim - 1; d >= 0; --d) {
      offset += i % size[d] * stride[d];
      i /= size[d];
    }
    return offset;
  }
};

// Arrays whose elements are not evenly spaced.
template <class T, class C>
__global__ void read_kernel(const T* from, DeviceWalk walk, Index n, C* out) {
  const Index i = my_index();
  if (i < n) out[i] = C(widen(from[walk.at(i)]));
}
template <class T>
__global__ void store_kernel(const double* values, DeviceWalk walk, Index n, T* to) {
  const Index i = my_index();
  if (i < n) to[walk.at(i)] = narrow<T>(Compute<T>(values[i]));
}

__device__ double result(const Step& s, Index i) {
  switch (s.kind) {
    case Step::copy:
      return s.in(i);
    case Step::shift:
      return s.in(i) + s.a;
    case Step::fill:
      return s.a;
    case Step::scale:
      return s.in(i)*s.a;
    case Step::square:
      return Memory::transformed(Memory::kSquare, s.in(i));
    case Step::reciprocal:
      return Memory::transformed(Memory::kReciprocal, s.in(i));
    case Step::blend:
      break;
  }
  double sum = 0;
  for (Index o = 0; o < s.rows; ++o) sum += s.values[o * s.n + i];
  return blended(s.in(i), sum / double(s.rows), s.a, s.b);
}
__global__ void run_steps(Steps steps) {
  const Index i = my_index();
  for (int k = 0; k < steps.count; ++k) {
    const Step& s = steps.step[k];
    if (i < s.n) put(s.out, i, result(s, i));
  }
}
__global__ void repeat_kernel(double* values, Index n, Index total) {
  const Index i = n + my_index();
  if (i < total) values[i] = values[i % n];
}
// A warp a row, in a fixed order.
__global__ void sum_each_kernel(const double* values, Index n, double* out) {
  const Index row = blockIdx.x;
  double sum = 0;
  for (Index k = threadIdx.x; k < n; k += 32) sum += values[row * n + k];
  for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
  if (threadIdx.x == 0) out[row] = sum;
}
template <class C>
void read_array(const ConstTensor& t, const Walk& w, C* out, cudaStream_t stream) {
  with_element_type(t.dtype(), [&]<class T>(T) {
    const Index n = w.count();
    launch(one_each(n), stream, read_kernel<T, C>, static_cast<const T*>(t.data()), DeviceWalk(w),
           n, out);
  });
}

struct DeviceState {
  std::once_flag once;
  DeviceFacts facts{};
  cudaMemPool_t pool{};
};
DeviceState& state_of(int device) {
  static std::array<DeviceState, kMostDevices> states;
  if (device < 0 || device >= kMostDevices) throw device_error("device number beyond 63");
  DeviceState& s = states[std::size_t(device)];
  std::call_once(s.once, [&] {
    int major = 0;
    check(cudaDeviceGetAttribute(&s.facts.multiprocessors, cudaDevAttrMultiProcessorCount, device),
          "cudaDeviceGetAttribute");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
          "cudaDeviceGetAttribute");
    // Code that was compiled for less knows no clusters, on whatever device it runs.
    cudaFuncAttributes code{};
    check(cudaFuncGetAttributes(&code, reinterpret_cast<const void*>(&repeat_kernel)),
          "cudaFuncGetAttributes");
    s.facts.most_cluster = major >= 9 && code.ptxVersion >= 90 ? 16 : 1;
    cudaMemPoolProps props{};
    props.allocType = cudaMemAllocationTypePinned;
    props.location = {cudaMemLocationTypeDevice, device};
    check(cudaMemPoolCreate(&s.pool, &props), "cudaMemPoolCreate");
    std::uint64_t keep = ~std::uint64_t(0);
    check(cudaMemPoolSetAttribute(s.pool, cudaMemPoolAttrReleaseThreshold, &keep),
          "cudaMemPoolSetAttribute");
  });
  return s;
}

}  // namespace

bool is_built() { return true; }

bool is_available() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

const DeviceFacts& facts_of(int device) { return state_of(device).facts; }

Index resident_clusters(const void* kernel, const Launch& l, int device) {
  static std::mutex lock;
  static std::map<std::tuple<const void*, int, int, int, int>, Index> known;
  const std::lock_guard guard(lock);
  const auto [it, is_new] =
      known.try_emplace({kernel, device, l.cluster, l.threads, l.shared_bytes}, 0);
  if (!is_new) return it->second;
  if (l.shared_bytes > kSharedBytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, l.shared_bytes),
          "cudaFuncSetAttribute");
  }
  int count = 0;
  if (l.cluster == 1) {
    check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&count, kernel, l.threads,
                                                        std::size_t(l.shared_bytes)),
          "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
    count *= facts_of(device).multiprocessors;
  } else {
    Launch one = l;
    one.blocks = l.cluster;
    const LaunchConfig config(one, kernel, nullptr);
    check(cudaOccupancyMaxActiveClusters(&count, kernel, &config.config),
          "cudaOccupancyMaxActiveClusters");
  }
  return it->second = std::max(1, count);
}

void* allocate(std::size_t bytes, int device, cudaStream_t stream) {
  void* p = nullptr;
  check(cudaMallocFromPoolAsync(&p, bytes, state_of(device).pool, stream),
        "cudaMallocFromPoolAsync");
  return p;
}

std::shared_ptr<void> allocate_shared(std::size_t bytes, const Context& where) {
  const DeviceGuard guard(where.device_index);
  const auto stream = static_cast<cudaStream_t>(where.stream);
  void* p = allocate(std::max<std::size_t>(1, bytes), where.device_index, stream);
  return {p, [stream](void* memory) { cudaFreeAsync(memory, stream); }};
}

void order_streams(const Context& first, const Context& then) {
  if (first.stream == then.stream) return;
  const DeviceGuard guard(first.device_index);
  cudaEvent_t done;
  check(cudaEventCreateWithFlags(&done, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  const cudaError_t recorded = cudaEventRecord(done, static_cast<cudaStream_t>(first.stream));
  const cudaError_t waits =
      recorded == cudaSuccess ? cudaStreamWaitEvent(static_cast<cudaStream_t>(then.stream), done, 0)
                              : recorded;
  cudaEventDestroy(done);  // once it has happened
  check(waits, "cudaStreamWaitEvent");
}

void copy_to_host(void* to, const void* from, std::size_t bytes, const Context& where) {
  const DeviceGuard guard(where.device_index);
  const auto stream = static_cast<cudaStream_t>(where.stream);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream), "cudaMemcpyAsync");
  check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

int device_of(const void* address) {
  cudaPointerAttributes attributes{};
  check(cudaPointerGetAttributes(&attributes, address), "cudaPointerGetAttributes");
  return attributes.device;
}

std::unique_ptr<Memory> make_memory(const Context& context) {
  return std::make_unique<DeviceMemory>(context);
}

DeviceMemory::DeviceMemory(const Context& context)
    : device_(context.device_index),
      guard_(device_),
      stream_(static_cast<cudaStream_t>(context.stream)),
      free_(static_cast<char*>(context.workspace)),
      left_(context.workspace ? context.workspace_bytes : 0) {
  if (reinterpret_cast<std::uintptr_t>(context.workspace) % kAlignment != 0) {
    throw value_error("context.workspace is not aligned to 256 bytes");
  }
}

DeviceMemory::~DeviceMemory() {
  // Where the call has failed there is nothing to write. A launch of this kernel fails only where
  // the context is lost, which the next call says.
  try {
    if (std::uncaught_exceptions() == exceptions_) launch_steps();
  } catch (const device_error&) {
  }
  for (void* p : chunks_) cudaFreeAsync(p, stream_);
}

void* DeviceMemory::take_bytes(std::size_t bytes) {
  constexpr std::size_t kChunk = std::size_t(1) << 18;
  bytes = (bytes + kAlignment - 1) / kAlignment * kAlignment;
  if (bytes > left_) {
    const std::size_t chunk = std::max(bytes, kChunk);
    chunks_.reserve(chunks_.size() + 1);
    free_ = static_cast<char*>(allocate(chunk, device_, stream_));
    chunks_.push_back(free_);
    left_ = chunk;
  }
  void* p = free_;
  free_ += bytes;
  left_ -= bytes;
  return p;
}

Source DeviceMemory::source(const double* table, double missing) {
  if (!table) return {nullptr, DType::kFloat64, 1, missing};
  for (int k = 0; k < steps_.count; ++k) {
    const Step& s = steps_.step[k];
    if (s.out.data != table) continue;
    if (s.kind != Step::copy) break;
    at_source_[k] = true;
    return s.in;
  }
  return {table, DType::kFloat64, 1, 0};
}

void DeviceMemory::add(Step step) {
  if (step.n == 0) return;
  // Sums of rows take what other threads have written.
  if (step.rows > 1) launch_steps();
  if (steps_.count == Steps::kMost) {
    std::fill_n(at_source_, steps_.count, false);
    launch_steps();
  }
  for (int k = 0; k < steps_.count; ++k) {
    const Step& s = steps_.step[k];
    const bool is_used = s.out.data == step.in.data || s.out.data == step.values;
    if (is_used || s.in.data == step.out.data) at_source_[k] = false;
  }
  at_source_[steps_.count] = false;
  steps_.step[steps_.count++] = step;
}
void DeviceMemory::launch_steps() {
  Steps now, later;
  Index most = 0;
  for (int k = 0; k < steps_.count; ++k) {
    const Step& s = steps_.step[k];
    if (at_source_[k]) {
      later.step[later.count++] = s;
    } else {
      now.step[now.count++] = s;
      most = std::max(most, s.n);
    }
  }
  steps_ = later;
  std::fill_n(at_source_, later.count, true);
  launch(one_each(most), stream_, run_steps, now);
}

template <class C>
void DeviceMemory::read_steps(const ConstTensor& t, const Walk& w, C* out) {
  Index stride;
  if (w.even(&stride)) {
    return add({.kind = Step::copy,
                .n = w.count(),
                .out = {out, DTypeOf<C>::value, 1},
                .in = {t.data(), t.dtype(), stride, 0}});
  }
  read_array(t, w, out, stream());
}
void DeviceMemory::read(const ConstTensor& t, const Walk& w, float* out) { read_steps(t, w, out); }
void DeviceMemory::read(const ConstTensor& t, const Walk& w, double* out) { read_steps(t, w, out); }
void DeviceMemory::store(const double* values, const Tensor& t, const Walk& w) {
  Index stride;
  if (w.even(&stride)) {
    return add({.kind = Step::copy,
                .n = w.count(),
                .out = {t.data(), t.dtype(), stride},
                .in = of_table(values)});
  }
  need(values);
  with_element_type(t.dtype(), [&]<class T>(T) {
    const Index n = w.count();
    launch(one_each(n), stream(), store_kernel<T>, values, DeviceWalk(w), n,
           static_cast<T*>(t.data()));
  });
}
void DeviceMemory::repeat(double* values, Index n, Index total) {
  need(values);
  launch(one_each(total - n), stream(), repeat_kernel, values, n, total);
}
void DeviceMemory::scale(double* values, Index n, double factor) {
  add({.kind = Step::scale,
       .n = n,
       .out = {values, DType::kFloat64, 1},
       .in = of_table(values),
       .a = factor});
}
void DeviceMemory::transform(Transform t, const double* values, Index n, double* out) {
  add({.kind = t == kSquare ? Step::square : Step::reciprocal,
       .n = n,
       .out = {out, DType::kFloat64, 1},
       .in = of_table(values)});
}
void DeviceMemory::sum_each(const double* values, Index rows, Index n, double* out) {
  need(values);
  launch({rows, 32}, stream(), sum_each_kernel, values, n, out);
}
void DeviceMemory::blend(const double* old, const double* values, Index rows, Index n,
                         double momentum, double factor, double* out) {
  add({.kind = Step::blend,
       .n = n,
       .out = {out, DType::kFloat64, 1},
       .in = of_table(old),
       .a = momentum,
       .b = factor,
       .values = values,
       .rows = rows});
}
void DeviceMemory::shift(const float* values, Index n, double offset, float* out) {
  add({.kind = Step::shift,
       .n = n,
       .out = {out, DType::kFloat32, 1},
       .in = {values, DType::kFloat32, 1, 0},
       .a = offset});
}
void DeviceMemory::shift(const double* values, Index n, double offset, double* out) {
  add({.kind = Step::shift,
       .n = n,
       .out = {out, DType::kFloat64, 1},
       .in = of_table(values),
       .a = offset});
}
void DeviceMemory::fill(float* out, Index n, float value) {
  add({.kind = Step::fill, .n = n, .out = {out, DType::kFloat32, 1}, .a = double(value)});
}
void DeviceMemory::fill(double* out, Index n, double value) {
  add({.kind = Step::fill, .n = n, .out = {out, DType::kFloat64, 1}, .a = value});
}

}  // namespace normcore::cuda
