// Divisive normalization by windows over space and all channels (Ren et al. 2017).
//
// Statistics per position over its channels, a mean and a sum of squared deviations around it, come
// from the kernel of layer norm. Windows are means over these planes, which are as many times
// smaller than x as there are channels:
//   m = mean_A(mean),  t = mean_B(m2 / C + (mean - m)^2),  y = weight * (x - m) / sqrt(sigma^2 + t)
// with both terms of t positive, so nothing cancels. Samples are worked on in blocks that a core's
// own cache holds, if a sample is no larger; each block is read three times.
//
// Backward, with r = 1 / sqrt(sigma^2 + t), g = weight * dy and transposed means (W^T):
//   b = mean_B^T(-1/2 * mean_c(g * v * r^3)),  a = mean_A^T(mean_c(g * r) + 2 * b * mean_c(v)),
//   dx = g * r + 2 * b * v - a
#include <algorithm>
#include <cmath>
#include <string>

#include "cpu/arrays.h"
#include "cpu/backend.h"
#include "cpu/running_call.h"
#include "cuda/special.h"
#include "normcore/local.h"
#include "ops/checks.h"
#include "plan/steps.h"
#include "plan/with_compute.h"
#include "special/local_planes.h"

namespace normcore {
namespace {

using cpu::In;
using cpu::Out;
using cpu::TileRange;
using Scope = cpu::Workspace::Scope;

// What a piece of a block reads at a time.
constexpr Index kPieceBytes = Index(1) << 16;
// Tables of parameter gradients are summed separately at most for this many parts, each of at least
// as many positions.
constexpr Index kTables = 64;

struct Call {
  const ConstTensor* operands[3];
  int count;  // of operands
  const ConstTensor *sigma, *weight, *bias;
  const LocalDivisiveGradients* gradients = nullptr;
  int channel_axis = 0;
  Index radius_a[kMaxDims] = {}, radius_b[kMaxDims] = {};  // per axis of x

  const ConstTensor& x() const { return *operands[kX]; }
  Index channels() const { return x().shape(channel_axis); }
  Index samples() const { return x().shape(0); }
};

// Samples that are worked on together: their plan, and how windows lie in its table of positions.
struct BlockPlan {
  Plan plan;
  PlaneAxes a, b;
  Index positions, piece_cells, pieces;

  BlockPlan(const Call& call, Index samples, Index all_bytes) {
    ConstTensor views[3];
    Role roles[kMaxDims];
    const int ndim = call.x().ndim();
    for (int i = 0; i < ndim; ++i) {
      roles[i] = i == call.channel_axis ? Role::space : Role::outer;
    }
    PlanRequest request{.roles = roles, .affinity = Affinity::element, .pools = {Extent::cell}};
    for (int o = 0; o < call.count; ++o) {
      views[o] = *call.operands[o];
      views[o].set_dim(0, samples, views[o].stride(0));
      request.operands[o] = &views[o];
    }
    make_plan(request, &plan);
    plan.stream = all_bytes >= tuning::kStreamBytes;
    for (int i = 0; i < plan.outer_axis_count; ++i) {
      const int axis = plan.outer_axes[i];
      a.append(views[0].shape(axis), call.radius_a[axis]);
      b.append(views[0].shape(axis), call.radius_b[axis]);
    }
    positions = plan.outer * plan.cells;
    const Index cell_bytes = plan.count * Index(size_of(call.x().dtype()));
    piece_cells = std::max<Index>(1, kPieceBytes / cell_bytes / plan.tile_cells) * plan.tile_cells;
    pieces = plan.outer * ceil_div(plan.cells, piece_cells);
  }

  // f(range) for the tiles of a piece.
  template <class F>
  void each_tile(Index piece, F f) const {
    const Index per_row = ceil_div(plan.cells, piece_cells), o = piece / per_row;
    const Index k0 = piece % per_row * piece_cells, k1 = std::min(k0 + piece_cells, plan.cells);
    for_steps(k0, k1, plan.tile_cells, [&](Index k, Index k_end) {
      for_steps(0, plan.count, plan.chunk,
                [&](Index s, Index s_end) { f(TileRange{o, k, k_end - k, s, s_end - s}); });
    });
  }
};

// Gradients of sigma, weight and bias, (C,) each.
struct ParameterSums {
  double* values;
  Index channels;

  static ParameterSums take(Index channels, Scope& scope) {
    return {scope.take_filled<double>(3 * channels, 0), channels};
  }
  cpu::ChannelSums from(Index channel) const {
    return {values + channel, values + channels + channel, values + 2 * channels + channel};
  }
  void clear() const { std::fill_n(values, 3 * channels, 0.0); }
  void add(const ParameterSums& other) const {
    for (Index i = 0; i < 3 * channels; ++i) values[i] += other.values[i];
  }
};

template <class C>
class Divisive {
 public:
  Divisive(const Call& call, const Context& context)
      : call_(call),
        dtype_(call.x().dtype()),
        channels_(call.channels()),
        bytes_(call.count * call.x().size() * Index(size_of(dtype_))),
        set_(cpu::kernel_set<C>(cpu::kernels(), dtype_)),
        threads_(cpu::threads_for(bytes_, context.threads)),
        block_(samples_of_block()),
        blocks_(ceil_div(call.samples(), block_)),
        full_(call, std::min(block_, call.samples()), bytes_),
        rest_(call, call.samples() - (blocks_ - 1) * block_, bytes_) {
    sigma_ = parameter(*call.sigma, 1);
    weight_ = parameter(*call.weight, 1);
    bias_ = parameter(*call.bias, 0);
    for (Index c = 0; c < channels_; ++c) {
      widest_ = std::max(widest_, std::abs(double(sigma_[c])));
    }
  }

  void forward() {
    across_blocks(blocks_, [&](Index block, auto&& parallel) {
      const BlockPlan& p = plan_of(block);
      Scope scope(cpu::Workspace::local());
      const Planes planes = statistics(block, p, scope, parallel);
      parallel(p.pieces, [&](Index piece) {
        Tiles tiles(*this, p, block);
        p.each_tile(piece, [&](const TileRange& t) {
          tiles.divisors(planes, t);
          const In x = tiles.in(kX, t);
          const Out y = tiles.out(t);
          set_.windows.divide[tiles.layout](x, y, tiles.height(t), tiles.width(t), tiles.at(t.s0),
                                            bias_ + tiles.channel(t));
          tiles.commit(t, y);
        });
      });
    });
  }

  // Blocks are summed in runs, a fixed number of them.
  void backward() {
    const Index positions = blocks_ > 1 ? full_.positions * blocks_ : rest_.positions;
    const Index runs = std::clamp<Index>(positions / kTables, 1, std::min(kTables, blocks_));
    double* tables = scope_.take_filled<double>(runs * 3 * channels_, 0);
    across_blocks(runs, [&](Index run, auto&& parallel) {
      const ParameterSums sums{tables + run * 3 * channels_, channels_};
      for (Index b = run * blocks_ / runs; b < (run + 1) * blocks_ / runs; ++b) {
        backward_block(b, sums, parallel);
      }
    });
    const ParameterSums total{tables, channels_};
    for (Index run = 1; run < runs; ++run) total.add({tables + run * 3 * channels_, channels_});
    store(total);
  }

 private:
  // Per position: mean over the channels less m, m and t; and what backward adds to them.
  struct Planes {
    double *deviation, *m, *t;
    double *slope = nullptr, *shift = nullptr;
  };

  // Many blocks: each by one thread. Few: the threads share a block's pieces.
  template <class F>
  void across_blocks(Index n, F f) {
    auto alone = [](Index tasks, auto&& g) {
      for (Index i = 0; i < tasks; ++i) {
        cpu::RunningCall::check();
        g(i);
      }
    };
    auto together = [&](Index tasks, auto&& g) {
      cpu::parallel_for(tasks, threads_, {.sticky = true}, g);
    };
    if (n >= 2 * threads_ || threads_ == 1) {
      cpu::parallel_for(n, threads_, {}, [&](Index i) { f(i, alone); });
    } else {
      for (Index i = 0; i < n; ++i) f(i, together);
    }
  }

  const BlockPlan& plan_of(Index block) const { return block + 1 < blocks_ ? full_ : rest_; }

  template <class Parallel>
  Planes statistics(Index block, const BlockPlan& p, Scope& scope, Parallel&& parallel) const {
    const Index n = p.positions;
    Planes planes{scope.take<double>(n), scope.take<double>(n), scope.take<double>(n)};
    const cpu::Backend<C> backend(p.plan, dtype_, 1);
    parallel(p.pieces, [&](Index piece) {
      const Index per_row = ceil_div(p.plan.cells, p.piece_cells), o = piece / per_row;
      const Index k = piece % per_row * p.piece_cells, at = o * p.plan.cells + k;
      const Index cells = std::min(p.piece_cells, p.plan.cells - k);
      const void* x = sample(kX, block * block_);
      backend.reduce({o, 1, k, cells, 0, p.plan.count}, /*raw=*/false, x, planes.deviation + at,
                     planes.t + at);
    });
    std::copy_n(planes.deviation, n, planes.m);
    window_means(planes.m, p.a, /*transposed=*/false, parallel);
    for (Index i = 0; i < n; ++i) {
      double& d = planes.deviation[i] -= planes.m[i];
      planes.t[i] = planes.t[i] / double(channels_) + d * d;
    }
    window_means(planes.t, p.b, /*transposed=*/false, parallel);
    return planes;
  }

  template <class Parallel>
  void backward_block(Index block, const ParameterSums& sums, Parallel&& parallel) const {
    const BlockPlan& p = plan_of(block);
    const Index n = p.positions;
    Scope scope(cpu::Workspace::local());
    Planes planes = statistics(block, p, scope, parallel);
    planes.slope = scope.template take_filled<double>(n, 0);
    planes.shift = scope.template take_filled<double>(n, 0);

    const Index units = std::clamp<Index>(n / kTables, 1, std::min(kTables, p.pieces));
    double* tables = scope.template take_filled<double>(units * 3 * channels_, 0);
    parallel(units, [&](Index unit) {
      const ParameterSums table{tables + unit * 3 * channels_, channels_};
      Tiles tiles(*this, p, block);
      for (Index i = unit * p.pieces / units; i < (unit + 1) * p.pieces / units; ++i) {
        p.each_tile(i, [&](const TileRange& t) { tiles.sums(planes, t, table); });
      }
    });
    for (Index u = 0; u < units; ++u) sums.add({tables + u * 3 * channels_, channels_});

    const double share = 1 / double(channels_);
    for (Index i = 0; i < n; ++i) {
      const double unit = unit_of(planes.t[i]);
      planes.slope[i] *= -0.5 * share * unit * unit;
    }
    window_means(planes.slope, p.b, /*transposed=*/true, parallel);
    for (Index i = 0; i < n; ++i) {
      planes.shift[i] *= share * unit_of(planes.t[i]);
      planes.shift[i] += 2 * planes.slope[i] * planes.deviation[i];
    }
    window_means(planes.shift, p.a, /*transposed=*/true, parallel);

    parallel(p.pieces, [&](Index piece) {
      Tiles tiles(*this, p, block);
      p.each_tile(piece, [&](const TileRange& t) { tiles.grad(planes, t); });
    });
  }

  // A power of two that brings what is divided, and what it is divided by, near 1.
  double unit_of(double t) const {
    const double base = std::sqrt(widest_ * widest_ + t);
    if (base > 1e-9 && base < 1e9) return 1;
    if (!(base > 0) || std::isinf(base)) return 1;
    return std::ldexp(1.0, std::clamp(-std::ilogb(base), -126, 126));
  }

  // The tiles of one task: operands, and coefficients per cell.
  struct Tiles {
    const Divisive& of;
    const BlockPlan& p;
    Index first;  // sample
    int layout;
    cpu::TileAccess access;
    Scope scope;
    void* buffers[3];
    C *center, *rest, *unit, *variance, *slope, *shift;
    double *tile_direct, *tile_slope;

    Tiles(const Divisive& d, const BlockPlan& plan, Index block)
        : of(d),
          p(plan),
          first(block * d.block_),
          layout(static_cast<int>(plan.plan.layout)),
          access(plan.plan, d.dtype_),
          scope(cpu::Workspace::local()) {
      for (int o = 0; o < d.call_.count; ++o) {
        buffers[o] = scope.take<char>(access.scratch_bytes(o));
      }
      const Index cells = plan.plan.tile_cells;
      for (C** values : {&center, &rest, &unit, &variance, &slope, &shift}) {
        *values = scope.take<C>(cells);
      }
      tile_direct = scope.take<double>(cells);
      tile_slope = scope.take<double>(cells);
    }

    bool rows() const { return layout == cpu::kRows; }
    Index height(const TileRange& t) const { return rows() ? t.kn : t.sn; }
    Index width(const TileRange& t) const { return rows() ? t.sn : t.kn; }
    Index channel(const TileRange& t) const { return t.s0; }
    Index cell(const TileRange& t) const { return t.o * p.plan.cells + t.k0; }
    In in(int operand, const TileRange& t) const {
      return access.in(operand, of.sample(operand, first), t, buffers[operand]);
    }
    Out out(const TileRange& t) const {
      const int o = of.call_.count - 1;
      return access.out(o, of.sample(o, first), t, buffers[o]);
    }
    void commit(const TileRange& t, const Out& tile) const {
      const int o = of.call_.count - 1;
      access.commit(o, of.sample(o, first), t, tile);
    }

    void divisors(const Planes& planes, const TileRange& t) const {
      for (Index i = 0; i < t.kn; ++i) {
        const double m = planes.m[cell(t) + i], var = planes.t[cell(t) + i];
        const double u = of.unit_of(var);
        center[i] = C(m);
        rest[i] = C((m - double(center[i])) * u);
        unit[i] = C(u);
        variance[i] = C(var * u * u);
      }
    }
    cpu::Divisor<C> at(Index channel) const {
      return {center, rest, unit, variance, of.sigma_ + channel, of.weight_ + channel};
    }

    void sums(const Planes& planes, const TileRange& t, const ParameterSums& table) {
      divisors(planes, t);
      of.set_.windows.divided_sums[layout](in(kDy, t), in(kX, t), height(t), width(t), at(t.s0),
                                           tile_direct, tile_slope, table.from(t.s0));
      for (Index i = 0; i < t.kn; ++i) {
        planes.shift[cell(t) + i] += tile_direct[i];
        planes.slope[cell(t) + i] += tile_slope[i];
      }
    }
    void grad(const Planes& planes, const TileRange& t) {
      divisors(planes, t);
      for (Index i = 0; i < t.kn; ++i) {
        slope[i] = C(2 * planes.slope[cell(t) + i] / double(unit[i]));
        shift[i] = C(-planes.shift[cell(t) + i]);
      }
      const Out dx = out(t);
      of.set_.windows.divided_grad[layout](in(kDy, t), in(kX, t), dx, height(t), width(t), at(t.s0),
                                           slope, shift);
      commit(t, dx);
    }
  };

  void* sample(int operand, Index n) const {
    const ConstTensor& t = *call_.operands[operand];
    return const_cast<char*>(static_cast<const char*>(t.data())) +
           n * t.stride(0) * Index(size_of(dtype_));
  }

  Index samples_of_block() const {
    const Index sample_bytes = bytes_ / call_.count / call_.samples();
    return std::clamp<Index>(tuning::kUnitBytes / sample_bytes, 1, call_.samples());
  }

  // (C,), from an array of it, one value, or none.
  const C* parameter(const ConstTensor& t, double absent) {
    if (!t) return scope_.take_filled<C>(channels_, C(absent));
    Walk w;
    if (t.ndim() == 1) {
      w = vector_walk(t);
    } else {
      w.append(channels_, 0);
    }
    C* values = scope_.take<C>(channels_);
    read_array(t, w, scope_, values);
    return values;
  }

  void store(const ParameterSums& total) {
    const LocalDivisiveGradients& g = *call_.gradients;
    const cpu::ChannelSums sums = total.from(0);
    auto put = [&](const Tensor& t, double* values) {
      if (!t) return;
      if (t.ndim() == 0) {
        for (Index c = 1; c < channels_; ++c) values[0] += values[c];
        store_array(values, t, {}, scope_);
      } else {
        store_array(values, t, vector_walk(t), scope_);
      }
    };
    put(g.dsigma, sums.dsigma);
    put(g.dweight, sums.dweight);
    put(g.dbias, sums.dbias);
  }

  const Call& call_;
  DType dtype_;
  Index channels_, bytes_;
  const cpu::KernelSet<C>& set_;
  int threads_;
  Scope scope_{cpu::Workspace::local()};
  Index block_, blocks_;   // samples of a block, and how many there are
  BlockPlan full_, rest_;  // of all blocks, and of the last one
  const C *sigma_, *weight_, *bias_;
  double widest_ = 0;  // sigma
};

// ---- arguments

void read_window(const char* name, const WindowSizes& sizes, const ConstTensor& x, int channel_axis,
                 Index (&radius)[kMaxDims]) {
  const int spatial = x.ndim() - 2;
  if (sizes.count != 1 && sizes.count != spatial) {
    throw value_error(std::string(name) + " has " + std::to_string(sizes.count) +
                      " sizes, expected 1 or " + std::to_string(spatial) +
                      ": one for each spatial axis");
  }
  for (int i = 0; i < sizes.count; ++i) {
    if (sizes.values[i] > 0 && sizes.values[i] % 2 == 1) continue;
    throw value_error(std::string(name) + " is " + std::to_string(sizes.values[i]) +
                      ", expected an odd number >= 1");
  }
  int next = 0;
  for (int a = 1; a < x.ndim(); ++a) {
    if (a == channel_axis) continue;
    radius[a] = sizes.values[sizes.count == 1 ? 0 : next++] / 2;
  }
}

void check_parameters(const Call& call, int given_axis) {
  ExpectedShape shape;
  shape.append(call.channels());
  shape.rule = "x.shape[channel_axis=";
  shape.given_axis = given_axis;
  shape.has_axis = true;
  check_view("sigma", *call.sigma);
  if (call.sigma->ndim() > 0) check_shape("sigma", *call.sigma, shape);
  if (*call.weight) check_shape("weight", *call.weight, shape);
  if (*call.bias) check_shape("bias", *call.bias, shape);
}

void check_call(Call& call, const LocalDivisiveNormOptions& o, const Context& context) {
  check_device(context);
  const ConstTensor& x = call.x();
  check_view("x", x);
  call.channel_axis = check_channel_axis(x, o.channel_axis);
  check_parameters(call, o.channel_axis);
  read_window("summation_window", o.summation_window, x, call.channel_axis, call.radius_a);
  read_window("suppression_window", o.suppression_window, x, call.channel_axis, call.radius_b);
}

}  // namespace

void local_divisive_norm(const ConstTensor& x, const ConstTensor& sigma, const ConstTensor& weight,
                         const ConstTensor& bias, const Tensor& y,
                         const LocalDivisiveNormOptions& options, const Context& context) {
  const cpu::RunningCall running(context);
  const ConstTensor out(y);
  Call call{{&x, &out}, 2, &sigma, &weight, &bias};
  check_call(call, options, context);
  check_output("out", y, x);
  Operands operands;
  operands.reads("x", x);
  operands.reads("sigma", sigma);
  operands.reads("weight", weight);
  operands.reads("bias", bias);
  operands.writes("out", y, {&x});
  operands.check();
  if (x.size() == 0) return;
  if (context.device == Device::kCuda) {
    return cuda::local_divisive(
        {x, {}, y, sigma, weight, bias, call.channel_axis, call.radius_a, call.radius_b, nullptr},
        context);
  }
  with_compute(x.dtype(),
               [&]<class C>(std::type_identity<C>) { Divisive<C>(call, context).forward(); });
}

void local_divisive_norm_backward(const ConstTensor& dy, const ConstTensor& x,
                                  const ConstTensor& sigma, const ConstTensor& weight,
                                  const LocalDivisiveGradients& g,
                                  const LocalDivisiveNormOptions& options, const Context& context) {
  const cpu::RunningCall running(context);
  if (!dy) throw type_error("dy is None, expected an array");
  const ConstTensor out(g.dx), none;
  Call call{{&x, &dy, &out}, 3, &sigma, &weight, &none, &g};
  check_call(call, options, context);
  check_like("dy", dy, x);
  check_output("out", g.dx, x);
  ExpectedShape channels;
  channels.append(call.channels());
  channels.rule = "x's channels";
  if (g.dsigma) check_view("dsigma", g.dsigma);
  if (g.dsigma && !same_shape(g.dsigma, sigma)) {
    throw value_error("dsigma has shape " + shape_text(g.dsigma) + ", expected " +
                      shape_text(sigma) + ": sigma's");
  }
  if (g.dweight) check_shape("dweight", g.dweight, channels);
  if (g.dbias) check_shape("dbias", g.dbias, channels);
  Operands operands;
  operands.reads("x", x);
  operands.reads("dy", dy);
  operands.reads("sigma", sigma);
  operands.reads("weight", weight);
  operands.writes("out", g.dx, {&x, &dy});
  operands.writes("dsigma", g.dsigma);
  operands.writes("dweight", g.dweight);
  operands.writes("dbias", g.dbias);
  operands.check();
  if (context.device == Device::kCuda) {
    return cuda::local_divisive(
        {x, dy, g.dx, sigma, weight, none, call.channel_axis, call.radius_a, call.radius_b, &g},
        context);
  }
  if (x.size() == 0) {
    for (const Tensor* t : {&g.dsigma, &g.dweight, &g.dbias}) fill_array(0, *t);
    return;
  }
  with_compute(x.dtype(),
               [&]<class C>(std::type_identity<C>) { Divisive<C>(call, context).backward(); });
}

}  // namespace normcore
