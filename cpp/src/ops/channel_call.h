// Calls whose parameters belong to channels: check the arguments, ask for a plan, bring parameters
// and statistics into its order, run the pipeline of a method, and write back.
#pragma once

#include <span>

#include "normcore/ops.h"
#include "ops/call.h"
#include "ops/running_buffers.h"

namespace normcore {

// An array of parameters of the method's own, and in backward its gradient.
struct OwnParameter {
  const char* name;
  const ConstTensor& value;
  const char* gradient_name = nullptr;
  const Tensor* gradient = nullptr;
};
struct OwnGradients {
  std::span<const OwnParameter> of;
  bool wanted;
};

inline std::string input_size(const ConstTensor& x) { return ", got input size " + shape_text(x); }

// The names that messages use.
struct ArgumentNames {
  const char* x = "x";
  const char* weight = "weight";
  const char* dy = "dy";
  const char* dweight = "dweight";
};

struct ChannelCall {
  const Pool* pools;
  int pool_count;
  const ConstTensor& x;
  const ConstTensor& weight;
  const ConstTensor& bias;
  int channel_axis;  // none: -1
  bool has_samples;  // axis 0 counts samples
  Index groups = 1;
  // Statistics of the first pool that are none of x's; with given_std the second is a deviation.
  ConstTensor given_mean{}, given_var{};
  bool given_std = false;
  const char* var_name = "running_var";
  ConstTensor mask{};  // as x, with stride 0 along the channels
  ExpectedShape channel_shape{};
  ArgumentNames names{};

  template <class Method>
  static ChannelCall of(std::type_identity<Method>, const ConstTensor& x, const ConstTensor& weight,
                        const ConstTensor& bias, int axis) {
    ChannelCall call{Method::pools, kPoolCount<Method>, x, weight, bias, 0, true};
    check_view("x", x);
    call.channel_axis = check_channel_axis(x, axis);
    ExpectedShape& shape = call.channel_shape;
    shape.append(call.channels());
    shape.rule = "x.shape[channel_axis=";
    shape.given_axis = axis;
    shape.has_axis = true;
    if (weight) check_shape("weight", weight, shape);
    if (bias) check_shape("bias", bias, shape);
    return call;
  }

  Index samples() const { return has_samples ? x.shape(0) : 1; }
  Index channels() const { return channel_axis < 0 ? 1 : x.shape(channel_axis); }
  Index space() const {
    Index n = 1;
    for (int a = has_samples; a < x.ndim(); ++a) n *= a == channel_axis ? 1 : x.shape(a);
    return n;
  }
  bool given() const { return static_cast<bool>(given_mean); }
  bool nothing_computed() const { return given() && pool_count == 1; }

  // Buffers come in pairs; `use` takes the statistics from them.
  void buffers(const ConstTensor& mean, const ConstTensor& var, bool use) {
    if (static_cast<bool>(mean) != static_cast<bool>(var)) {
      throw value_error(std::string(mean ? var_name : "running_mean") + " is None, expected " +
                        "an array: the other running buffer is given");
    }
    if (mean) {
      check_shape("running_mean", mean, channel_shape);
      check_shape(var_name, var, channel_shape);
    }
    if (use) {
      given_mean = mean;
      given_var = var;
    }
  }

  // What each position counts in statistics of x.
  void count_by(const ConstTensor& given) {
    ExpectedShape shape;
    for (int a = 0; a < x.ndim(); ++a) {
      if (a != channel_axis) shape.append(x.shape(a));
    }
    shape.rule = "x.shape without the channel axis";
    check_shape("mask", given, shape);
    check_mask_dtype(given, x);
    mask = ConstTensor(given.data(), given.dtype(), x.ndim());
    for (int a = 0, from = 0; a < x.ndim(); ++a) {
      const bool repeated = a == channel_axis;
      mask.set_dim(a, x.shape(a), repeated ? 0 : given.stride(from));
      from += !repeated;
    }
  }
  // Whether statistics are taken from the batch, in training or for want of running ones: one value
  // per channel is too few for them, as torch has it.
  bool of_the_batch() const {
    for (int i = given() ? 1 : 0; i < pool_count; ++i) {
      if (pools[i] == Pool::batch) return true;
    }
    return false;
  }
  // Where statistics of x are those of other processes too.
  Exchange* exchange(const Context& context) const {
    return of_the_batch() ? context.exchange : nullptr;
  }
  // Mask and exchange where statistics are taken from x, and how much a batch pool counts.
  Population population(const Context& context, Weighed* count) const {
    Population r{};
    r.own = Weighed::elements(double(space()) * double(samples()));
    r.exchange = exchange(context);
    r.count = count;
    r.least_count = of_the_batch() && !mask ? 2 : 0;
    if (mask) {
      // It is repeated along the channels.
      const Weighed weights = weigh(mask, std::max<Index>(1, channels()));
      if (!nothing_computed()) {
        r.mask = mask.data();
        r.own = weights;
      }
    }
    *count = r.own;
    return r;
  }
  void check_population(const Context& context) const {
    if (context.device == Device::kCuda && (mask || exchange(context))) {
      throw value_error(std::string(mask ? "mask" : "context.exchange") +
                        " is given, expected none for arrays on a CUDA device");
    }
    if (of_the_batch() && !context.exchange && x.size() > 0 && samples() * space() == 1) {
      throw value_error("Expected more than 1 value per channel when training" + input_size(x));
    }
  }

  // What forward and backward read.
  void declare_reads(std::span<const OwnParameter> own, bool buffers, Operands& operands) const {
    operands.reads(names.x, x);
    operands.reads(names.weight, weight);
    operands.reads("bias", bias);
    operands.reads("mask", mask);
    if (buffers) {
      operands.reads("running_mean", given_mean);
      operands.reads(var_name, given_var);
    }
    for (const OwnParameter& p : own) operands.reads(p.name, p.value);
  }

  // The pool whose statistics are reported to a reader: see ForwardArgs.
  Pool reported() const { return pools[given() && pool_count > 1 ? 1 : 0]; }
  Extent reported_extent() const {
    return nothing_computed() ? Extent::column : extent_of(reported(), Affinity::channel);
  }
  // Statistics that are given per channel are reported once per sample all the same.
  bool reported_per_sample() const {
    return extent_of(reported(), Affinity::channel) != Extent::column;
  }
  ExpectedShape stats_shape() const {
    ExpectedShape s;
    if (pool_count == 1) {
      if (reported_per_sample()) s.append(samples());
      s.append(reported_extent() == Extent::group ? groups : channels());
    } else {
      // Of several pools the last: it has an entry per cell, or per channel.
      if (extent_of(pools[pool_count - 1], Affinity::channel) == Extent::cell) s.append(samples());
      s.append(channels());
    }
    return s;
  }

  void plan(std::initializer_list<const ConstTensor*> operands, const Context& context,
            Plan* out) const {
    Role roles[kMaxDims];
    for (int a = 0; a < x.ndim(); ++a) {
      roles[a] = a == channel_axis       ? Role::channel
                 : a == 0 && has_samples ? Role::outer
                                         : Role::space;
    }
    const int first = given() ? 1 : 0;
    PlanRequest request{
        .roles = roles, .groups = groups, .one_block = exchange(context) != nullptr};
    for (int i = first; !nothing_computed() && i < pool_count; ++i) {
      request.pools.add(extent_of(pools[i], request.affinity));
    }
    request.set_operands(operands);
    make_plan(request, out);
  }

  // A vector over the channels, or one value for all of them.
  template <class T>
  Walk channel_walk(const T& t) const {
    Walk w;
    Index stride = 0;
    for (int a = 0; a < t.ndim(); ++a) {
      if (t.shape(a) != 1) stride = t.stride(a);
    }
    w.append(channels(), stride);
    return w;
  }
  const double* load_channels(const ConstTensor& t, Memory& memory) const {
    return t ? memory.load<double>(t, channel_walk(t)) : nullptr;
  }
  const double* load_given_var(Memory& memory) const {
    if (given() && !given_var) return memory.take_filled<double>(channels(), 1);
    const double* values = load_channels(given_var, memory);
    if (!given_std || !values) return values;
    double* squares = memory.take<double>(channels());
    memory.transform(Memory::kSquare, values, channels(), squares);
    return squares;
  }
};

// Before anything is written.
inline void check_channel_forward(const ChannelCall& call, const Tensor& y,
                                  std::span<const BufferUpdate> updates, const StatsOut& stats,
                                  const Context& context, std::span<const OwnParameter> own) {
  check_device(context);
  check_output("out", y, call.x, call.names.x);
  for (const BufferUpdate& u : updates) {
    if (u.buffer.writable()) continue;
    throw value_error(std::string(u.name) +
                      " is read-only, expected memory that a training call may move");
  }
  check_stats_out(stats, call.stats_shape());
  if ((stats.mean || stats.rstd) && call.pool_count > 1 && call.stats_shape().ndim > 1) {
    throw value_error("stats.mean or rstd is given, expected none: the method has several");
  }
  if (stats.given) {
    ExpectedShape pairs = call.channel_shape;
    check_pooled(stats.given, pairs, "stats.given");
  }
  Operands operands;
  call.declare_reads(own, /*buffers=*/updates.empty(), operands);
  operands.writes("out", y, {&call.x});
  for (const BufferUpdate& u : updates) operands.updates(u.name, u.buffer);
  declare_stats(stats, operands);
  operands.check();
  call.check_population(context);
}

// `make_params`(memory) gives the method's Params, with arrays in the memory of the call.
template <class Method, class MakeParams>
void channel_forward(const ChannelCall& call, const MakeParams& make_params, const Tensor& y,
                     std::span<const BufferUpdate> updates, const StatsOut& stats,
                     const Context& context, std::span<const OwnParameter> own = {}) {
  static_assert(!MeasuresSpread<Method> || kSpreadOfChannels<Method>,
                "over the channels of a sample or group no spread is measured");
  check_channel_forward(call, y, updates, stats, context, own);
  const bool empty = call.x.size() == 0;
  if (empty && !call.exchange(context)) return finish_empty(stats, context);

  Plan plan;
  const ConstTensor y_view = y;
  call.plan({&call.x, &y_view, nullptr, call.mask ? &call.mask : nullptr}, context, &plan);
  on_device_of<Method>(context, call.x, [&] {
    CallMemory call_memory(context);
    Memory& memory = call_memory.get();
    const typename Method::Params params = make_params(memory);
    const bool one_pool = call.pool_count == 1;
    const bool wanted = stats.mean || stats.rstd || stats.pooled;
    StatsTable table, last;
    if (!updates.empty() || wanted) {
      const Index cols = plan.pool_cols(call.reported_extent());
      table = StatsTable((call.reported_per_sample() ? call.samples() : 1) * cols, memory);
    }
    if (stats.pooled && !one_pool) {
      const Extent extent = extent_of(call.pools[call.pool_count - 1], plan.affinity);
      const Index entries = plan.pool_rows(extent) * plan.pool_cols(extent);
      if (entries > 0) last = StatsTable(entries, memory);
    }
    const double* given_mean = call.load_channels(call.given_mean, memory);
    const double* given_var = call.load_given_var(memory);
    Weighed count;
    const Population population = call.population(context, &count);
    with_compute(call.x.dtype(), [&]<class C>(std::type_identity<C>) {
      ForwardArgs<C> args{};
      args.x = call.x.data();
      args.y = y.data();
      args.channel_weight = call.load_channels(call.weight, memory);
      args.channel_bias = call.load_channels(call.bias, memory);
      args.given_mean = given_mean;
      args.given_var = given_var;
      args.mean = table.mean;
      args.var = table.var;
      args.rstd = table.rstd;
      args.last_mean = last.mean;
      args.last_var = last.var;
      args.population = population;
      run_forward<Method, C>(plan, call.x.dtype(), args, params, context, memory);
    });
    if (empty) {
      // Its samples have no statistics; the batch has them where other processes have samples.
      finish_empty(stats, context);
      if (count.sum == 0) return;
    }
    if (stats.given && given_mean) {
      write_pairs(plan, given_mean, given_var, stats.given, memory);
    }
    if (last.mean) write_pairs(plan, last.mean, last.var, stats.pooled, memory);
    if (!table.mean) return;
    if (call.nothing_computed() && call.reported_per_sample()) {
      table.repeat(call.channels(), call.samples() * call.channels(), memory);
    }
    StatsOut of_table = stats;
    if (!one_pool) of_table.pooled = {};
    write_stats(plan, table, of_table, memory);
    const Index rows = plan.pool_rows(call.reported_extent());
    if (rows > 1) count = Weighed::elements(double(call.space()));
    if (count.sum == 0) return;
    move_buffers(updates, table, rows, count, memory);
  });
}

inline void check_channel_backward(const ChannelCall& call, const ConstTensor& dy,
                                   const Gradients& g, const SavedStats& stats,
                                   const Context& context, std::span<const OwnParameter> own) {
  check_device(context);
  check_like(call.names.dy, dy, call.x, call.names.x);
  check_output("out", g.dx, call.x, call.names.x);
  if (g.dweight && same_shape(g.dweight, call.weight)) {
    check_view(call.names.dweight, g.dweight);
  } else if (g.dweight) {
    check_shape(call.names.dweight, g.dweight, call.channel_shape);
  }
  if (g.dbias) check_shape("dbias", g.dbias, call.channel_shape);
  check_pooled(stats.pooled, call.stats_shape());
  check_pooled(stats.given, call.channel_shape, "stats.given");
  Operands operands;
  call.declare_reads(own, /*buffers=*/true, operands);
  operands.reads(call.names.dy, dy);
  operands.reads("stats.pooled", stats.pooled);
  operands.reads("stats.given", stats.given);
  operands.writes("out", g.dx, {&call.x, &dy});
  operands.writes(call.names.dweight, g.dweight);
  operands.writes("dbias", g.dbias);
  for (const OwnParameter& p : own) {
    if (p.gradient) operands.writes(p.gradient_name, *p.gradient);
  }
  operands.check();
  call.check_population(context);
}

// `write_own`(gradients by channel [kParameterCount, channels], memory) where they are wanted.
template <class Method, class MakeParams, class WriteOwn>
void channel_backward(const ChannelCall& call, const MakeParams& make_params, const ConstTensor& dy,
                      const Gradients& g, const SavedStats& stats, const Context& context,
                      const OwnGradients& own, const WriteOwn& write_own) {
  static_assert(!MeasuresSpread<Method> || kSpreadOfChannels<Method>,
                "over the channels of a sample or group no spread is measured");
  check_channel_backward(call, dy, g, stats, context, own.of);
  on_device_of<Method>(context, call.x, [&] {
    CallMemory call_memory(context);
    Memory& memory = call_memory.get();
    if (call.x.size() == 0 && !call.exchange(context)) {
      finish_empty(g, context);
      if (own.wanted) {
        const Index n = kParameterCount<Method> * call.channels();
        write_own(memory.take_filled<double>(n, 0), memory);
      }
      return;
    }

    Plan plan;
    const ConstTensor dx_view = g.dx;
    call.plan({&call.x, &dy, &dx_view, call.mask ? &call.mask : nullptr}, context, &plan);
    const typename Method::Params params = make_params(memory);
    const Index channels = call.channels();
    double* dweight = nullptr;
    double* dbias = nullptr;
    double* dparams = nullptr;
    if (g.dweight || g.dbias) {
      dweight = memory.take<double>(channels);
      dbias = memory.take<double>(channels);
    }
    if (own.wanted) dparams = memory.take<double>(kParameterCount<Method> * channels);
    Weighed count;
    const Population population = call.population(context, &count);
    with_compute(call.x.dtype(), [&]<class C>(std::type_identity<C>) {
      BackwardArgs<C> args{};
      args.x = call.x.data();
      args.dy = dy.data();
      args.dx = g.dx.data();
      args.channel_weight = call.load_channels(call.weight, memory);
      const PooledValues forward(plan, stats.pooled, memory);
      args.forward_mean = forward.mean;
      args.forward_var = forward.var;
      if (ShiftsOnly<Method>) {
        args.forward_mean = args.forward_var = memory.take_filled<double>(channels, 0);
      }
      if (call.given()) {
        // What the forward call used, if it says so: the buffers may have moved on.
        const ConstTensor& saved = call.nothing_computed() ? stats.pooled : stats.given;
        const PooledValues used(plan, saved, memory);
        args.given_mean = saved ? used.mean : call.load_channels(call.given_mean, memory);
        args.given_var = saved ? used.var : call.load_given_var(memory);
      }
      args.dweight = dweight;
      args.dbias = dbias;
      args.dparams = dparams;
      args.population = population;
      run_backward<Method, C>(plan, call.x.dtype(), args, params, context, memory);
    });
    if (g.dweight) {
      // One weight for all channels has the sum of their gradients.
      const bool one = g.dweight.size() == 1 && channels > 1;
      if (one) {
        double* sum = memory.take<double>(1);
        memory.sum_each(dweight, 1, channels, sum);
        dweight = sum;
      }
      Walk w = call.channel_walk(g.dweight);
      if (one) w.size[0] = 1;
      memory.store(dweight, g.dweight, w);
    }
    if (g.dbias) memory.store(dbias, g.dbias, call.channel_walk(g.dbias));
    if (own.wanted) write_own(dparams, memory);
  });
}

template <class Method, class MakeParams>
void channel_backward(const ChannelCall& call, const MakeParams& make_params, const ConstTensor& dy,
                      const Gradients& g, const SavedStats& stats, const Context& context) {
  channel_backward<Method>(call, make_params, dy, g, stats, context, OwnGradients{{}, false},
                           [](const double*, Memory&) {});
}

}  // namespace normcore
