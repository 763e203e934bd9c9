// The native benchmark: every cell of bench/shapes.json in f32, bf16 and f16, forward and backward,
// through the C++ API; every kernel on a tile in cache; and the copy that they are measured by.
//   normcore_benchmarks [--isa=v3|all] [--threads=N] [Google Benchmark's own options]
// Bytes are those of the minimum traffic. `roofline` is the time over that of copying these bytes
// with the better of plain and streamed stores, measured just before.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "normcore/normcore.h"

namespace {

using namespace normcore;

struct Cell {
  const char* op;
  const char* variant;
  std::vector<Index> shape;  // logical, channels second
  const char* layout;
  int axis;
  Index groups;
  struct Traffic {
    double in_cache, beyond;
  } forward, backward;
};

const std::vector<Cell>& cells() {
  static const std::vector<Cell> list = {
#include "cells.inc"
  };
  return list;
}

const char* short_name(DType t) {
  return t == DType::kFloat32 ? "f32" : t == DType::kBFloat16 ? "bf16" : "f16";
}

// Memory of some elements, filled with small numbers and aligned as large arrays of NumPy are.
class Memory {
 public:
  Memory(Index elements, DType dtype)
      : data_(std::aligned_alloc(64, (elements * Index(size_of(dtype)) + 191) / 64 * 64),
              std::free) {
    std::vector<float> numbers(4096);
    for (float& v : numbers) v = float(std::rand()) / float(RAND_MAX) + 0.5f;
    const auto& set = cpu::kernel_set<float>(cpu::kernels(), dtype);
    for (Index i = 0; i < elements; i += 4096) {
      set.store(numbers.data(), get() + i * Index(size_of(dtype)),
                std::min<Index>(4096, elements - i));
    }
  }
  char* get() const { return static_cast<char*>(data_.get()) + 16; }

 private:
  std::unique_ptr<void, void (*)(void*)> data_;
};

double seconds(const std::function<void()>& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Seconds of copying `bytes` of traffic, half of them read, with the better of the two stores.
double copy_seconds(const char* src, char* dst, Index tensor_bytes, double bytes) {
  double best = 1e9;
  for (const bool stream : {false, true}) {
    std::vector<double> times;
    for (int round = 0; round < 7; ++round) {
      times.push_back(seconds([&] {
        for (double left = bytes / 2; left > 0; left -= double(tensor_bytes)) {
          cpu::parallel_copy(src, dst, Index(std::min(left, double(tensor_bytes))), stream);
        }
      }));
    }
    std::nth_element(times.begin(), times.begin() + 3, times.end());
    best = std::min(best, times[3]);
  }
  return best;
}

double cache_bytes() {
  const long size = sysconf(_SC_LEVEL3_CACHE_SIZE);
  return size > 0 ? double(size) : double(Index(1) << 25);
}

// One call of a cell on memory of its own.
class Call {
 public:
  Call(const Cell& cell, DType dtype, int threads)
      : cell_(cell),
        elements_(count(cell.shape)),
        bytes_(elements_ * Index(size_of(dtype))),
        x_memory_(elements_, dtype),
        dy_memory_(elements_, dtype),
        out_memory_(elements_, dtype),
        row_(!std::strcmp(cell.op, "layer_norm") || !std::strcmp(cell.op, "rms_norm")),
        last_(!std::strcmp(cell.layout, "NHWC")) {
    context_.threads = threads;
    const int ndim = int(cell.shape.size());
    std::vector<Index> shape = cell.shape;
    if (last_) std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
    x_ = view(x_memory_, dtype, shape);
    dy_ = view(dy_memory_, dtype, shape);
    out_ = view(out_memory_, dtype, shape);
    const int axis = row_ ? (cell.axis + ndim) % ndim : last_ ? ndim - 1 : 1;
    const Index n = shape[std::size_t(axis)];
    const DType parameter_dtype = row_ ? dtype : DType::kFloat32;
    for (Memory*& m : parameters_) m = &owned_.emplace_back(n, parameter_dtype);
    weight_ = view(*parameters_[0], parameter_dtype, {n});
    bias_ = view(*parameters_[1], parameter_dtype, {n});
    dweight_ = view(*parameters_[2], parameter_dtype, {n});
    dbias_ = view(*parameters_[3], parameter_dtype, {n});
    running_mean_.assign(std::size_t(n), 0);
    running_var_.assign(std::size_t(n), 1);
    std::vector<Index> stats;
    if (row_) {
      stats = shape;
      stats[std::size_t(axis)] = 1;
    } else if (!std::strcmp(cell.op, "batch_norm")) {
      stats = {n};
    } else {
      stats = {shape[0], !std::strcmp(cell.op, "group_norm") ? cell.groups : n};
    }
    stats.push_back(2);
    pooled_.resize(std::size_t(count(stats)));
    pooled_view_ = Tensor(pooled_.data(), DType::kFloat64, int(stats.size()));
    for (int i = 0; i < int(stats.size()); ++i) pooled_view_.set_dim(i, stats[std::size_t(i)], 0);
    pooled_view_.set_contiguous();
    run(false, pooled_view_);
  }

  void forward() { run(false, {}); }
  void backward() { run(true, {}); }

  double traffic_bytes(bool backward) const {
    const Cell::Traffic& t = backward ? cell_.backward : cell_.forward;
    return double(bytes_) * (double(bytes_) <= cache_bytes() ? t.in_cache : t.beyond);
  }
  double copy(double bytes) const {
    return copy_seconds(x_memory_.get(), out_memory_.get(), bytes_, bytes);
  }

 private:
  static Index count(const std::vector<Index>& shape) {
    Index n = 1;
    for (Index s : shape) n *= s;
    return n;
  }
  static Tensor view(const Memory& m, DType dtype, const std::vector<Index>& shape) {
    Tensor t(m.get(), dtype, int(shape.size()));
    for (int i = 0; i < int(shape.size()); ++i) t.set_dim(i, shape[std::size_t(i)], 0);
    t.set_contiguous();
    return t;
  }

  void run(bool backward, const Tensor& pooled) {
    const std::string op = cell_.op;
    const StatsOut stats{{}, {}, pooled};
    const Gradients gradients{out_, dweight_, dbias_};
    const int channel_axis = last_ ? -1 : 1;
    if (op == "layer_norm") {
      const LayerNormOptions o{{cell_.axis}};
      backward ? layer_norm_backward(dy_, x_, weight_, gradients, o, {}, pooled_view_, context_)
               : layer_norm(x_, weight_, bias_, out_, o, stats, context_);
    } else if (op == "rms_norm") {
      const RMSNormOptions o{{cell_.axis}};
      const Gradients g{out_, dweight_, {}};
      backward ? rms_norm_backward(dy_, x_, weight_, g, o, {}, pooled_view_, context_)
               : rms_norm(x_, weight_, out_, o, stats, context_);
    } else if (op == "batch_norm") {
      BatchNormOptions o;
      const Index n = Index(running_mean_.size());
      o.running_mean = Tensor(running_mean_.data(), {n});
      o.running_var = Tensor(running_var_.data(), {n});
      o.training = !std::strcmp(cell_.variant, "train");
      o.channel_axis = channel_axis;
      backward ? batch_norm_backward(dy_, x_, weight_, gradients, o, pooled_view_, context_)
               : batch_norm(x_, weight_, bias_, out_, o, stats, context_);
    } else if (op == "instance_norm") {
      InstanceNormOptions o;
      o.channel_axis = channel_axis;
      backward ? instance_norm_backward(dy_, x_, weight_, gradients, o, pooled_view_, context_)
               : instance_norm(x_, weight_, bias_, out_, o, stats, context_);
    } else {
      GroupNormOptions o;
      o.channel_axis = channel_axis;
      backward ? group_norm_backward(dy_, x_, cell_.groups, weight_, gradients, o, pooled_view_,
                                     context_)
               : group_norm(x_, cell_.groups, weight_, bias_, out_, o, stats, context_);
    }
  }

  const Cell& cell_;
  Index elements_, bytes_;
  Memory x_memory_, dy_memory_, out_memory_;
  bool row_, last_;
  std::list<Memory> owned_;
  Memory* parameters_[4];
  Tensor x_, dy_, out_, weight_, bias_, dweight_, dbias_, pooled_view_;
  std::vector<float> running_mean_, running_var_;
  std::vector<double> pooled_;
  Context context_;
};

void run_cell(benchmark::State& state, const Cell& cell, DType dtype, bool backward,
              const std::string& isa, int threads) {
  set_isa(isa);
  Call call(cell, dtype, threads);
  const double bytes = call.traffic_bytes(backward);
  const double copy = call.copy(bytes);
  double total = 0;
  for (auto _ : state) {
    const double t = seconds([&] { backward ? call.backward() : call.forward(); });
    state.SetIterationTime(t);
    total += t;
  }
  state.SetBytesProcessed(int64_t(bytes) * int64_t(state.iterations()));
  state.counters["roofline"] = total / double(state.iterations()) / copy;
}

void run_copy(benchmark::State& state, Index bytes, bool stream) {
  Memory src(bytes / 4, DType::kFloat32), dst(bytes / 4, DType::kFloat32);
  for (auto _ : state) cpu::parallel_copy(src.get(), dst.get(), bytes, stream);
  state.SetBytesProcessed(2 * bytes * int64_t(state.iterations()));
}

// A kernel on a tile that stays in the first-level cache.
template <class F>
void add_kernel(const std::string& name, const std::string& isa, DType dtype, F f) {
  constexpr Index kRows = 32, kCols = 64;
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) mutable {
    set_isa(isa);
    const auto& set = cpu::kernel_set<float>(cpu::kernels(), dtype);
    const Memory x(kRows * kCols, dtype), dy(kRows * kCols, dtype), y(kRows * kCols, dtype);
    std::vector<float> c(kCols, 0.5f);
    std::vector<double> sums(2 * kCols);
    for (auto _ : state) {
      f(set, cpu::In{x.get(), kCols}, cpu::In{dy.get(), kCols}, cpu::Out{y.get(), kCols, false},
        kRows, kCols, c.data(), sums.data(), sums.data() + kCols);
      benchmark::ClobberMemory();
    }
    state.SetItemsProcessed(kRows * kCols * int64_t(state.iterations()));
  });
}

void register_kernels(const std::string& isa, const std::string& suffix) {
  using Set = cpu::KernelSet<float>;
  using cpu::In, cpu::Out;
  for (const DType t : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
    for (const int o : {0, 1}) {
      const std::string end = std::string(o ? "/columns/" : "/rows/") + short_name(t) + suffix;
      add_kernel("kernel/moments" + end, isa, t,
                 [o](const Set& k, In x, In, Out, Index r, Index c, const float*, double* a,
                     double* b) { k.moments[o](x, r, c, a, b); });
      add_kernel("kernel/squares" + end, isa, t,
                 [o](const Set& k, In x, In, Out, Index r, Index c, const float*, double* a,
                     double* b) { k.squares[o](x, r, c, a, b); });
      add_kernel("kernel/affine" + end, isa, t,
                 [o](const Set& k, In x, In, Out y, Index r, Index c, const float* f, double*,
                     double*) { k.affine[o](x, y, r, c, {f, f, f}); });
      add_kernel("kernel/scale" + end, isa, t,
                 [o](const Set& k, In x, In, Out y, Index r, Index c, const float* f, double*,
                     double*) { k.scale[o](x, y, r, c, {f, f, f}, f, f); });
      add_kernel("kernel/sums" + end, isa, t,
                 [o](const Set& k, In x, In dy, Out, Index r, Index c, const float* f, double* a,
                     double* b) { k.sums[o](dy, x, r, c, {f, f}, a, b); });
      add_kernel("kernel/weighted_sums" + end, isa, t,
                 [o](const Set& k, In x, In dy, Out, Index r, Index c, const float* f, double* a,
                     double* b) { k.weighted_sums[o](dy, x, r, c, {f, f}, f, a, b); });
      add_kernel("kernel/grad" + end, isa, t,
                 [o](const Set& k, In x, In dy, Out y, Index r, Index c, const float* f, double*,
                     double*) { k.grad[o](dy, x, y, r, c, {f, f, f, {f, f}}); });
      add_kernel("kernel/weighted_grad" + end, isa, t,
                 [o](const Set& k, In x, In dy, Out y, Index r, Index c, const float* f, double*,
                     double*) {
                   k.weighted_grad[o](dy, x, In{nullptr, 0}, y, r, c, {f, f, f, {f, f}}, f);
                 });
      std::vector<float> grads(128);
      add_kernel("kernel/parameter_sums" + end, isa, t,
                 [o, grads](const Set& k, In x, In dy, Out, Index r, Index c, const float* f,
                            double*, double*) mutable {
                   k.parameter_sums[o](dy, x, r, c, {f, f, f}, grads.data(), grads.data() + 64);
                 });
    }
  }
}

void register_all(const std::vector<std::string>& isas, int threads) {
  for (const std::string& isa : isas) {
    const std::string suffix = isas.size() > 1 ? "/" + isa : "";
    for (const Cell& cell : cells()) {
      std::string name = cell.op;
      if (*cell.variant) name += std::string("/") + cell.variant;
      for (std::size_t i = 0; i < cell.shape.size(); ++i) {
        name += i ? "x" : "/";
        name += std::to_string(cell.shape[i]);
      }
      if (cell.shape.size() > 2) name += std::string("/") + cell.layout;
      for (const DType t : {DType::kFloat32, DType::kBFloat16, DType::kFloat16}) {
        for (const bool backward : {false, true}) {
          benchmark::RegisterBenchmark(
              (name + "/" + short_name(t) + (backward ? "/backward" : "/forward") + suffix).c_str(),
              [&cell, t, backward, isa, threads](benchmark::State& s) {
                run_cell(s, cell, t, backward, isa, threads);
              })
              ->UseManualTime();
        }
      }
    }
    register_kernels(isa, suffix);
  }
  for (const Index mib : {1, 4, 16, 64}) {
    for (const bool stream : {false, true}) {
      benchmark::RegisterBenchmark((std::string("copy/").append(std::to_string(mib)) + "MiB/" +
                                    (stream ? "streamed" : "plain"))
                                       .c_str(),
                                   [=](benchmark::State& s) { run_copy(s, mib << 20, stream); })
          ->UseRealTime();
    }
  }
}

// Takes `--name=value` out of the arguments.
std::string take_flag(int* argc, char** argv, const std::string& name) {
  std::string value;
  int kept = 1;
  for (int i = 1; i < *argc; ++i) {
    if (std::string(argv[i]).rfind("--" + name + "=", 0) == 0) {
      value = argv[i] + name.size() + 3;
    } else {
      argv[kept++] = argv[i];
    }
  }
  *argc = kept;
  return value;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string isa = take_flag(&argc, argv, "isa"),
                    threads = take_flag(&argc, argv, "threads");
  std::vector<std::string> isas = {get_isa()};
  if (isa == "all") {
    isas = available_isas();
  } else if (!isa.empty()) {
    set_isa(isa);
    isas = {get_isa()};
  }
  if (!threads.empty()) set_num_threads(std::atoi(threads.c_str()));
  register_all(isas, get_num_threads());
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
