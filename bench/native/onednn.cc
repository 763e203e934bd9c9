// oneDNN beside ours, where it is found: its batch, layer and (from 3.3) group normalization on the
// same memory, in the same run and with the same threads. Each benchmark first compares its results
// with ours; then both are timed in turn, and `speedup` is its time over ours.
#include "onednn.h"

#include <benchmark/benchmark.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <cmath>
#include <list>
#include <unordered_map>

#include "call.h"
#include "cpu/dispatch.h"
#include "options.h"
#include "yardsticks.h"

namespace normcore::bench {
namespace onednn {
namespace {

// n elements of a tensor as floats.
std::vector<float> floats(const Tensor& t) {
  std::vector<float> values(static_cast<std::size_t>(t.size()));
  cpu::kernel_set<float>(cpu::kernels(), t.dtype()).load(t.data(), values.data(), t.size());
  return values;
}

// Largest difference, relative to the largest value.
double difference(const Tensor& ours, const Tensor& theirs) {
  const std::vector<float> a = floats(ours), b = floats(theirs);
  double largest = 0, worst = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::fabs(double(a[i])));
    const double d = std::fabs(double(a[i]) - double(b[i]));
    if (std::isnan(d)) return d;
    worst = std::max(worst, d);
  }
  return worst / largest;
}

// A primitive on the arguments of our call, with outputs of its own. Parameters and statistics of
// oneDNN are float32.
class Peer {
 public:
  Peer(const Call& ours, const Problem& p)
      : engine_(dnnl::engine::kind::cpu, 0),
        stream_(engine_),
        made_(make(p, engine_)),
        memory_(ours.arguments().x.size(), p.dtype),
        out_(memory_.get(), p.dtype, 1) {
    const Arguments& a = ours.arguments();
    out_.set_dim(0, a.x.size(), 1);
    const memory::dims pools(p.statistics()), channels = {a.weight.size()};
    bind(DNNL_ARG_SRC, p.tensor(), a.x.data());
    bind(DNNL_ARG_MEAN, pools, statistics(p, a, 0));
    bind(DNNL_ARG_VARIANCE, pools, statistics(p, a, 1));
    bind(DNNL_ARG_SCALE, channels, floats(a.weight));
    // In version 3 backward batch norm insists on there being no shift, the others on one.
    if (!p.backward || p.kind != Kind::batch || !NORMCORE_ONEDNN_3) {
      bind(DNNL_ARG_SHIFT, channels, floats(a.bias));
    }
    if (!p.backward) {
      bind(DNNL_ARG_DST, p.tensor(), out_.data());
      return;
    }
    bind(DNNL_ARG_DIFF_DST, p.tensor(), a.dy.data());
    bind(DNNL_ARG_DIFF_SRC, p.tensor(), out_.data());
    dweight_ = bind(DNNL_ARG_DIFF_SCALE, channels, floats(a.weight));
    dbias_ = bind(DNNL_ARG_DIFF_SHIFT, channels, floats(a.bias));
  }

  void run() {
    made_.primitive.execute(stream_, arguments_);
    stream_.wait();
  }
  const std::string& implementation() const { return made_.implementation; }

  // From our results, of the call that was made last: of y, or of the three gradients together.
  double difference_from(const Arguments& a, bool backward) const {
    Tensor out(a.out.data(), a.out.dtype(), 1);
    out.set_dim(0, a.out.size(), 1);
    double worst = difference(out, out_);
    if (backward) {
      // What is not a number stays so in a sum.
      worst += difference(a.dweight, dweight_) + difference(a.dbias, dbias_);
    }
    return worst;
  }

 private:
  void bind(int which, const memory::desc& desc, void* data) {
    arguments_.insert_or_assign(which, memory(desc, engine_, data));
  }
  // A small array of its own.
  Tensor bind(int which, const memory::dims& dims, std::vector<float> values) {
    std::vector<float>& kept = vectors_.emplace_back(std::move(values));
    const auto tag = dims.size() == 1 ? memory::format_tag::a : memory::format_tag::ab;
    bind(which, {dims, memory::data_type::f32, tag}, kept.data());
    return Tensor(kept.data(), {Index(kept.size())});
  }
  // The means (0) or variances (1) that are given, or that our forward call has left to backward.
  static std::vector<float> statistics(const Problem& p, const Arguments& a, std::size_t which) {
    if (p.given()) return floats(which == 0 ? a.running_mean : a.running_scale);
    std::vector<float> values(std::size_t(count(p.statistics())));
    const auto* pairs = static_cast<const double*>(a.pooled.data());
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = float(pairs[2 * i + which]);
    return values;
  }

  dnnl::engine engine_;
  dnnl::stream stream_;
  Made made_;
  Memory memory_;
  Tensor out_, dweight_, dbias_;
  std::list<std::vector<float>> vectors_;
  std::unordered_map<int, memory> arguments_;
};

// Loose on purpose: it may round in other places, but must not compute something else.
double tolerance(DType t) {
  return t == DType::kFloat32 ? 1e-3 : t == DType::kFloat16 ? 1e-2 : 5e-2;
}

bool implemented(const Problem& p) {
  try {
    make(p, dnnl::engine(dnnl::engine::kind::cpu, 0));
    return true;
  } catch (const dnnl::error& e) {
    if (e.status == dnnl_unimplemented) return false;
    throw;
  }
}

void run_peer(benchmark::State& state, const Problem& p, const Setting& setting) {
  setting.select();
#ifdef _OPENMP
  omp_set_num_threads(setting.threads);
#endif
  const Call ours(p.cell, p.dtype, setting.threads);
  Peer theirs(ours, p);
  auto our_call = [&] { ours.run(p.backward); };
  auto their_call = [&] { theirs.run(); };
  our_call();
  their_call();
  const double apart = theirs.difference_from(ours.arguments(), p.backward);
  if (!(apart <= tolerance(p.dtype))) {
    state.SkipWithError(("oneDNN differs from ours by " + std::to_string(apart)).c_str());
    return;
  }
  const double bytes = ours.traffic_bytes(p.backward), copy = ours.copy_seconds(bytes);
  const Index our_loops = loops_for(our_call), their_loops = loops_for(their_call);
  std::vector<double> times, speedups;
  while (state.KeepRunningBatch(their_loops)) {
    const double our_time = seconds_of_one(our_loops, our_call);
    times.push_back(seconds_of_one(their_loops, their_call));
    speedups.push_back(times.back() / our_time);
    state.SetIterationTime(times.back() * double(their_loops));
  }
  state.SetBytesProcessed(int64_t(bytes) * int64_t(state.iterations()));
  state.SetLabel(theirs.implementation());
  state.counters["roofline"] = median(times) / copy;
  state.counters["speedup"] = median(speedups);
}

}  // namespace
}  // namespace onednn

void register_onednn(const Options& options) {
  using namespace onednn;
  const dnnl_version_t& v = *dnnl_version();
  benchmark::AddCustomContext("oneDNN", std::to_string(v.major) + "." + std::to_string(v.minor) +
                                            "." + std::to_string(v.patch));
  for (const Setting& setting : options.settings()) {
    for (const CellVariant& c : variants(options)) {
      const Problem p{c.cell, kind_of(c.cell), c.dtype, c.backward};
      if (p.kind == Kind::none || type_of(p.dtype) == memory::data_type::undef) continue;
      if (!implemented(p)) continue;
      benchmark::RegisterBenchmark(
          (c.name + setting.suffix + "/onednn").c_str(),
          [=](benchmark::State& state) {
            try {
              run_peer(state, p, setting);
            } catch (const dnnl::error& e) {
              state.SkipWithError(("oneDNN failed: " + std::string(e.what()) + ", status " +
                                   std::to_string(e.status))
                                      .c_str());
            }
          })
          ->UseManualTime();
    }
  }
}

}  // namespace normcore::bench
