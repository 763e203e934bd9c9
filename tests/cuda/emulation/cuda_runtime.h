// CUDA on the host, for tests alone: what the kernels of cpp/src/cuda use of it, with the threads
// of a block (or of a cluster of blocks) as fibers that take turns at barriers and shuffles. Shows:
// indexing, tails, the logic of reductions and of the solve step, barriers that not all threads
// reach, determinism, and under ThreadSanitizer (NORMCORE_RACES) races. Cannot show: speed.
//
// The environment's NORMCORE_EMULATED_ORDER, ascending (the default), descending or random, is the
// order in which blocks, and threads between two barriers, take turns.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)
#define __CUDA_ARCH__ 900

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint4 {
  unsigned x, y, z, w;
};
struct float4 {
  float x, y, z, w;
};

namespace emulation {

struct Fiber {
  dim3 thread, block;
  unsigned rank = 0;  // of the block in its cluster
  double* shared = nullptr;
};
extern Fiber* here;

// All threads of the warp, block or cluster wait for each other; those that returned do not count.
// What is written to memory before a barrier is there after it, except for exchange_barrier: the
// threads of a warp pass each other values, which orders no memory.
void exchange_barrier();
void warp_barrier();
void block_barrier();
void cluster_barrier();
double* shared_of(unsigned rank);
// Where the threads of this warp leave values for each other.
inline constexpr std::size_t kSlotBytes = 48;  // of each lane
void* lane_slot(unsigned lane);
bool any_of_block(bool flag);

struct Shape {
  dim3 grid, block;
  unsigned cluster;
  std::size_t shared_bytes;
};
// Kernels launched and calls of cudaMallocFromPoolAsync so far.
inline int launches = 0;
inline int allocations = 0;
inline bool out_of_memory = false;  // whether the next ones fail

// What the host side finds, and what it has asked for: "call device argument", where `record` says.
struct Host {
  bool pools = true;
  int largest_cluster = 16;   // 0: the question fails
  int refused_cluster = 0;    // of so many blocks, or more, none has room; 0: all have
  int device = 0;             // the current one
  void* capturing = nullptr;  // a stream
  bool busy = false;          // whether what was queued has not been done; waiting for it ends that
  bool record = false;
  std::vector<std::string> calls;
  void note(const char* call, const void* argument) {
    if (!record) return;
    calls.push_back(std::string(call) + " " + std::to_string(device) + " " +
                    std::to_string(reinterpret_cast<std::uintptr_t>(argument)));
  }
};
inline Host host;

// Runs `thread` for every thread of the grid, block by block. Throws where threads wait in vain.
void run(const Shape& shape, const std::function<void()>& thread);

}  // namespace emulation

#define threadIdx (::emulation::here->thread)
#define blockIdx (::emulation::here->block)
extern dim3 blockDim, gridDim;
#define NORMCORE_SHARED_MEMORY (::emulation::here->shared)

inline void __syncthreads() { ::emulation::block_barrier(); }
inline int __syncthreads_or(int flag) { return ::emulation::any_of_block(flag != 0); }

// What lane `from` brings to a shuffle.
template <class T>
[[gnu::no_sanitize_thread]] T value_of_lane(T value, unsigned from) {
  *static_cast<T*>(emulation::lane_slot(threadIdx.x % 32)) = value;
  emulation::exchange_barrier();
  const T other = *static_cast<T*>(emulation::lane_slot(from));
  emulation::exchange_barrier();
  return other;
}
template <class T>
T __shfl_sync(unsigned, T value, int from) {
  return value_of_lane(value, unsigned(from) % 32);
}
template <class T>
T __shfl_xor_sync(unsigned, T value, int distance) {
  return value_of_lane(value, threadIdx.x % 32 ^ unsigned(distance));
}
template <class T>
T __shfl_down_sync(unsigned, T value, unsigned distance) {
  const unsigned lane = threadIdx.x % 32;
  return value_of_lane(value, lane + distance < 32 ? lane + distance : lane);
}
// The product of a warp's tensor cores, as cuda/mma.cuh wants it: each lane shows what it holds of
// a and b. The order of the terms is that of the inner dimension.
[[gnu::no_sanitize_thread]] inline void multiply_add_of_warp(double* d, const double (&a)[4],
                                                             const double (&b)[2]) {
  struct Held {
    double a[4], b[2];
  };
  static_assert(sizeof(Held) <= emulation::kSlotBytes);
  const unsigned lane = threadIdx.x % 32;
  *static_cast<Held*>(emulation::lane_slot(lane)) = {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
  emulation::exchange_barrier();
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (unsigned k = 0; k < 8; ++k) {
      const Held& of_a = *static_cast<Held*>(emulation::lane_slot(row % 8 * 4 + k % 4));
      const Held& of_b = *static_cast<Held*>(emulation::lane_slot(column * 4 + k % 4));
      d[i] = std::fma(of_a.a[row / 8 + k / 4 * 2], of_b.b[k / 4], d[i]);
    }
  }
  emulation::exchange_barrier();
}
#define NORMCORE_MULTIPLY_ADD multiply_add_of_warp
inline unsigned __ballot_sync(unsigned, int flag) {
  unsigned lanes = flag != 0 ? 1u << threadIdx.x % 32 : 0u;
  for (int d = 16; d > 0; d /= 2) lanes |= __shfl_xor_sync(0xffffffffu, lanes, d);
  return lanes;
}
inline int __any_sync(unsigned mask, int flag) { return __ballot_sync(mask, flag) != 0; }
inline int __all_sync(unsigned mask, int flag) { return __ballot_sync(mask, flag == 0) == 0; }
inline void __syncwarp(unsigned = 0xffffffffu) { emulation::warp_barrier(); }

// Loads and stores with a hint for the caches.
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, T v) {
  *p = v;
}
template <class T>
void __stcg(T* p, T v) {
  *p = v;
}

template <class T>
T atomicAdd(T* p, T v) {
  return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}

// Arithmetic that no compiler contracts or takes apart.
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline float rsqrtf(float v) { return 1 / std::sqrt(v); }
inline float __uint_as_float(unsigned v) { return std::bit_cast<float>(v); }
inline unsigned __float_as_uint(float v) { return std::bit_cast<unsigned>(v); }
inline double __hiloint2double(int high, int low) {
  return std::bit_cast<double>(std::uint64_t(unsigned(high)) << 32 | unsigned(low));
}
inline int __double2hiint(double v) { return int(std::bit_cast<std::uint64_t>(v) >> 32); }
inline int __double2loint(double v) { return int(std::bit_cast<std::uint64_t>(v)); }
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned bits) {
  return unsigned((std::uint64_t(high) << 32 | low) >> (bits & 31));
}

// ---- the runtime

using cudaStream_t = struct CUstream_st*;
using cudaMemPool_t = struct CUmemPoolHandle_st*;
using cudaEvent_t = struct CUevent_st*;
enum cudaError_t {
  cudaSuccess,
  cudaErrorMemoryAllocation,
  cudaErrorNotReady,
  cudaErrorInvalidClusterSize,
  cudaErrorInvalidValue,
  cudaErrorStreamCaptureUnsupported
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount,
  cudaDevAttrComputeCapabilityMajor,
  cudaDevAttrMaxSharedMemoryPerBlockOptin,
  cudaDevAttrL2CacheSize,
  cudaDevAttrCooperativeLaunch,
  cudaDevAttrMemoryPoolsSupported
};
enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeRelaxed = 2 };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive };
enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeClusterDimension = 4
};
enum cudaFuncAttribute {
  cudaFuncAttributeNonPortableClusterSizeAllowed,
  cudaFuncAttributeMaxDynamicSharedMemorySize
};
enum cudaMemAllocationType { cudaMemAllocationTypePinned };
enum cudaMemLocationType { cudaMemLocationTypeDevice };
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold };
inline constexpr unsigned cudaEventDisableTiming = 2;

union cudaLaunchAttributeValue {
  struct {
    unsigned x, y, z;
  } clusterDim;
  int cooperative;
};
struct cudaLaunchAttribute {
  cudaLaunchAttributeID id;
  cudaLaunchAttributeValue val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute* attrs;
  unsigned numAttrs;
};
struct cudaMemPoolProps {
  cudaMemAllocationType allocType;
  struct {
    cudaMemLocationType type;
    int id;
  } location;
};
struct cudaFuncAttributes {
  int ptxVersion;
};
struct cudaPointerAttributes {
  int device;
};

inline cudaError_t emulated_error = cudaSuccess;  // the last one, until it is asked for
inline cudaError_t emulated_result(cudaError_t code) {
  if (code != cudaSuccess) emulated_error = code;
  return code;
}
inline const char* cudaGetErrorString(cudaError_t code) {
  return code == cudaErrorMemoryAllocation ? "out of memory" : "operation not permitted";
}
inline cudaError_t cudaGetLastError() { return std::exchange(emulated_error, cudaSuccess); }
inline cudaError_t cudaGetDevice(int* d) { return *d = emulation::host.device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int d) {
  emulation::host.device = d;
  return emulation::host.note("cudaSetDevice", nullptr), cudaSuccess;
}
inline cudaError_t cudaGetDeviceCount(int* n) { return *n = 1, cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr a, int) {
  // One multiprocessor, so that the blocks of small grids have several rows to walk; little shared
  // memory, so that small matrices do not fit; a small cache, so that small arrays are worked on in
  // several runs.
  *value = a == cudaDevAttrMultiProcessorCount            ? 1
           : a == cudaDevAttrMaxSharedMemoryPerBlockOptin ? 24 << 10
           : a == cudaDevAttrL2CacheSize                  ? 1 << 18
           : a == cudaDevAttrMemoryPoolsSupported         ? int(emulation::host.pools)
                                                          : 9;
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(std::size_t* unused, std::size_t* all) {
  return *unused = *all = std::size_t(1) << 20, cudaSuccess;
}
inline cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* a, const void*) {
  return a->device = 0, cudaSuccess;
}
inline cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) {
  static char one;
  return *pool = reinterpret_cast<cudaMemPool_t>(&one), cudaSuccess;
}
inline cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) {
  return cudaSuccess;
}
inline cudaError_t cudaMemPoolTrimTo(cudaMemPool_t, std::size_t) {
  return emulation::host.note("cudaMemPoolTrimTo", nullptr), cudaSuccess;
}
inline cudaError_t emulated_allocate(void** p, std::size_t bytes) {
  if (emulation::out_of_memory) return emulated_result(cudaErrorMemoryAllocation);
  ++emulation::allocations;
  *p = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*p) std::memset(*p, 0xff, bytes);  // NaN: what was never written shows
  return *p ? cudaSuccess : emulated_result(cudaErrorMemoryAllocation);
}
inline cudaError_t cudaMallocFromPoolAsync(void** p, std::size_t bytes, cudaMemPool_t,
                                           cudaStream_t stream) {
  emulation::host.note("cudaMallocFromPoolAsync", stream);
  return emulated_allocate(p, bytes);
}
inline cudaError_t cudaMalloc(void** p, std::size_t bytes) {
  emulation::host.note("cudaMalloc", nullptr);
  return emulated_allocate(p, bytes);
}
inline cudaError_t cudaFreeAsync(void* p, cudaStream_t stream) {
  emulation::host.note("cudaFreeAsync", stream);
  return std::free(p), cudaSuccess;
}
inline cudaError_t cudaFree(void* p) {
  emulation::host.note("cudaFree", p);
  return std::free(p), cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() {
  emulation::host.note("cudaDeviceSynchronize", nullptr);
  if (emulation::host.capturing) return emulated_result(cudaErrorStreamCaptureUnsupported);
  return emulation::host.busy = false, cudaSuccess;
}
enum cudaMemcpyKind { cudaMemcpyDeviceToHost = 2, cudaMemcpyDefault = 4 };
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t) {
  return std::memcpy(to, from, bytes), cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = stream && stream == emulation::host.capturing ? cudaStreamCaptureStatusActive
                                                          : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
inline cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) {
  return cudaSuccess;
}
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  static char one;
  return *event = reinterpret_cast<cudaEvent_t>(&one), cudaSuccess;
}
inline cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t stream) {
  return emulation::host.note("cudaEventRecord", stream), cudaSuccess;
}
inline cudaError_t cudaEventQuery(cudaEvent_t) {
  return emulation::host.busy ? emulated_result(cudaErrorNotReady) : cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t) {
  return emulation::host.busy = false, cudaSuccess;
}
inline cudaError_t cudaEventDestroy(cudaEvent_t) { return cudaSuccess; }
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t, unsigned) {
  return emulation::host.note("cudaStreamWaitEvent", stream), cudaSuccess;
}
inline cudaError_t cudaOccupancyMaxPotentialClusterSize(int* size, const void*,
                                                        const cudaLaunchConfig_t*) {
  *size = emulation::host.largest_cluster;
  return *size > 0 ? cudaSuccess : emulated_result(cudaErrorInvalidClusterSize);
}
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, const void*) {
  return a->ptxVersion = 90, cudaSuccess;
}
inline std::map<const void*, std::size_t> emulated_shared_bytes;  // granted to kernels that asked
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute a, int value) {
  if (a == cudaFuncAttributeMaxDynamicSharedMemorySize) emulated_shared_bytes[kernel] = value;
  return cudaSuccess;
}

// Four small blocks, so that those of small grids have several rows to walk.
inline cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*,
                                                                 int threads, std::size_t) {
  *blocks = std::max(1, 512 / threads);
  return cudaSuccess;
}
inline bool has_attribute(const cudaLaunchConfig_t* c, cudaLaunchAttributeID id) {
  return c->numAttrs > 0 && c->attrs[0].id == id;
}
inline unsigned emulated_cluster(const cudaLaunchConfig_t* c) {
  return has_attribute(c, cudaLaunchAttributeClusterDimension) ? c->attrs[0].val.clusterDim.x : 1;
}
// Devices say in both ways that a cluster has no room.
inline cudaError_t cudaOccupancyMaxActiveClusters(int* clusters, const void*,
                                                  const cudaLaunchConfig_t* c) {
  const unsigned refused = unsigned(emulation::host.refused_cluster);
  *clusters = refused == 0 || emulated_cluster(c) < refused;
  return *clusters == 1 || emulated_cluster(c) == refused
             ? cudaSuccess
             : emulated_result(cudaErrorInvalidClusterSize);
}

template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* c, void (*kernel)(Params...),
                               Args&&... args) {
  emulation::host.note("cudaLaunchKernelEx", c->stream);
  const unsigned cluster = emulated_cluster(c), refused = unsigned(emulation::host.refused_cluster);
  if (refused > 0 && cluster >= refused) return emulated_result(cudaErrorInvalidClusterSize);
  if (c->dynamicSmemBytes > 48 << 10 &&
      c->dynamicSmemBytes > emulated_shared_bytes[reinterpret_cast<const void*>(kernel)]) {
    return emulated_result(cudaErrorInvalidValue);
  }
  // The blocks of a cooperative launch wait for each other as those of a cluster do.
  const bool together = has_attribute(c, cudaLaunchAttributeCooperative);
  emulation::run({c->gridDim, c->blockDim, together ? c->gridDim.x : cluster, c->dynamicSmemBytes},
                 [&] { kernel(args...); });
  return cudaSuccess;
}
