// Calls over channels, run: checked, planned, parameters and statistics brought into the plan's
// order, the pipeline of the method forward or backward, and what came of it written back.
#pragma once

#include <span>

#include "ops/channel_checks.h"

namespace normcore {

// `make_params`(memory) gives the method's Params, with arrays in the memory of the call.
template <class Method, class MakeParams>
void channel_forward(const ChannelCall& call, const MakeParams& make_params, const Tensor& y,
                     std::span<const BufferUpdate> updates, const StatsOut& stats,
                     const Context& context, std::span<const OwnParameter> own = {}) {
  static_assert(!MeasuresSpread<Method> || kSpreadOfChannels<Method>,
                "over the channels of a sample or group no spread is measured");
  Operands operands = operands_of<Method>(call, /*down=*/false, context);
  declare_forward(call, y, updates, stats, own, operands);
  for (const BufferUpdate& u : updates) operands.is_with(u.buffer.writable());
  KeptPlan kept(operands.key());
  if (!kept || !operands.check_addresses()) {
    check_channel_forward(call, y, updates, stats, context, operands);
    const bool together = exchange_of(call, context) != nullptr;
    if (call.empty() && !together) return finish_empty(stats, context);
    kept.plan([&](Plan* plan) {
      const ConstTensor y_view = y;
      call.plan({&call.x, &y_view, nullptr, call.mask ? &call.mask : nullptr}, context, together,
                plan);
    });
  }
  const Plan& plan = *kept;
  on_device_of<Method>(context, call.x, [&] {
    CallMemory call_memory(context);
    Memory& memory = call_memory.get();
    const typename Method::Params params = make_params(memory);
    const bool one_pool = call.pools.size() == 1;
    const bool wanted = stats.mean || stats.rstd || stats.pooled;
    StatsTable table, last;
    if (!updates.empty() || wanted) {
      const Index cols = plan.pool_cols(call.reported_extent());
      table = StatsTable((call.reported_per_sample() ? call.samples() : 1) * cols, memory);
    }
    if (stats.pooled && !one_pool) {
      const Index entries = plan.pool_rows(call.last_extent()) * plan.cells;
      if (entries > 0) last = StatsTable(entries, memory);
    }
    const GivenMoments given(call, memory);
    Counted count;
    const Population population = population_of(call, context, &count);
    with_compute(call.x.dtype(), [&]<class C>(std::type_identity<C>) {
      ForwardArgs<C> args{};
      args.x = call.x.data();
      args.y = y.data();
      args.channel_weight = call.load_channels(call.weight, memory);
      args.channel_bias = call.load_channels(call.bias, memory);
      args.given_mean = given.mean;
      args.given_var = given.var;
      args.mean = table.mean;
      args.var = table.var;
      args.rstd = table.rstd;
      args.last_mean = last.mean;
      args.last_var = last.var;
      args.population = population;
      run_forward<Method, C>(plan, call.x.dtype(), args, params, context, memory);
    });
    if (call.empty()) {
      // Its samples have no statistics; the batch has them where other processes have samples.
      finish_empty(stats, context);
      if (!count.there && count.here.sum == 0) return;
    }
    if (stats.given && given.mean) write_pairs(plan, given.mean, given.var, stats.given, memory);
    if (last.mean) write_pairs(plan, last.mean, last.var, stats.pooled, memory);
    if (!table.mean) return;
    if (call.computed().empty() && call.reported_per_sample()) {
      table.repeat(call.channels(), call.samples() * call.channels(), memory);
    }
    StatsOut of_table = stats;
    if (!one_pool) of_table.pooled = {};
    write_stats(plan, table, of_table, memory);
    const Index rows = plan.pool_rows(call.reported_extent());
    if (rows > 1) count = {Weighed::elements(double(call.space()))};
    if (!count.there && count.here.sum == 0) return;
    move_buffers(updates, table, rows, count, memory);
  });
}

struct OwnGradients {
  std::span<const OwnParameter> of{};
  bool wanted = false;
};

// Brings a gradient by channel to where the caller wants it. One parameter for all channels has the
// sum of their gradients.
inline void store_gradient(const ChannelCall& call, const double* by_channel, const Tensor& to,
                           Memory& memory) {
  if (!to) return;
  Walk w = call.channel_walk(to);
  if (to.size() == 1 && call.channels() > 1) {
    double* sum = memory.take<double>(1);
    memory.sum_each(by_channel, 1, call.channels(), sum);
    by_channel = sum;
    w.size[0] = 1;
  }
  memory.store(by_channel, to, w);
}

// The caller's array as kernels of a device write a gradient by channel to it; false where a table
// must do.
inline bool column_of(const ChannelCall& call, const Tensor& to, const Context& context,
                      Column* column) {
  if (!to || context.device == Device::kCpu || to.size() != call.channels()) return false;
  const Walk w = call.channel_walk(to);
  *column = {to.data(), to.dtype(), w.stride[0]};
  return true;
}

// `write_own`(gradients by channel [kParameterCount, channels], memory) where they are wanted.
template <class Method, class MakeParams, class WriteOwn>
void channel_backward(const ChannelCall& call, const MakeParams& make_params, const ConstTensor& dy,
                      const Gradients& g, const SavedStats& stats, const Context& context,
                      const OwnGradients& own, const WriteOwn& write_own) {
  static_assert(!MeasuresSpread<Method> || kSpreadOfChannels<Method>,
                "over the channels of a sample or group no spread is measured");
  Operands operands = operands_of<Method>(call, /*down=*/true, context);
  declare_backward(call, dy, g, stats, own.of, operands);
  KeptPlan kept(operands.key());
  const Index channels = call.channels();
  if (!kept || !operands.check_addresses()) {
    check_channel_backward(call, dy, g, stats, context, operands);
    const bool together = exchange_of(call, context) != nullptr;
    if (call.empty() && !together) {
      return on_device_of<Method>(context, call.x, [&] {
        CallMemory memory(context);
        finish_empty(g, context);
        if (!own.wanted) return;
        const Index numbers = kParameterCount<Method> * channels;
        write_own(memory.get().template take_filled<double>(numbers, 0), memory.get());
      });
    }
    kept.plan([&](Plan* plan) {
      const ConstTensor dx_view = g.dx;
      call.plan({&call.x, &dy, &dx_view, call.mask ? &call.mask : nullptr}, context, together,
                plan);
    });
  }
  const Plan& plan = *kept;
  on_device_of<Method>(context, call.x, [&] {
    CallMemory call_memory(context);
    Memory& memory = call_memory.get();
    const typename Method::Params params = make_params(memory);
    double* dweight = nullptr;
    double* dbias = nullptr;
    double* dparams = nullptr;
    if (g.dweight || g.dbias) {
      dweight = memory.take<double>(channels);
      dbias = memory.take<double>(channels);
    }
    if (own.wanted) dparams = memory.take<double>(kParameterCount<Method> * channels);
    Column dweight_column{}, dbias_column{};
    const bool dweight_written = column_of(call, g.dweight, context, &dweight_column);
    const bool dbias_written = column_of(call, g.dbias, context, &dbias_column);
    Counted count;
    const Population population = population_of(call, context, &count);
    with_compute(call.x.dtype(), [&]<class C>(std::type_identity<C>) {
      BackwardArgs<C> args{};
      args.x = call.x.data();
      args.dy = dy.data();
      args.dx = g.dx.data();
      args.channel_weight = call.load_channels(call.weight, memory);
      const PooledValues forward(plan, stats.pooled, memory);
      args.forward_mean = forward.mean;
      args.forward_var = forward.var;
      args.forward_step = forward.step;
      if (ShiftsOnly<Method>) {
        args.forward_mean = args.forward_var = memory.take_filled<double>(channels, 0);
        args.forward_step = 1;
      }
      if (call.given) {
        // What the forward call used, if it says so: the buffers may have moved on.
        const ConstTensor& saved = call.computed().empty() ? stats.pooled : stats.given;
        if (saved) {
          const PooledValues used(plan, saved, memory);
          args.given_mean = used.mean;
          args.given_var = used.var;
          args.given_step = used.step;
        } else {
          const GivenMoments given(call, memory);
          args.given_mean = given.mean;
          args.given_var = given.var;
        }
      }
      args.dweight = dweight;
      args.dbias = dbias;
      args.dweight_column = dweight_column;
      args.dbias_column = dbias_column;
      args.dparams = dparams;
      args.population = population;
      run_backward<Method, C>(plan, call.x.dtype(), args, params, context, memory);
    });
    if (!dweight_written) store_gradient(call, dweight, g.dweight, memory);
    if (!dbias_written) store_gradient(call, dbias, g.dbias, memory);
    if (own.wanted) write_own(dparams, memory);
  });
}

template <class Method, class MakeParams>
void channel_backward(const ChannelCall& call, const MakeParams& make_params, const ConstTensor& dy,
                      const Gradients& g, const SavedStats& stats, const Context& context) {
  channel_backward<Method>(call, make_params, dy, g, stats, context, OwnGradients{},
                           [](const double*, Memory&) {});
}

}  // namespace normcore
