// A call whose parameters belong to channels: its arguments, how they lie to the samples, channels
// and positions of x, and what statistics it reports.
#pragma once

#include <algorithm>
#include <span>

#include "normcore/ops.h"
#include "ops/call.h"

namespace normcore {

// The names that messages use.
struct ArgumentNames {
  const char* x = "x";
  const char* weight = "weight";
  const char* dy = "dy";
  const char* dweight = "dweight";
};

// Statistics per channel that are none of x's: running buffers.
struct GivenStatistics {
  ConstTensor mean{};
  ConstTensor var{};       // absent: 1
  bool deviation = false;  // var holds the square root of it
  const char* var_name = "running_var";

  explicit operator bool() const { return static_cast<bool>(mean); }
};

struct ChannelCall {
  std::span<const Pool> pools;
  const ConstTensor& x;
  const ConstTensor& weight;
  const ConstTensor& bias;
  int channel_axis;  // none: -1
  bool has_samples;  // axis 0 counts samples
  Index groups = 1;
  ExpectedShape channel_shape{};
  GivenStatistics given{};  // of the first pool
  ConstTensor mask{};       // as x, with stride 0 along the channels
  ArgumentNames names{};

  template <class Method>
  static ChannelCall of(std::type_identity<Method>, const ConstTensor& x, const ConstTensor& weight,
                        const ConstTensor& bias, int axis) {
    ChannelCall call{Method::pools, x, weight, bias, 0, true};
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
  bool empty() const { return x.size() == 0; }

  // The pools whose statistics are those of x.
  std::span<const Pool> computed() const { return pools.subspan(given ? 1 : 0); }
  // Whether statistics are taken from the batch, in training or for want of running ones: one value
  // per channel is too few for them, as torch has it.
  bool of_the_batch() const { return std::ranges::count(computed(), Pool::batch) > 0; }

  // The pool whose statistics are reported to a reader: see ForwardArgs.
  Pool reported() const { return computed().empty() ? pools[0] : computed()[0]; }
  Extent reported_extent() const {
    return computed().empty() ? Extent::column : extent_of(reported(), Affinity::channel);
  }
  // Statistics that are given per channel are reported once per sample all the same.
  bool reported_per_sample() const {
    return extent_of(reported(), Affinity::channel) != Extent::column;
  }
  // Of several pools the last is handed on to backward: it has an entry per cell, or per channel.
  Extent last_extent() const { return extent_of(pools.back(), Affinity::channel); }
  ExpectedShape stats_shape() const {
    ExpectedShape s;
    if (pools.size() == 1) {
      if (reported_per_sample()) s.append(samples());
      s.append(reported_extent() == Extent::group ? groups : channels());
    } else {
      if (last_extent() == Extent::cell) s.append(samples());
      s.append(channels());
    }
    return s;
  }

  // `one_block`: pools go beyond this call.
  void plan(std::initializer_list<const ConstTensor*> operands, const Context& context,
            bool one_block, Plan* out) const {
    Role roles[kMaxDims];
    for (int a = 0; a < x.ndim(); ++a) {
      roles[a] = a == channel_axis       ? Role::channel
                 : a == 0 && has_samples ? Role::outer
                                         : Role::space;
    }
    PlanRequest request{.roles = roles, .groups = groups, .one_block = one_block};
    for (const Pool pool : computed()) request.pools.add(extent_of(pool, request.affinity));
    request.wide_cells = !mask && context.device == Device::kCpu;
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
};

}  // namespace normcore
