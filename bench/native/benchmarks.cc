// The native benchmark: every cell of bench/shapes.json in f32, bf16 and f16, forward and backward,
// through the C++ API; every kernel on a tile in cache; and the copy that they are measured by.
//   normcore_benchmarks [--isa=v3|all] [--threads=N] [Google Benchmark's own options]
// Bytes are those of the minimum traffic. `roofline` is the time over that of copying these bytes
// with the better of plain and streamed stores, measured just before. Where channels are mixed,
// `fma_share` is the part of the machine's multiply-adds that the matrix products reach.
#include <benchmark/benchmark.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <list>
#include <memory>
#include <string>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/parallel.h"
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
  double p;
  Index k;
  Index size, summation_window, suppression_window;
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

// Floating-point operations a second that all threads reach where nothing but arithmetic counts.
double peak_flops(int threads) {
  constexpr Index kRounds = 1 << 20;
  double best = 0;
  for (int run = 0; run < 5; ++run) {
    double flops = 0;
    const double t = seconds([&] {
      std::vector<double> of(std::size_t(threads) * 8);
      cpu::parallel_for(threads, threads, /*sticky=*/true, [&](Index i) {
        float sink = 0.5f;
        of[std::size_t(i) * 8] = cpu::kernels().multiply_adds(kRounds, &sink) + 0 * double(sink);
      });
      for (const double f : of) flops += f;
    });
    best = std::max(best, flops / t);
  }
  return best;
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

// The arguments of a cell's call. Vectors are by channel, or over the normalized axis.
struct Arguments {
  const Cell& cell;
  bool training;
  int channel_axis;
  Context context{};
  Tensor x{}, dy{}, out{};
  Tensor weight{}, bias{}, rho{}, mean_logits{}, var_logits{};
  Tensor dweight{}, dbias{}, drho{}, dmean_logits{}, dvar_logits{};
  Tensor running_mean{}, running_scale{};  // the latter a variance, a deviation or a scale
  Tensor mixing{}, dmixing{};              // weights of all pairs of channels
  Tensor pooled{}, given{};                // statistics, from forward to backward

  SavedStats saved() const { return {pooled, given}; }
  Gradients gradients() const { return {out, dweight, dbias}; }
};

// What the pairs of a method's saved statistics stand for: nothing, a row, a channel, a channel or
// group of a sample.
enum class Saved { none, rows, channels, instances, groups };

// A method's calls on the arguments; `stats` are those that forward is to write, or none.
struct Method {
  const char* name;
  Saved saved;
  void (*forward)(const Arguments&, const StatsOut& stats);
  void (*backward)(const Arguments&);
};

BatchNormOptions batch_norm_options(const Arguments& a) {
  BatchNormOptions o{a.running_mean, a.running_scale, a.training};
  o.channel_axis = a.channel_axis;
  return o;
}
InstanceNormOptions instance_norm_options(const Arguments& a) {
  InstanceNormOptions o;
  o.channel_axis = a.channel_axis;
  return o;
}
GroupNormOptions group_norm_options(const Arguments& a) {
  GroupNormOptions o;
  o.channel_axis = a.channel_axis;
  return o;
}
BatchRenormOptions renorm_options(const Arguments& a) {
  BatchRenormOptions o{a.running_mean, a.running_scale, a.training};
  o.channel_axis = a.channel_axis;
  return o;
}
// Of batch-instance and of switchable norm.
BatchInstanceNormOptions mixing_options(const Arguments& a) {
  BatchInstanceNormOptions o{a.running_mean, a.running_scale, a.training};
  o.channel_axis = a.channel_axis;
  return o;
}
MeanOnlyBatchNormOptions mean_only_options(const Arguments& a) {
  MeanOnlyBatchNormOptions o{a.running_mean, a.training};
  o.channel_axis = a.channel_axis;
  return o;
}
LpBatchNormOptions lp_options(const Arguments& a) {
  LpBatchNormOptions o{a.cell.p, a.running_mean, a.running_scale, a.training};
  o.channel_axis = a.channel_axis;
  return o;
}
TopKBatchNormOptions topk_options(const Arguments& a) {
  TopKBatchNormOptions o{a.cell.k, a.running_mean, a.running_scale, a.training};
  o.channel_axis = a.channel_axis;
  return o;
}

LocalDivisiveNormOptions divisive_options(const Arguments& a) {
  return {{a.cell.summation_window}, {a.cell.suppression_window}, a.channel_axis};
}

const Method kMethods[] = {
    {"layer_norm", Saved::rows,
     [](const Arguments& a, const StatsOut& stats) {
       layer_norm(a.x, a.weight, a.bias, a.out, {{a.cell.axis}}, stats, a.context);
     },
     [](const Arguments& a) {
       layer_norm_backward(a.dy, a.x, a.weight, a.gradients(), {{a.cell.axis}}, {}, a.pooled,
                           a.context);
     }},
    {"rms_norm", Saved::rows,
     [](const Arguments& a, const StatsOut& stats) {
       rms_norm(a.x, a.weight, a.out, {{a.cell.axis}}, stats, a.context);
     },
     [](const Arguments& a) {
       rms_norm_backward(a.dy, a.x, a.weight, {a.out, a.dweight, {}}, {{a.cell.axis}}, {}, a.pooled,
                         a.context);
     }},
    {"batch_norm", Saved::channels,
     [](const Arguments& a, const StatsOut& stats) {
       batch_norm(a.x, a.weight, a.bias, a.out, batch_norm_options(a), stats, a.context);
     },
     [](const Arguments& a) {
       batch_norm_backward(a.dy, a.x, a.weight, a.gradients(), batch_norm_options(a), a.saved(),
                           a.context);
     }},
    {"instance_norm", Saved::instances,
     [](const Arguments& a, const StatsOut& stats) {
       instance_norm(a.x, a.weight, a.bias, a.out, instance_norm_options(a), stats, a.context);
     },
     [](const Arguments& a) {
       instance_norm_backward(a.dy, a.x, a.weight, a.gradients(), instance_norm_options(a),
                              a.saved(), a.context);
     }},
    {"group_norm", Saved::groups,
     [](const Arguments& a, const StatsOut& stats) {
       group_norm(a.x, a.cell.groups, a.weight, a.bias, a.out, group_norm_options(a), stats,
                  a.context);
     },
     [](const Arguments& a) {
       group_norm_backward(a.dy, a.x, a.cell.groups, a.weight, a.gradients(), group_norm_options(a),
                           a.saved(), a.context);
     }},
    {"batch_renorm", Saved::channels,
     [](const Arguments& a, const StatsOut& stats) {
       batch_renorm(a.x, a.weight, a.bias, a.out, renorm_options(a), stats, a.context);
     },
     [](const Arguments& a) {
       batch_renorm_backward(a.dy, a.x, a.weight, a.gradients(), renorm_options(a), a.saved(),
                             a.context);
     }},
    {"batch_instance_norm", Saved::instances,
     [](const Arguments& a, const StatsOut& stats) {
       batch_instance_norm(a.x, a.rho, a.weight, a.bias, a.out, mixing_options(a), stats,
                           a.context);
     },
     [](const Arguments& a) {
       batch_instance_norm_backward(a.dy, a.x, a.rho, a.weight, a.gradients(), a.drho,
                                    mixing_options(a), a.saved(), a.context);
     }},
    {"switchable_norm", Saved::instances,
     [](const Arguments& a, const StatsOut& stats) {
       switchable_norm(a.x, a.mean_logits, a.var_logits, a.weight, a.bias, a.out, mixing_options(a),
                       stats, a.context);
     },
     [](const Arguments& a) {
       switchable_norm_backward(a.dy, a.x, a.mean_logits, a.var_logits, a.weight, a.gradients(),
                                a.dmean_logits, a.dvar_logits, mixing_options(a), a.saved(),
                                a.context);
     }},
    {"mean_only_batch_norm", Saved::channels,
     [](const Arguments& a, const StatsOut& stats) {
       mean_only_batch_norm(a.x, a.bias, a.out, mean_only_options(a), stats, a.context);
     },
     [](const Arguments& a) {
       mean_only_batch_norm_backward(a.dy, a.x, {a.out, {}, a.dbias}, mean_only_options(a),
                                     a.saved(), a.context);
     }},
    {"lp_batch_norm", Saved::channels,
     [](const Arguments& a, const StatsOut& stats) {
       lp_batch_norm(a.x, a.weight, a.bias, a.out, lp_options(a), stats, a.context);
     },
     [](const Arguments& a) {
       lp_batch_norm_backward(a.dy, a.x, a.weight, a.gradients(), lp_options(a), a.saved(),
                              a.context);
     }},
    {"topk_batch_norm", Saved::channels,
     [](const Arguments& a, const StatsOut& stats) {
       topk_batch_norm(a.x, a.weight, a.bias, a.out, topk_options(a), stats, a.context);
     },
     [](const Arguments& a) {
       topk_batch_norm_backward(a.dy, a.x, a.weight, a.gradients(), topk_options(a), a.saved(),
                                a.context);
     }},
    {"gdn", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       gdn(a.x, a.weight, a.mixing, a.out, {false, 2, 0.5, a.channel_axis}, a.context);
     },
     [](const Arguments& a) {
       double dalpha, depsilon;
       gdn_backward(a.dy, a.x, a.weight, a.mixing,
                    {a.out, a.dweight, a.dmixing, &dalpha, &depsilon},
                    {false, 2, 0.5, a.channel_axis}, a.context);
     }},
    {"divisive_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       divisive_norm(a.x, a.mixing, a.weight, a.bias, a.out, {2, 1, a.channel_axis}, a.context);
     },
     [](const Arguments& a) {
       divisive_norm_backward(a.dy, a.x, a.mixing, a.weight, a.bias,
                              {a.out, a.dmixing, a.dweight, a.dbias}, {2, 1, a.channel_axis},
                              a.context);
     }},
    {"weight_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       weight_norm(a.x, a.weight, a.out, {a.cell.axis}, a.context);
     },
     [](const Arguments& a) {
       weight_norm_backward(a.dy, a.x, a.weight, a.out, a.dweight, {a.cell.axis}, a.context);
     }},
    {"normalize", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       normalize(a.x, a.out, {2, {a.cell.axis}}, a.context);
     },
     [](const Arguments& a) {
       normalize_backward(a.dy, a.x, a.out, {2, {a.cell.axis}}, a.context);
     }},
    {"spectral_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       SpectralNormOptions o;
       o.n_power_iterations = std::atoi(a.cell.variant);
       o.axis = a.cell.axis;
       spectral_norm(a.x, {a.weight, {}}, {a.out, {}, {}}, o, a.context);
     },
     [](const Arguments& a) {
       // Any vectors will do: u that of the channels, v a row of x.
       ConstTensor row(a.x.data(), a.x.dtype(), 1);
       row.set_dim(0, a.x.shape(1), a.x.stride(1));
       SpectralNormOptions o;
       o.axis = a.cell.axis;
       spectral_norm_backward(a.dy, a.x, 2, a.weight, row, a.out, o, a.context);
     }},
    {"local_response_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       local_response_norm(a.x, a.cell.size, a.out, {.channel_axis = a.channel_axis}, a.context);
     },
     [](const Arguments& a) {
       local_response_norm_backward(a.dy, a.x, a.cell.size, a.out, {.channel_axis = a.channel_axis},
                                    a.context);
     }},
    {"local_divisive_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       local_divisive_norm(a.x, a.rho, a.weight, a.bias, a.out, divisive_options(a), a.context);
     },
     [](const Arguments& a) {
       local_divisive_norm_backward(a.dy, a.x, a.rho, a.weight, {a.out, a.drho, a.dweight, a.dbias},
                                    divisive_options(a), a.context);
     }},
};

const Method& method_of(const Cell& cell) {
  for (const Method& m : kMethods) {
    if (!std::strcmp(m.name, cell.op)) return m;
  }
  std::fprintf(stderr, "bench/shapes.json: no method is called %s\n", cell.op);
  std::exit(1);
}

// One call of a cell on memory of its own.
class Call {
 public:
  Call(const Cell& cell, DType dtype, int threads)
      : method_(method_of(cell)),
        a_{cell, !std::strcmp(cell.variant, "train"), std::strcmp(cell.layout, "NHWC") ? 1 : -1} {
    const bool last = a_.channel_axis == -1;
    a_.context.threads = threads;
    std::vector<Index> shape = cell.shape;
    if (last) std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
    for (Tensor* t : {&a_.x, &a_.dy, &a_.out}) *t = make(dtype, shape);

    const int ndim = int(cell.shape.size());
    const std::size_t axis = std::size_t((cell.axis + ndim) % ndim);
    const Index n = cell.shape[axis];
    const bool like_x = method_.saved == Saved::rows || method_.saved == Saved::none;
    for (Tensor* t : {&a_.weight, &a_.bias, &a_.rho, &a_.dweight, &a_.dbias, &a_.drho}) {
      *t = make(like_x ? dtype : DType::kFloat32, {n});
    }
    if (mixes_channels()) {
      for (Tensor* t : {&a_.mixing, &a_.dmixing}) *t = make(DType::kFloat32, {n, n});
    }
    for (Tensor* t : {&a_.mean_logits, &a_.var_logits, &a_.dmean_logits, &a_.dvar_logits}) {
      *t = make(DType::kFloat32, {3});
    }
    for (Tensor* t : {&a_.running_mean, &a_.running_scale}) *t = make(DType::kFloat32, {n});

    std::vector<Index> pools;
    switch (method_.saved) {
      case Saved::none:
        return;
      case Saved::rows:
        pools = cell.shape;
        pools[axis] = 1;
        break;
      case Saved::channels:
        pools = {n};
        break;
      case Saved::instances:
        pools = {cell.shape[0], n};
        break;
      case Saved::groups:
        pools = {cell.shape[0], cell.groups};
        break;
    }
    pools.push_back(2);
    pooled_.resize(std::size_t(count(pools)));
    a_.pooled = view(pooled_.data(), DType::kFloat64, pools);
    given_.resize(std::size_t(2 * n));
    a_.given = view(given_.data(), DType::kFloat64, {n, 2});
    method_.forward(a_, {{}, {}, a_.pooled, method_.saved == Saved::rows ? Tensor() : a_.given});
  }

  bool mixes_channels() const {
    return !std::strcmp(method_.name, "gdn") || !std::strcmp(method_.name, "divisive_norm");
  }
  // Of the products of the channels: forward one matrix, backward three.
  double mixing_flops(bool backward) const {
    return 2.0 * double(a_.x.size()) * double(a_.mixing.shape(0)) * (backward ? 3 : 1);
  }
  void forward() { method_.forward(a_, {}); }
  void backward() { method_.backward(a_); }

  double traffic_bytes(bool backward) const {
    const Cell::Traffic& t = backward ? a_.cell.backward : a_.cell.forward;
    return double(bytes()) * (double(bytes()) <= cache_bytes() ? t.in_cache : t.beyond);
  }
  double copy(double bytes) const {
    return copy_seconds(static_cast<const char*>(a_.x.data()), static_cast<char*>(a_.out.data()),
                        this->bytes(), bytes);
  }

 private:
  static Index count(const std::vector<Index>& shape) {
    Index n = 1;
    for (Index s : shape) n *= s;
    return n;
  }
  static Tensor view(void* data, DType dtype, const std::vector<Index>& shape) {
    Tensor t(data, dtype, int(shape.size()));
    for (int i = 0; i < int(shape.size()); ++i) t.set_dim(i, shape[std::size_t(i)], 0);
    t.set_contiguous();
    return t;
  }
  Tensor make(DType dtype, const std::vector<Index>& shape) {
    return view(owned_.emplace_back(count(shape), dtype).get(), dtype, shape);
  }
  Index bytes() const { return a_.x.size() * Index(size_of(a_.x.dtype())); }

  const Method& method_;
  Arguments a_;
  std::list<Memory> owned_;
  std::vector<double> pooled_, given_;
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
  if (call.mixes_channels()) {
    const double rate = call.mixing_flops(backward) * double(state.iterations()) / total;
    state.counters["fma_share"] = rate / peak_flops(threads);
  }
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
      if (!std::strcmp(cell.layout, "C") && cell.axis != -1) {
        name += "/axis=" + std::to_string(cell.axis);
      }
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
  benchmark::RegisterBenchmark("fma_peak", [threads](benchmark::State& state) {
    double rate = 0;
    for (auto _ : state) rate = std::max(rate, peak_flops(threads));
    state.counters["flops"] = benchmark::Counter(rate);
  });
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
