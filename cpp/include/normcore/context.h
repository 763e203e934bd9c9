// Where and how a call runs: the device, its stream and the number of CPU threads; and the settings
// of the process.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "normcore/errors.h"
#include "normcore/export.h"

namespace normcore {

enum class Device { kCpu, kCuda };

// Sums over all processes that call an operation together, by MPI or anything else.
class NORMCORE_API Exchange {
 public:
  virtual ~Exchange() = default;
  // Replaces every value by its sum over the processes. All of them call it equally often with
  // equally many values, and get the same.
  virtual void sum(double* values, std::ptrdiff_t n) = 0;
  // The same for calls on a CUDA device, where `values` lie: queued on `stream`, a cudaStream_t.
  // Nobody waits for it. Throws a value_error where it is not overridden.
  virtual void sum_on_device(double* /*values*/, std::ptrdiff_t /*n*/, int /*device*/,
                             void* /*stream*/) {
    throw value_error(
        "context.exchange has no sum_on_device, expected one for arrays on a CUDA device");
  }
};

// Asked by the calling thread about ten times a second while a long call runs on the CPU.
class NORMCORE_API Interrupt {
 public:
  virtual ~Interrupt() = default;
  // Ends the call by an exception, which the caller gets. What the call writes is then incomplete,
  // but running buffers have not moved.
  virtual void check() = 0;
};

struct Context {
  Device device = Device::kCpu;
  int device_index = 0;    // of the CUDA device
  void* stream = nullptr;  // cudaStream_t; null is the legacy default stream
  int threads = 0;         // up to kMostThreads; 0: as set_num_threads says
  // Device memory, aligned to 256 bytes, for the call alone until the stream has passed it. What it
  // lacks comes from a stream-ordered pool.
  void* workspace = nullptr;
  std::size_t workspace_bytes = 0;
  // Batch statistics are those of all processes' samples, however many each has, also none. Not for
  // Lp and top-k batch norm.
  Exchange* exchange = nullptr;
  Interrupt* interrupt = nullptr;
};

// More than any machine has cores, and few enough to be started.
inline constexpr int kMostThreads = 1024;

// Threads of calls that do not say: what was set here, else what OpenMP's runtime offers, else
// OMP_NUM_THREADS, else the cores of the process; at most kMostThreads. A call takes fewer where
// the system does not let it start so many.
NORMCORE_API int get_num_threads();
NORMCORE_API void set_num_threads(int n);  // throws but for 1 to kMostThreads

// The instruction set of the CPU kernels: "x86-64-v2", "x86-64-v3", "x86-64-v4" or "generic". The
// best that the CPU has is chosen at start; the environment variable NORMCORE_ISA forces one. A
// level takes what the CPU has beyond it (x86-64-v4: avx512_bf16), for the same bits in less time;
// with "-base" behind its name it does not.
NORMCORE_API std::string get_isa();
// "v3" will do. Calls that run keep the one that they began with.
NORMCORE_API void set_isa(const std::string& name);
NORMCORE_API std::vector<std::string> available_isas();

// Whether something has brought an OpenMP runtime into the process: large calls then run in its
// threads, and in some of our own where there is none.
NORMCORE_API bool has_openmp();
NORMCORE_API const char* compiler();

namespace cuda {
NORMCORE_API bool is_built();      // with the CUDA backend
NORMCORE_API bool is_available();  // and a device and its driver are here
}  // namespace cuda

}  // namespace normcore
