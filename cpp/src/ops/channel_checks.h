// The checks of a call over channels, all of them before anything is written.
#pragma once

#include <span>
#include <string>

#include "ops/channel_statistics.h"
#include "ops/running_buffers.h"

namespace normcore {

// An array of parameters of the method's own, and in backward its gradient.
struct OwnParameter {
  const char* name;
  const ConstTensor& value;
  const char* gradient_name = nullptr;
  const Tensor* gradient = nullptr;
};

inline std::string input_size(const ConstTensor& x) { return ", got input size " + shape_text(x); }

// Both buffers, or neither.
inline void check_buffers(const ConstTensor& mean, const ConstTensor& var, const char* var_name,
                          const ExpectedShape& shape) {
  if (static_cast<bool>(mean) != static_cast<bool>(var)) {
    throw value_error(std::string(mean ? var_name : "running_mean") + " is None, expected " +
                      "an array: the other running buffer is given");
  }
  if (!mean) return;
  check_shape("running_mean", mean, shape);
  check_shape(var_name, var, shape);
}

// What a single value per channel cannot have.
inline void check_samples(const ChannelCall& call, const Context& context) {
  if (call.of_the_batch() && !context.exchange && !call.empty() &&
      call.samples() * call.space() == 1) {
    throw value_error("Expected more than 1 value per channel when training" + input_size(call.x));
  }
}

// What a call is known by beside its operands (kept_plan.h); `down`: in backward.
template <class Method>
Operands operands_of(const ChannelCall& call, bool down, const Context& context) {
  return Operands(
      kMethodName<Method>,
      {down, static_cast<Index>(context.device), call.channel_axis, call.has_samples, call.groups,
       static_cast<Index>(call.computed().size()), exchange_of(call, context) != nullptr});
}

// What forward and backward read.
inline void declare_reads(const ChannelCall& call, std::span<const OwnParameter> own, bool buffers,
                          Operands& operands) {
  operands.reads(call.names.x, call.x);
  operands.reads(call.names.weight, call.weight);
  operands.reads("bias", call.bias);
  operands.reads("mask", call.mask);
  if (buffers) {
    operands.reads("running_mean", call.given.mean);
    operands.reads(call.given.var_name, call.given.var);
  }
  for (const OwnParameter& p : own) operands.reads(p.name, p.value);
}
inline void declare_forward(const ChannelCall& call, const Tensor& y,
                            std::span<const BufferUpdate> updates, const StatsOut& stats,
                            std::span<const OwnParameter> own, Operands& operands) {
  declare_reads(call, own, /*buffers=*/updates.empty(), operands);
  operands.writes("out", y, {&call.x});
  for (const BufferUpdate& u : updates) operands.updates(u.name, u.buffer);
  declare_stats(stats, operands);
}
inline void declare_backward(const ChannelCall& call, const ConstTensor& dy, const Gradients& g,
                             const SavedStats& stats, std::span<const OwnParameter> own,
                             Operands& operands) {
  declare_reads(call, own, /*buffers=*/true, operands);
  operands.reads(call.names.dy, dy);
  operands.reads("stats.pooled", stats.pooled);
  operands.reads("stats.given", stats.given);
  operands.writes("out", g.dx, {&call.x, &dy});
  operands.writes(call.names.dweight, g.dweight);
  operands.writes("dbias", g.dbias);
  for (const OwnParameter& p : own) {
    if (p.gradient) operands.writes(p.gradient_name, *p.gradient);
  }
}

inline void check_channel_forward(const ChannelCall& call, const Tensor& y,
                                  std::span<const BufferUpdate> updates, const StatsOut& stats,
                                  const Context& context, const Operands& operands) {
  check_device(context);
  check_output("out", y, call.x, call.names.x);
  for (const BufferUpdate& u : updates) {
    if (u.buffer.writable()) continue;
    throw value_error(std::string(u.name) +
                      " is read-only, expected memory that a training call may move");
  }
  check_stats_out(stats, call.stats_shape());
  if ((stats.mean || stats.rstd) && call.pools.size() > 1 && call.stats_shape().ndim > 1) {
    throw value_error("stats.mean or rstd is given, expected none: the method has several");
  }
  if (stats.given) {
    ExpectedShape pairs = call.channel_shape;
    check_pooled(stats.given, pairs, "stats.given");
  }
  operands.check();
  check_samples(call, context);
}

inline void check_channel_backward(const ChannelCall& call, const ConstTensor& dy,
                                   const Gradients& g, const SavedStats& stats,
                                   const Context& context, const Operands& operands) {
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
  operands.check();
  check_samples(call, context);
}

}  // namespace normcore
