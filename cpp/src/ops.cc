// The operations: check the arguments, ask for a plan, bring parameters and statistics into its
// order, run the pipeline, and write back. No arithmetic on x happens here.
#include "normcore/ops.h"

#include "checks.h"
#include "memory.h"
#include "normcore/errors.h"
#include "pipeline.h"

namespace normcore {
namespace {

const ConstTensor kAbsent{};

template <class F>
void with_compute(DType dtype, F&& f) {
  if (dtype == DType::kFloat64) {
    f(std::type_identity<double>{});
  } else {
    f(std::type_identity<float>{});
  }
}

std::string input_size(const ConstTensor& x) { return ", got input size " + shape_text(x); }

// ---- statistics between the plan's tables and the caller's arrays

// How the entries of a statistics array of the caller follow the plan's table. The array's axes are
// x's axes (element) or (N, pools) without the axes that the pool spans.
template <class T>
Walk statistics_walk(const Plan& plan, const T& t) {
  Walk w;
  if (plan.affinity == Affinity::element) {
    for (int i = 0; i < plan.outer_axis_count; ++i) {
      const int a = plan.outer_axes[i];
      w.append(t.shape(a), t.stride(a));
    }
  } else {
    for (int a = 0; a < t.ndim(); ++a) w.append(t.shape(a), t.stride(a));
  }
  return w;
}

struct StatsTable {
  double* mean = nullptr;
  double* var = nullptr;
  double* rstd = nullptr;

  StatsTable() = default;
  StatsTable(Index entries, Memory& memory)
      : mean(memory.take<double>(entries)),
        var(memory.take<double>(entries)),
        rstd(memory.take<double>(entries)) {}

  // Repeats the first n entries until there are `total`.
  void repeat(Index n, Index total, Memory& memory) {
    for (double* values : {mean, var, rstd}) memory.repeat(values, n, total);
  }
};

// The means or the variances of an array of pairs (mean, var).
template <bool kConst>
BasicTensor<kConst> half_of_pairs(const BasicTensor<kConst>& pooled, Index which) {
  const int last = pooled.ndim() - 1;
  auto* data = static_cast<std::conditional_t<kConst, const double, double>*>(pooled.data());
  BasicTensor<kConst> half(data + which * pooled.stride(last), DType::kFloat64, last);
  for (int i = 0; i < last; ++i) half.set_dim(i, pooled.shape(i), pooled.stride(i));
  return half;
}

void write_stats(const Plan& plan, const StatsTable& table, const StatsOut& out, Memory& memory) {
  auto write = [&](const double* values, const Tensor& t) {
    if (t) memory.store(values, t, statistics_walk(plan, t));
  };
  write(table.mean, out.mean);
  write(table.rstd, out.rstd);
  if (out.pooled) {
    write(table.mean, half_of_pairs(out.pooled, 0));
    write(table.var, half_of_pairs(out.pooled, 1));
  }
}

// Statistics that a forward call wrote.
struct PooledValues {
  const double* mean = nullptr;
  const double* var = nullptr;
  PooledValues(const Plan& plan, const ConstTensor& pooled, Memory& memory) {
    if (!pooled) return;
    const ConstTensor means = half_of_pairs(pooled, 0), vars = half_of_pairs(pooled, 1);
    mean = memory.load<double>(means, statistics_walk(plan, means));
    var = memory.load<double>(vars, statistics_walk(plan, vars));
  }
};

void check_pooled(const ConstTensor& pooled, ExpectedShape shape) {
  if (!pooled) return;
  if (pooled.dtype() != DType::kFloat64) {
    throw type_error(std::string("stats.pooled has dtype ") + name_of(pooled.dtype()) +
                     ", expected float64");
  }
  shape.append(2);
  shape.rule = "what the forward call returned";
  check_shape("stats.pooled", pooled, shape);
}

void check_stats_out(const StatsOut& out, ExpectedShape shape) {
  shape.rule = "one entry per pool of the method";
  if (out.mean) check_shape("stats.mean", out.mean, shape);
  if (out.rstd) check_shape("stats.rstd", out.rstd, shape);
  check_pooled(out.pooled, shape);
}

void fill(const Tensor& t, double value, Memory& memory) {
  if (!t) return;
  Walk w;
  for (int i = 0; i < t.ndim(); ++i) w.append(t.shape(i), t.stride(i));
  memory.store(memory.take_filled<double>(w.count(), value), t, w);
}

// Nothing to normalize: gradients of parameters are sums over nothing.
void finish_empty(const Gradients& g, const Context& context) {
  CallMemory memory(context);
  fill(g.dweight, 0, memory.get());
  fill(g.dbias, 0, memory.get());
}
void finish_empty(const StatsOut& s, const Context& context) {
  CallMemory memory(context);
  for (const Tensor* t : {&s.mean, &s.rstd, &s.pooled}) fill(*t, std::nan(""), memory.get());
}

// ---- layer and rms norm: parameters belong to elements

struct ElementCall {
  MethodId method;
  const ConstTensor& x;
  const ConstTensor& weight;
  const ConstTensor& bias;
  double eps;
  double weight_offset;
  bool normalized[kMaxDims];
  ExpectedShape parameter_shape, stats_shape;

  ElementCall(MethodId m, const ConstTensor& x_in, const ConstTensor& w, const ConstTensor& b,
              const Axes& axes, double eps_in, double offset)
      : method(m), x(x_in), weight(w), bias(b), eps(eps_in), weight_offset(offset) {
    if (x.ndim() == 0) throw value_error("x has shape (), expected at least one axis");
    check_axes(axes, x.ndim(), normalized);
    check_eps(eps, false);
    check_finite("weight_offset", offset);
    for (int a = 0; a < x.ndim(); ++a) {
      if (normalized[a]) parameter_shape.append(x.shape(a));
      stats_shape.append(normalized[a] ? 1 : x.shape(a));
    }
    parameter_shape.rule = "x's shape over axis";
    if (weight) check_shape("weight", weight, parameter_shape);
    if (bias) check_shape("bias", bias, parameter_shape);
  }

  void plan(std::initializer_list<const ConstTensor*> operands, Plan* out) const {
    Role roles[kMaxDims];
    for (int a = 0; a < x.ndim(); ++a) roles[a] = normalized[a] ? Role::space : Role::outer;
    PlanRequest request{roles, Affinity::element, 1, nullptr, 0, true, {}, 0};
    const MethodInfo& info = method_info(method);
    request.pools = info.pools;
    request.pool_count = info.pool_count;
    for (const ConstTensor* t : operands) {
      request.operands[request.operand_count++] = t && *t ? t : nullptr;
    }
    make_plan(request, out);
  }

  // The elements of a parameter in the plan's order.
  template <class T>
  Walk parameter_walk(const Plan& plan, const T& t) const {
    Walk w;
    for (int i = 0; i < plan.space_axis_count; ++i) {
      int axis = 0;
      for (int a = 0; a < plan.space_axes[i]; ++a) axis += normalized[a];
      w.append(t.shape(axis), t.stride(axis));
    }
    return w;
  }

  template <class C>
  const C* load_parameter(const Plan& plan, const ConstTensor& t, double missing, double offset,
                          Memory& memory) const {
    if (!t) return memory.take_filled<C>(plan.count, C(missing));
    return memory.load_shifted<C>(t, parameter_walk(plan, t), offset);
  }
};

void element_forward(const ElementCall& call, const Tensor& y, const ConstTensor& residual,
                     const Tensor& h, const StatsOut& stats, const Context& context) {
  check_device(context);
  check_output("out", y, call.x, /*may_be_x=*/true);
  check_disjoint("out", y, "weight", call.weight);
  check_disjoint("out", y, "bias", call.bias);
  if (residual) {
    check_like("residual", residual, call.x);
    check_disjoint("out", y, "residual", residual);
    check_output("h", h, call.x, /*may_be_x=*/false);
    check_disjoint("h", h, "residual", residual);
    check_disjoint("h", h, "out", y);
  }
  check_stats_out(stats, call.stats_shape);
  if (call.x.size() == 0) return finish_empty(stats, context);

  Plan plan;
  const ConstTensor y_view = y, h_view = h;
  call.plan({&call.x, &y_view, &residual, residual ? &h_view : nullptr}, &plan);
  CallMemory call_memory(context);
  Memory& memory = call_memory.get();
  with_compute(call.x.dtype(), [&]<class C>(std::type_identity<C>) {
    ForwardArgs<C> args{};
    args.x = residual ? h.data() : call.x.data();
    args.y = y.data();
    if (residual) {
      args.x_in = call.x.data();
      args.residual = residual.data();
      // What is normalized lies where h lies.
      std::swap(plan.access[0], plan.access[3]);
    }
    args.element_weight = call.load_parameter<C>(plan, call.weight, 1, call.weight_offset, memory);
    args.element_bias = call.load_parameter<C>(plan, call.bias, 0, 0, memory);
    StatsTable table;
    if (stats.mean || stats.rstd || stats.pooled) {
      table = StatsTable(plan.outer * plan.cells, memory);
      args.mean = table.mean;
      args.var = table.var;
      args.rstd = table.rstd;
    }
    run_forward<C>(call.method, plan, call.x.dtype(), args, call.eps, context, memory);
    if (args.mean) write_stats(plan, table, stats, memory);
  });
}

void element_backward(const ElementCall& call, const ConstTensor& dy, const Gradients& g,
                      const ConstTensor& dh, const ConstTensor& pooled, const Context& context) {
  check_device(context);
  check_like("dy", dy, call.x);
  if (dh) check_like("dh", dh, call.x);
  check_output("out", g.dx, call.x, /*may_be_x=*/true);
  if (!same_memory(g.dx, dy)) check_disjoint("out", g.dx, "dy", dy);
  if (dh && !same_memory(g.dx, dh)) check_disjoint("out", g.dx, "dh", dh);
  check_disjoint("out", g.dx, "weight", call.weight);
  if (g.dweight) check_shape("dweight", g.dweight, call.parameter_shape);
  if (g.dbias) check_shape("dbias", g.dbias, call.parameter_shape);
  check_pooled(pooled, call.stats_shape);
  if (call.x.size() == 0) return finish_empty(g, context);

  Plan plan;
  const ConstTensor dx_view = g.dx;
  call.plan({&call.x, &dy, &dx_view, &dh}, &plan);
  CallMemory call_memory(context);
  Memory& memory = call_memory.get();
  with_compute(call.x.dtype(), [&]<class C>(std::type_identity<C>) {
    BackwardArgs<C> args{};
    args.x = call.x.data();
    args.dy = dy.data();
    args.dx = g.dx.data();
    args.dh = dh ? dh.data() : nullptr;
    args.element_weight = call.load_parameter<C>(plan, call.weight, 1, call.weight_offset, memory);
    if (g.dweight || g.dbias) {
      args.dweight = memory.take<double>(plan.count);
      args.dbias = memory.take<double>(plan.count);
    }
    const PooledValues forward(plan, pooled, memory);
    args.forward_mean = forward.mean;
    args.forward_var = forward.var;
    run_backward<C>(call.method, plan, call.x.dtype(), args, call.eps, context, memory);
    if (g.dweight) {
      memory.store(args.dweight, g.dweight, call.parameter_walk(plan, g.dweight));
    }
    if (g.dbias) memory.store(args.dbias, g.dbias, call.parameter_walk(plan, g.dbias));
  });
}

// ---- batch, instance and group norm: parameters belong to channels

struct ChannelCall {
  MethodId method;
  const ConstTensor& x;
  const ConstTensor& weight;
  const ConstTensor& bias;
  double eps;
  int channel_axis;
  Index groups = 1;
  ConstTensor given_mean{}, given_var{};  // set where statistics do not come from x
  ExpectedShape channel_shape;

  ChannelCall(MethodId m, const ConstTensor& x_in, const ConstTensor& w, const ConstTensor& b,
              int axis, double eps_in)
      : method(m), x(x_in), weight(w), bias(b), eps(eps_in) {
    if (x.ndim() < 2) {
      throw value_error("x has shape " + shape_text(x) + ", expected at least two axes");
    }
    channel_axis = check_axis("channel_axis", axis, x.ndim());
    if (channel_axis == 0) {
      throw value_error("channel_axis is " + std::to_string(axis) +
                        ", expected another axis than 0, the batch");
    }
    channel_shape.append(channels());
    channel_shape.rule = "x.shape[channel_axis=";
    channel_shape.given_axis = axis;
    channel_shape.has_axis = true;
    if (weight) check_shape("weight", weight, channel_shape);
    if (bias) check_shape("bias", bias, channel_shape);
  }

  Index samples() const { return x.shape(0); }
  Index channels() const { return x.shape(channel_axis); }
  Index space() const {
    Index n = 1;
    for (int a = 1; a < x.ndim(); ++a) n *= a == channel_axis ? 1 : x.shape(a);
    return n;
  }
  bool given() const { return static_cast<bool>(given_mean); }

  // Buffers come in pairs; `use` takes the statistics from them.
  void buffers(const ConstTensor& mean, const ConstTensor& var, bool use) {
    if (static_cast<bool>(mean) != static_cast<bool>(var)) {
      throw value_error(std::string(mean ? "running_var" : "running_mean") + " is None, expected " +
                        "an array: the other running buffer is given");
    }
    if (mean) {
      check_shape("running_mean", mean, channel_shape);
      check_shape("running_var", var, channel_shape);
    }
    if (use) {
      given_mean = mean;
      given_var = var;
    }
  }

  Extent extent() const {
    return given() ? Extent::column : extent_of(method_info(method).pools[0], Affinity::channel);
  }
  // Statistics that are given per channel are reported once per sample all the same.
  bool per_sample() const {
    return extent_of(method_info(method).pools[0], Affinity::channel) != Extent::column;
  }
  ExpectedShape stats_shape() const {
    ExpectedShape s;
    if (per_sample()) s.append(samples());
    s.append(extent() == Extent::group ? groups : channels());
    return s;
  }
  StatsTable take_stats(Memory& memory) const {
    return StatsTable((per_sample() ? samples() : 1) * stats_shape().shape[per_sample()], memory);
  }

  void plan(std::initializer_list<const ConstTensor*> operands, Plan* out) const {
    Role roles[kMaxDims];
    for (int a = 0; a < x.ndim(); ++a) {
      roles[a] = a == channel_axis ? Role::channel : a == 0 ? Role::outer : Role::space;
    }
    const MethodInfo& info = method_info(method);
    PlanRequest request{roles,           Affinity::channel, groups, info.pools,
                        info.pool_count, !given(),          {},     0};
    for (const ConstTensor* t : operands) request.operands[request.operand_count++] = t;
    make_plan(request, out);
  }

  const double* load_channels(const ConstTensor& t, Memory& memory) const {
    return t ? memory.load<double>(t, vector_walk(t)) : nullptr;
  }
};

// Running buffers that a training call moves towards its statistics.
struct RunningUpdate {
  const Tensor& mean;
  const Tensor& var;
  double momentum;
  bool unbiased;
};

void move_buffer(const Tensor& buffer, const double* values, Index rows, double momentum,
                 double factor, Memory& memory) {
  const Index n = buffer.shape(0);
  const double* old = memory.load<double>(buffer, vector_walk(buffer));
  double* moved = memory.take<double>(n);
  memory.blend(old, values, rows, n, momentum, factor, moved);
  memory.store(moved, buffer, vector_walk(buffer));
}

void channel_forward(const ChannelCall& call, const Tensor& y, const RunningUpdate* running,
                     const StatsOut& stats, const Context& context) {
  check_device(context);
  check_output("out", y, call.x, /*may_be_x=*/true);
  check_disjoint("out", y, "weight", call.weight);
  check_disjoint("out", y, "bias", call.bias);
  check_disjoint("out", y, "running_mean", call.given_mean);
  check_disjoint("out", y, "running_var", call.given_var);
  if (running) {
    check_disjoint("out", y, "running_mean", running->mean);
    check_disjoint("out", y, "running_var", running->var);
  }
  check_stats_out(stats, call.stats_shape());
  if (call.x.size() == 0) return finish_empty(stats, context);

  Plan plan;
  const ConstTensor y_view = y;
  call.plan({&call.x, &y_view}, &plan);
  CallMemory call_memory(context);
  Memory& memory = call_memory.get();
  const Extent extent = call.extent();
  StatsTable table;
  if (running || stats.mean || stats.rstd || stats.pooled) table = call.take_stats(memory);
  with_compute(call.x.dtype(), [&]<class C>(std::type_identity<C>) {
    ForwardArgs<C> args{};
    args.x = call.x.data();
    args.y = y.data();
    args.channel_weight = call.load_channels(call.weight, memory);
    args.channel_bias = call.load_channels(call.bias, memory);
    args.given_mean = call.load_channels(call.given_mean, memory);
    args.given_var = call.load_channels(call.given_var, memory);
    args.mean = table.mean;
    args.var = table.var;
    args.rstd = table.rstd;
    run_forward<C>(call.method, plan, call.x.dtype(), args, call.eps, context, memory);
  });
  if (!table.mean) return;
  if (call.given() && call.per_sample()) {
    table.repeat(call.channels(), call.samples() * call.channels(), memory);
  }
  write_stats(plan, table, stats, memory);
  if (running) {
    const Index rows = plan.pool_rows(extent);
    const double n = double(call.space()) * double(rows == 1 ? call.samples() : 1);
    const double factor = running->unbiased && n > 1 ? n / (n - 1) : 1;
    move_buffer(running->mean, table.mean, rows, running->momentum, 1, memory);
    move_buffer(running->var, table.var, rows, running->momentum, factor, memory);
  }
}

void channel_backward(const ChannelCall& call, const ConstTensor& dy, const Gradients& g,
                      const ConstTensor& pooled, const Context& context) {
  check_device(context);
  check_like("dy", dy, call.x);
  check_output("out", g.dx, call.x, /*may_be_x=*/true);
  if (!same_memory(g.dx, dy)) check_disjoint("out", g.dx, "dy", dy);
  check_disjoint("out", g.dx, "weight", call.weight);
  if (g.dweight) check_shape("dweight", g.dweight, call.channel_shape);
  if (g.dbias) check_shape("dbias", g.dbias, call.channel_shape);
  check_pooled(pooled, call.stats_shape());
  if (call.x.size() == 0) return finish_empty(g, context);

  Plan plan;
  const ConstTensor dx_view = g.dx;
  call.plan({&call.x, &dy, &dx_view}, &plan);
  CallMemory call_memory(context);
  Memory& memory = call_memory.get();
  double* dweight = nullptr;
  double* dbias = nullptr;
  if (g.dweight || g.dbias) {
    dweight = memory.take<double>(call.channels());
    dbias = memory.take<double>(call.channels());
  }
  with_compute(call.x.dtype(), [&]<class C>(std::type_identity<C>) {
    BackwardArgs<C> args{};
    args.x = call.x.data();
    args.dy = dy.data();
    args.dx = g.dx.data();
    args.channel_weight = call.load_channels(call.weight, memory);
    const PooledValues forward(plan, pooled, memory);
    args.forward_mean = forward.mean;
    args.forward_var = forward.var;
    if (call.given()) {
      // What the forward call used, if it says so: the buffers may have moved on.
      args.given_mean = pooled ? args.forward_mean : call.load_channels(call.given_mean, memory);
      args.given_var = pooled ? args.forward_var : call.load_channels(call.given_var, memory);
    }
    args.dweight = dweight;
    args.dbias = dbias;
    run_backward<C>(call.method, plan, call.x.dtype(), args, call.eps, context, memory);
  });
  if (g.dweight) memory.store(dweight, g.dweight, vector_walk(g.dweight));
  if (g.dbias) memory.store(dbias, g.dbias, vector_walk(g.dbias));
}

ChannelCall batch_norm_call(const ConstTensor& x, const ConstTensor& weight,
                            const ConstTensor& bias, const BatchNormOptions& o) {
  ChannelCall call(MethodId::batch_norm, x, weight, bias, o.channel_axis, o.eps);
  call.buffers(o.running_mean, o.running_var, /*use=*/!o.training);
  check_eps(o.eps, /*positive=*/o.training);
  check_finite("momentum", o.momentum);
  if (o.training && x.size() > 0 && call.samples() * call.space() == 1) {
    throw value_error("Expected more than 1 value per channel when training" + input_size(x));
  }
  return call;
}

ChannelCall instance_norm_call(const ConstTensor& x, const ConstTensor& weight,
                               const ConstTensor& bias, const InstanceNormOptions& o) {
  ChannelCall call(MethodId::instance_norm, x, weight, bias, o.channel_axis, o.eps);
  if (!o.use_input_stats && !o.running_mean) {
    throw value_error(
        "running_mean is None, expected an array: use_input_stats=False takes statistics from it");
  }
  call.buffers(o.running_mean, o.running_var, /*use=*/!o.use_input_stats);
  check_eps(o.eps, false);
  check_finite("momentum", o.momentum);
  if (o.use_input_stats && x.size() > 0 && call.space() == 1) {
    throw value_error("Expected more than 1 spatial element when training" + input_size(x));
  }
  return call;
}

ChannelCall group_norm_call(const ConstTensor& x, Index num_groups, const ConstTensor& weight,
                            const ConstTensor& bias, const GroupNormOptions& o) {
  ChannelCall call(MethodId::group_norm, x, weight, bias, o.channel_axis, o.eps);
  check_eps(o.eps, false);
  if (num_groups < 1 || call.channels() % num_groups != 0) {
    throw value_error("num_groups is " + std::to_string(num_groups) +
                      ", expected a positive divisor of " + std::to_string(call.channels()) + ": " +
                      call.channel_shape.rule_text());
  }
  call.groups = num_groups;
  if (x.size() > 0 && call.samples() * (call.channels() / num_groups) * call.space() == 1) {
    throw value_error("Expected more than 1 value per channel when training" + input_size(x));
  }
  return call;
}

}  // namespace

void layer_norm(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                const Tensor& y, const LayerNormOptions& o, const StatsOut& stats,
                const Context& context) {
  const ElementCall call(MethodId::layer_norm, x, weight, bias, o.axes, o.eps, 0);
  element_forward(call, y, o.residual, o.h, stats, context);
}

void layer_norm_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& weight,
                         const Gradients& gradients, const LayerNormOptions& o,
                         const ConstTensor& dh, const ConstTensor& pooled, const Context& context) {
  const ElementCall call(MethodId::layer_norm, x, weight, kAbsent, o.axes, o.eps, 0);
  element_backward(call, dy, gradients, dh, pooled, context);
}

void rms_norm(const ConstTensor& x, const ConstTensor& weight, const Tensor& y,
              const RMSNormOptions& o, const StatsOut& stats, const Context& context) {
  const ElementCall call(MethodId::rms_norm, x, weight, kAbsent, o.axes, o.eps, o.weight_offset);
  element_forward(call, y, o.residual, o.h, stats, context);
}

void rms_norm_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& weight,
                       const Gradients& gradients, const RMSNormOptions& o, const ConstTensor& dh,
                       const ConstTensor& pooled, const Context& context) {
  const ElementCall call(MethodId::rms_norm, x, weight, kAbsent, o.axes, o.eps, o.weight_offset);
  element_backward(call, dy, gradients, dh, pooled, context);
}

void batch_norm(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                const Tensor& y, const BatchNormOptions& o, const StatsOut& stats,
                const Context& context) {
  const RunningUpdate running{o.running_mean, o.running_var, o.momentum, o.unbiased_running_var};
  channel_forward(batch_norm_call(x, weight, bias, o), y,
                  o.training && o.running_mean ? &running : nullptr, stats, context);
}

void batch_norm_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& weight,
                         const Gradients& gradients, const BatchNormOptions& o,
                         const ConstTensor& pooled, const Context& context) {
  channel_backward(batch_norm_call(x, weight, kAbsent, o), dy, gradients, pooled, context);
}

void instance_norm(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                   const Tensor& y, const InstanceNormOptions& o, const StatsOut& stats,
                   const Context& context) {
  const RunningUpdate running{o.running_mean, o.running_var, o.momentum, true};
  channel_forward(instance_norm_call(x, weight, bias, o), y,
                  o.use_input_stats && o.running_mean ? &running : nullptr, stats, context);
}

void instance_norm_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& weight,
                            const Gradients& gradients, const InstanceNormOptions& o,
                            const ConstTensor& pooled, const Context& context) {
  channel_backward(instance_norm_call(x, weight, kAbsent, o), dy, gradients, pooled, context);
}

void group_norm(const ConstTensor& x, Index num_groups, const ConstTensor& weight,
                const ConstTensor& bias, const Tensor& y, const GroupNormOptions& o,
                const StatsOut& stats, const Context& context) {
  channel_forward(group_norm_call(x, num_groups, weight, bias, o), y, nullptr, stats, context);
}

void group_norm_backward(const ConstTensor& dy, const ConstTensor& x, Index num_groups,
                         const ConstTensor& weight, const Gradients& gradients,
                         const GroupNormOptions& o, const ConstTensor& pooled,
                         const Context& context) {
  channel_backward(group_norm_call(x, num_groups, weight, {}, o), dy, gradients, pooled, context);
}

}  // namespace normcore
