// What a call costs beyond its arithmetic: the public function on a tiny tensor, and in turn with
// it the same kernels called directly with the solve step between them, and nothing else: no
// checks, no plan, no tasks. `overhead_ns` is the difference; here `roofline` is the ratio.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/dispatch.h"
#include "options.h"
#include "yardsticks.h"

namespace normcore::bench {
namespace {

using cpu::kCols, cpu::kRows;

constexpr Index kCalls = 256;  // timed together
constexpr double kEps = 1e-5;
constexpr Index kGroups = 2;

// The arrays of one call.
struct Small {
  explicit Small(Index elements)
      : n(elements),
        x(at(n)),
        y(at(n)),
        ones(at(n)),
        zeros(at(n)),
        a(at(n)),
        mean(at(n)),
        m2(at(n)) {
    for (Index i = 0; i < n; ++i) x[at(i)] = float(i % 7) - 2.5f;
    std::fill(ones.begin(), ones.end(), 1.0f);
  }
  static std::size_t at(Index i) { return std::size_t(i); }

  Index n;
  std::vector<float> x, y, ones, zeros, a;
  std::vector<double> mean, m2;
};

// The kernels, and what is computed between them.
struct Direct {
  const cpu::KernelSet<float>& k;
  Small& s;

  void normalize_row(double a, double mean) const {
    const float slope = float(a), center = float(mean), rest = float((double(center) - mean) * a);
    k.weighted_affine[kRows]({s.x.data(), s.n}, {s.y.data(), s.n, false}, 1, s.n,
                             {&slope, &center, &rest}, s.ones.data(), s.zeros.data());
  }
  void layer_norm() const {
    double mean, m2;
    k.moments[kRows]({s.x.data(), s.n}, 1, s.n, &mean, &m2);
    normalize_row(1 / std::sqrt(m2 / double(s.n) + kEps), mean);
  }
  void rms_norm() const {
    double mean, squares;
    k.squares[kRows]({s.x.data(), s.n}, 1, s.n, &mean, &squares);
    normalize_row(1 / std::sqrt(squares / double(s.n) + kEps), 0);
  }
  void normalize() const {
    double mean, squares;
    k.squares[kRows]({s.x.data(), s.n}, 1, s.n, &mean, &squares);
    const float a = float(1 / std::max(std::sqrt(squares), 1e-12)), zero = 0;
    k.affine[kRows]({s.x.data(), s.n}, {s.y.data(), s.n, false}, 1, s.n, {&a, &zero, &zero});
  }
  // Weight 1, bias 0, running mean 0 and variance 1.
  void batch_norm() const {
    for (std::size_t i = 0; i < s.a.size(); ++i) {
      s.a[i] = float(double(s.ones[i]) / std::sqrt(double(s.ones[i]) + kEps));
    }
    k.affine[kCols]({s.x.data(), s.n}, {s.y.data(), s.n, false}, 1, s.n,
                    {s.a.data(), s.zeros.data(), s.zeros.data()});
  }
  void group_norm(Index channels) const {
    const Index space = s.n / channels, members = channels / kGroups;
    float center[64], rest[64];
    k.moments[kRows]({s.x.data(), space}, channels, space, s.mean.data(), s.m2.data());
    for (Index first = 0; first < channels; first += members) {
      double mean = 0, m2 = 0;
      for (Index i = first; i < first + members; ++i) mean += s.mean[Small::at(i)];
      mean /= double(members);
      for (Index i = first; i < first + members; ++i) {
        const double d = s.mean[Small::at(i)] - mean;
        m2 += s.m2[Small::at(i)] + double(space) * d * d;
      }
      const double a = 1 / std::sqrt(m2 / double(members * space) + kEps);
      for (Index i = first; i < first + members; ++i) {
        center[i] = float(mean);
        s.a[Small::at(i)] = float(a);
        rest[i] = float((double(center[i]) - mean) * a);
      }
    }
    k.affine[kRows]({s.x.data(), space}, {s.y.data(), space, false}, channels, space,
                    {s.a.data(), center, rest});
  }
};

// call(small) and arithmetic(direct) in turn.
template <class Call, class Arithmetic>
void add(const Options& options, const std::string& name, Index elements, Call call,
         Arithmetic arithmetic) {
  for (const Setting& setting : options.one_threaded()) {
    auto run = [=](benchmark::State& state) {
      setting.select();
      Small small(elements);
      const Direct direct{cpu::kernels().f32, small};
      auto loop = [](auto&& f) {
        return 1e9 / double(kCalls) * seconds([&] {
                 for (Index i = 0; i < kCalls; ++i) {
                   f();
                   benchmark::ClobberMemory();
                 }
               });
      };
      std::vector<double> calls, directs, over;
      while (state.KeepRunningBatch(kCalls)) {
        calls.push_back(loop([&] { call(small); }));
        directs.push_back(loop([&] { arithmetic(direct); }));
        over.push_back(calls.back() - directs.back());
        state.SetIterationTime(calls.back() * double(kCalls) * 1e-9);
      }
      state.counters["arithmetic_ns"] = median(directs);
      state.counters["overhead_ns"] = median(over);
      state.counters["roofline"] = median(calls) / median(directs);
    };
    benchmark::RegisterBenchmark(("overhead/" + name + "/f32" + setting.suffix).c_str(), run)
        ->UseManualTime();
  }
}

// A vector, or a tensor with channels second, of a small array.
ConstTensor in(const std::vector<float>& v) { return ConstTensor(v.data(), {Index(v.size())}); }
ConstTensor row(const Small& s) { return ConstTensor(s.x.data(), {1, s.n}); }
Tensor row_out(Small& s) { return Tensor(s.y.data(), {1, s.n}); }

}  // namespace

void register_overhead(const Options& options) {
  for (const Index n : {8, 64}) {
    const std::string shape = "/1x" + std::to_string(n);
    add(
        options, "layer_norm" + shape, n,
        [](Small& s) { layer_norm(row(s), in(s.ones), in(s.zeros), row_out(s)); },
        [](const Direct& d) { d.layer_norm(); });
    add(
        options, "rms_norm" + shape, n, [](Small& s) { rms_norm(row(s), in(s.ones), row_out(s)); },
        [](const Direct& d) { d.rms_norm(); });
    add(
        options, "normalize" + shape, n, [](Small& s) { normalize(row(s), row_out(s)); },
        [](const Direct& d) { d.normalize(); });
    add(
        options, "batch_norm/eval" + shape, n,
        [](Small& s) {
          BatchNormOptions o;
          o.running_mean = Tensor(s.zeros.data(), {s.n});
          o.running_var = Tensor(s.ones.data(), {s.n});
          batch_norm(row(s), in(s.ones), in(s.zeros), row_out(s), o);
        },
        [](const Direct& d) { d.batch_norm(); });

    const Index channels = n == 8 ? 4 : 8, space = n / channels;
    const std::string cells = "/1x" + std::to_string(channels) + "x" + std::to_string(space);
    add(
        options, "group_norm" + cells, n,
        [=](Small& s) {
          group_norm(ConstTensor(s.x.data(), {1, channels, space}), kGroups,
                     ConstTensor(s.ones.data(), {channels}),
                     ConstTensor(s.zeros.data(), {channels}),
                     Tensor(s.y.data(), {1, channels, space}));
        },
        [=](const Direct& d) { d.group_norm(channels); });
  }
}

}  // namespace normcore::bench
