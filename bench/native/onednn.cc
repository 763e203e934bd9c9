// oneDNN beside ours, where it is found: its batch, layer and (from 3.3) group normalization on the
// same memory, in the same run and with the same threads. Each benchmark first compares its results
// with ours; then both are timed in turn, and `speedup` is its time over ours.
#include <benchmark/benchmark.h>
#ifdef _OPENMP
#include <omp.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "call.h"
#include "cpu/dispatch.h"
#include "options.h"
#include "yardsticks.h"

#define NORMCORE_ONEDNN_3 (DNNL_VERSION_MAJOR >= 3)
#define NORMCORE_ONEDNN_GROUPS (DNNL_VERSION_MAJOR * 100 + DNNL_VERSION_MINOR >= 303)

namespace normcore::bench {
namespace {

using dnnl::memory;
using dnnl::normalization_flags;
using dnnl::prop_kind;

constexpr float kEps = 1e-5f;

memory::data_type type_of(DType t) {
  return t == DType::kFloat32    ? memory::data_type::f32
         : t == DType::kBFloat16 ? memory::data_type::bf16
         : t == DType::kFloat16  ? memory::data_type::f16
                                 : memory::data_type::undef;
}

// The normalizations that both have.
enum class Kind { none, layer, batch, group };

Kind kind_of(const Cell& cell) {
  const std::string op = cell.op;
  if (op == "layer_norm" && cell.axis == -1) return Kind::layer;
  if (op == "batch_norm" && std::strcmp(cell.variant, "masked")) return Kind::batch;
#if NORMCORE_ONEDNN_GROUPS
  if (op == "group_norm" || op == "instance_norm") return Kind::group;
#endif
  return Kind::none;
}

// What a primitive is made from.
struct Problem {
  const Cell& cell;
  Kind kind;
  DType dtype;
  bool backward;

  bool given() const { return !std::strcmp(cell.variant, "eval"); }  // statistics
  Index groups() const {
    return !std::strcmp(cell.op, "instance_norm") ? cell.shape[1] : cell.groups;
  }
  normalization_flags flags() const {
    const auto affine = normalization_flags::use_scale | normalization_flags::use_shift;
    return given() ? affine | normalization_flags::use_global_stats : affine;
  }
  // Of the forward primitive: one that keeps its statistics where they are of use.
  prop_kind forward_kind() const {
    const bool keeps = backward || (kind == Kind::batch && !given());
    return keeps ? prop_kind::forward_training : prop_kind::forward_inference;
  }
  // x in the layout of the cell.
  memory::desc tensor() const {
    const memory::dims dims(cell.shape.begin(), cell.shape.end());
    memory::dims strides(dims.size());
    memory::dim stride = 1;
    const bool last = !std::strcmp(cell.layout, "NHWC");
    if (last) {
      strides[1] = 1;
      stride = dims[1];
    }
    for (std::size_t i = dims.size(); i-- > 0;) {
      if (last && i == 1) continue;
      strides[i] = stride;
      stride *= dims[i];
    }
    return {dims, type_of(dtype), strides};
  }
  std::vector<Index> statistics() const {
    if (kind == Kind::layer) return {cell.shape[0]};
    if (kind == Kind::batch) return {cell.shape[1]};
    return {cell.shape[0], groups()};
  }
};

struct Layer {
  using Forward = dnnl::layer_normalization_forward;
  using Backward = dnnl::layer_normalization_backward;
};
struct Batch {
  using Forward = dnnl::batch_normalization_forward;
  using Backward = dnnl::batch_normalization_backward;
};
#if NORMCORE_ONEDNN_GROUPS
struct Group {
  using Forward = dnnl::group_normalization_forward;
  using Backward = dnnl::group_normalization_backward;
};
#endif

struct Made {
  dnnl::primitive primitive;
  std::string implementation;
};

// Throws dnnl::error for what is not implemented. `groups` is for group norm alone.
template <class Norm, class... Groups>
Made make_norm(const Problem& p, const dnnl::engine& engine, Groups... groups) {
  using Forward = typename Norm::Forward;
  using Backward = typename Norm::Backward;
  const memory::desc d = p.tensor();
  const prop_kind both = prop_kind::backward;
#if NORMCORE_ONEDNN_3
  const typename Forward::primitive_desc forward(engine, p.forward_kind(), d, d, groups..., kEps,
                                                 p.flags());
  if (!p.backward) return {Forward(forward), forward.impl_info_str()};
  const typename Backward::primitive_desc backward(engine, both, d, d, d, groups..., kEps,
                                                   p.flags(), forward);
#else
  const typename Forward::primitive_desc forward({p.forward_kind(), d, groups..., kEps, p.flags()},
                                                 engine);
  if (!p.backward) return {Forward(forward), forward.impl_info_str()};
  const typename Backward::primitive_desc backward({both, d, d, groups..., kEps, p.flags()}, engine,
                                                   forward);
#endif
  return {Backward(backward), backward.impl_info_str()};
}

Made make(const Problem& p, const dnnl::engine& engine) {
#if NORMCORE_ONEDNN_GROUPS
  if (p.kind == Kind::group) return make_norm<Group>(p, engine, p.groups());
#endif
  return p.kind == Kind::layer ? make_norm<Layer>(p, engine) : make_norm<Batch>(p, engine);
}

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
    if (!(d <= worst)) worst = d;  // a NaN stays
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
    bind(DNNL_ARG_SHIFT, channels, floats(a.bias));
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

  // From our results, of the call that was made last.
  double difference_from(const Arguments& a, bool backward) const {
    Tensor out(a.out.data(), a.out.dtype(), 1);
    out.set_dim(0, a.out.size(), 1);
    double worst = difference(out, out_);
    if (!backward) return worst;
    worst = std::max(worst, difference(a.dweight, dweight_));
    return std::max(worst, difference(a.dbias, dbias_));
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
    state.SkipWithError(("its results differ from ours by " + std::to_string(apart)).c_str());
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

void register_onednn(const Options& options) {
  const dnnl_version_t& v = *dnnl_version();
  benchmark::AddCustomContext("oneDNN", std::to_string(v.major) + "." + std::to_string(v.minor) +
                                            "." + std::to_string(v.patch));
  for (const Setting& setting : options.settings()) {
    for (const CellVariant& c : variants(options)) {
      const Problem p{c.cell, kind_of(c.cell), c.dtype, c.backward};
      if (p.kind == Kind::none || type_of(p.dtype) == memory::data_type::undef) continue;
      if (!implemented(p)) continue;
      benchmark::RegisterBenchmark((c.name + setting.suffix + "/onednn").c_str(),
                                   [=](benchmark::State& state) { run_peer(state, p, setting); })
          ->UseManualTime();
    }
  }
}

}  // namespace normcore::bench
