// Device memory, and the kernels for the small arrays of a call.
#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "cuda/device_buffer.h"
#include "cuda/elements.cuh"
#include "cuda/launch.h"
#include "cuda/summers.cuh"
#include "normcore/errors.h"

namespace normcore::cuda {
namespace {

constexpr int kMostDevices = 64;
constexpr int kMostWalkAxes = 8;
constexpr std::size_t kAlignment = 256;

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
  if (i < n) to[walk.at(i)] = narrow_double<T>(values[i]);
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
  const Weighed counted = s.counted.value();
  if (counted.sum == 0) return s.in(i);
  double sum = 0;
  for (Index o = 0; o < s.rows; ++o) sum += s.values[o * s.n + i];
  return blended(s.in(i), sum / double(s.rows), s.a, s.unbiased ? counted.bessel() : 1);
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

// Blocks of a cluster that the device runs. Code that was compiled for less than 9.0 knows no
// clusters, on whatever device it runs; parts of a device may hold only small ones.
int most_cluster(int device) {
  int major = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device),
        "cudaDeviceGetAttribute");
  const auto* kernel = reinterpret_cast<const void*>(&repeat_kernel);
  cudaFuncAttributes code{};
  check(cudaFuncGetAttributes(&code, kernel), "cudaFuncGetAttributes");
  if (major < 9 || code.ptxVersion < 90) return 1;
  constexpr int kLargest = 16, kClusterThreads = 512;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kLargest);
  config.blockDim = dim3(kClusterThreads);
  int size = 0;
  if (cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1) !=
          cudaSuccess ||
      cudaOccupancyMaxPotentialClusterSize(&size, kernel, &config) != cudaSuccess) {
    cudaGetLastError();
    return 1;
  }
  return int(std::bit_floor(unsigned(std::clamp(size, 1, kLargest))));
}

struct DeviceState {
  std::once_flag once;
  std::atomic<bool> used = false;  // and the rest is made
  DeviceFacts facts{};
  cudaMemPool_t pool{};  // null where the device has none
  std::size_t most_returned = 0;

  // Results that nobody owns, whose readers may not have run.
  std::mutex mutex;
  std::vector<void*> returned;
  std::size_t returned_bytes = 0;
};

// For ever: results may be dropped after the end of the program.
auto& states() {
  static auto& all = *new std::array<DeviceState, kMostDevices>;
  return all;
}

cudaMemPool_t make_pool(int device) {
  cudaMemPool_t pool{};
  cudaMemPoolProps props{};
  props.allocType = cudaMemAllocationTypePinned;
  props.location = {cudaMemLocationTypeDevice, device};
  check(cudaMemPoolCreate(&pool, &props), "cudaMemPoolCreate");
  // Enough for the scratch of calls; what is beyond goes back to the device when it is waited for,
  // so that other allocators find it.
  std::uint64_t keep = std::uint64_t(1) << 26;
  check(cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &keep),
        "cudaMemPoolSetAttribute");
  return pool;
}

DeviceState& state_of(int device) {
  if (device < 0 || device >= kMostDevices) throw device_error("device number beyond 63");
  DeviceState& s = states()[std::size_t(device)];
  std::call_once(s.once, [&] {
    const DeviceGuard guard(device);
    auto fact = [&](cudaDeviceAttr what) {
      int value = 0;
      check(cudaDeviceGetAttribute(&value, what, device), "cudaDeviceGetAttribute");
      return value;
    };
    s.facts = {fact(cudaDevAttrMultiProcessorCount), fact(cudaDevAttrL2CacheSize),
               most_cluster(device), fact(cudaDevAttrMaxSharedMemoryPerBlockOptin),
               fact(cudaDevAttrCooperativeLaunch) != 0};
    std::size_t unused = 0, all = 0;
    check(cudaMemGetInfo(&unused, &all), "cudaMemGetInfo");
    s.most_returned = all / 16;
    if (fact(cudaDevAttrMemoryPoolsSupported)) s.pool = make_pool(device);
    s.used.store(true, std::memory_order_release);
  });
  return s;
}

// The thread may do what a capture of another thread's stream forbids by default: nothing that it
// does belongs to that capture.
class BesideCaptures {
 public:
  BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  ~BesideCaptures() { cudaThreadExchangeStreamCaptureMode(&mode_); }
  BesideCaptures(const BesideCaptures&) = delete;
  BesideCaptures& operator=(const BesideCaptures&) = delete;

 private:
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
};

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream, &status) != cudaSuccess) {
    cudaGetLastError();  // the legacy stream, while another one is being captured
    return false;
  }
  return status != cudaStreamCaptureStatusNone;
}

// Frees what was returned until now, once the device, which is current, has done all that it has
// been told to do. Where it cannot be waited for, during a capture say, nothing is freed.
void free_returned(DeviceState& s) {
  const BesideCaptures beside;
  std::vector<void*> returned;
  {
    const std::lock_guard lock(s.mutex);
    returned.swap(s.returned);
    s.returned_bytes = 0;
  }
  if (cudaDeviceSynchronize() != cudaSuccess) {
    cudaGetLastError();
    const std::lock_guard lock(s.mutex);
    s.returned.insert(s.returned.end(), returned.begin(), returned.end());
    return;
  }
  // It takes memory of pools too, and waits for nobody then.
  for (void* p : returned) cudaFree(p);
  if (s.pool && cudaMemPoolTrimTo(s.pool, 0) != cudaSuccess) cudaGetLastError();
}

class Event {
 public:
  explicit Event(cudaStream_t stream) {
    check(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming), "cudaEventCreateWithFlags");
    const cudaError_t recorded = cudaEventRecord(event_, stream);
    if (recorded != cudaSuccess) cudaEventDestroy(event_);
    check(recorded, "cudaEventRecord");
  }
  Event(Event&& other) noexcept : event_(std::exchange(other.event_, nullptr)) {}
  Event& operator=(Event&& other) noexcept {
    std::swap(event_, other.event_);
    return *this;
  }
  ~Event() {
    if (event_) cudaEventDestroy(event_);  // once it has happened
  }
  cudaEvent_t get() const { return event_; }

 private:
  cudaEvent_t event_ = nullptr;
};

struct Kept {
  Event done;
  int device;
  std::shared_ptr<void> owner;
};
std::mutex kept_mutex;
std::vector<Kept>& kept() {
  static auto& all = *new std::vector<Kept>;
  return all;
}

}  // namespace

bool is_built() { return true; }

bool is_available() {
  int count = 0;
  const cudaError_t code = cudaGetDeviceCount(&count);
  if (code != cudaSuccess) cudaGetLastError();
  return code == cudaSuccess && count > 0;
}

const DeviceFacts& facts_of(int device) { return state_of(device).facts; }

Index resident_clusters(const void* kernel, const Launch& l, int device) {
  static std::mutex lock;
  static std::map<std::tuple<const void*, int, int, int, int>, Index> known;
  const std::tuple key{kernel, device, l.cluster, l.threads, l.shared_bytes};
  const std::lock_guard guard(lock);
  if (const auto it = known.find(key); it != known.end()) return it->second;
  // What a kernel is granted is the last that was asked for: never less than before.
  static std::map<std::pair<const void*, int>, int> granted;
  int& bytes = granted.try_emplace({kernel, device}, kSharedBytes).first->second;
  if (l.shared_bytes > bytes) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, l.shared_bytes),
          "cudaFuncSetAttribute");
    bytes = l.shared_bytes;
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
    const cudaError_t code = cudaOccupancyMaxActiveClusters(&count, kernel, &config.config);
    if (code == cudaErrorInvalidClusterSize) {
      cudaGetLastError();
      count = 0;
    } else {
      check(code, "cudaOccupancyMaxActiveClusters");
    }
  }
  known[key] = count;
  return count;
}

void* allocate(std::size_t bytes, int device, cudaStream_t stream) {
  DeviceState& s = state_of(device);
  void* p = nullptr;
  const auto attempt = [&] {
    return s.pool ? cudaMallocFromPoolAsync(&p, bytes, s.pool, stream) : cudaMalloc(&p, bytes);
  };
  cudaError_t code = attempt();
  if (code == cudaErrorMemoryAllocation && !is_capturing(stream)) {
    cudaGetLastError();
    free_returned(s);
    code = attempt();
  }
  check(code, s.pool ? "cudaMallocFromPoolAsync" : "cudaMalloc");
  return p;
}

void release(void* memory, int device, cudaStream_t stream) noexcept {
  // Whoever has allocated has made the state.
  const bool pooled = states()[std::size_t(device)].pool;
  if ((pooled ? cudaFreeAsync(memory, stream) : cudaFree(memory)) != cudaSuccess) {
    cudaGetLastError();
  }
}

std::shared_ptr<void> allocate_shared(std::size_t bytes, const Context& where) {
  const DeviceGuard guard(where.device_index);
  DeviceState& s = state_of(where.device_index);
  const auto stream = static_cast<cudaStream_t>(where.stream);
  if (is_capturing(stream)) {
    throw value_error(
        "the stream of x is being captured, where a result cannot be allocated for its library: "
        "pass out=");
  }
  bool many = false;
  {
    const std::lock_guard lock(s.mutex);
    many = s.returned_bytes > s.most_returned;
  }
  if (many) free_returned(s);
  bytes = std::max<std::size_t>(1, bytes);
  return {allocate(bytes, where.device_index, stream), [&s, bytes](void* memory) {
            const std::lock_guard lock(s.mutex);
            s.returned.push_back(memory);
            s.returned_bytes += bytes;
          }};
}

void empty_cache() {
  for (int device = 0; device < kMostDevices; ++device) {
    DeviceState& s = states()[std::size_t(device)];
    if (!s.used.load(std::memory_order_acquire)) continue;
    const DeviceGuard guard(device);
    free_returned(s);
  }
}

void copy(void* to, const void* from, std::size_t bytes, const Context& where, bool wait) {
  const DeviceGuard guard(where.device_index);
  const auto stream = static_cast<cudaStream_t>(where.stream);
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, stream), "cudaMemcpyAsync");
  if (wait) check(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
}

void order_streams(const Context& first, const Context& then) {
  if (first.stream == then.stream) return;
  const DeviceGuard guard(first.device_index);
  const auto from = static_cast<cudaStream_t>(first.stream);
  const auto to = static_cast<cudaStream_t>(then.stream);
  if (is_capturing(from)) {
    throw value_error(
        "an array is written on a stream that is being captured, expected that it is used on this "
        "stream alone until the end of the capture");
  }
  // A graph cannot wait for what is outside of it: whoever launches it sees to that.
  if (is_capturing(to)) return;
  const Event done(from);
  check(cudaStreamWaitEvent(to, done.get(), 0), "cudaStreamWaitEvent");
}

void keep_until_done(std::shared_ptr<void> owner, const Context& where) {
  drop_what_is_done();
  const auto stream = static_cast<cudaStream_t>(where.stream);
  // Of a graph's memory its owner takes care for as long as there is the graph.
  if (!owner || is_capturing(stream)) return;
  const DeviceGuard guard(where.device_index);
  Kept one{Event(stream), where.device_index, std::move(owner)};
  const std::lock_guard lock(kept_mutex);
  kept().push_back(std::move(one));
}

void drop_what_is_done() {
  std::vector<Kept> done;  // dropped without the lock: an owner may do anything
  const BesideCaptures beside;
  const std::lock_guard lock(kept_mutex);
  std::erase_if(kept(), [&](Kept& k) {
    const cudaError_t code = cudaEventQuery(k.done.get());
    if (code != cudaSuccess) cudaGetLastError();
    if (code == cudaErrorNotReady) return false;
    done.push_back(std::move(k));
    return true;
  });
}

void wait_for_kept() {
  std::vector<cudaEvent_t> events;
  {
    const std::lock_guard lock(kept_mutex);
    for (const Kept& k : kept()) events.push_back(k.done.get());
  }
  for (cudaEvent_t e : events) cudaEventSynchronize(e);
}

int device_of(const void* address) {
  int device = 0;
  if (!address) {
    check(cudaGetDevice(&device), "cudaGetDevice");
    return device;
  }
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
  for (void* p : chunks_) release(p, device_, stream_);
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
                         double momentum, const Counted& counted, bool unbiased, double* out) {
  add({.kind = Step::blend,
       .n = n,
       .out = {out, DType::kFloat64, 1},
       .in = of_table(old),
       .a = momentum,
       .values = values,
       .rows = rows,
       .counted = counted,
       .unbiased = unbiased});
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
