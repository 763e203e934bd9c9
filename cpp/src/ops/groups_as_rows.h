// Group norm without positions: a group is a run of channels, and of a channel's coefficients each
// would serve one element. Groups of many channels are rows in truth, so each group is handed to
// layer norm, which reads its part of the parameters: they run along the row.
//
// This is geometry outside the plan. The plan could have a table [groups, samples] of such rows
// only if parameters of elements differed from one of its rows to the next, in every kernel call of
// the backend and in the sums of their gradients, whose runs must be those of a single group for
// the bits to stay; group norm alone would need it. What it costs here: half a microsecond a group,
// and beyond the caches up to two or three times the layer norm of a matrix of as many rows, since
// x is read in as many passes as there are groups.
#pragma once

#include <type_traits>

#include "ops/channel_checks.h"

namespace normcore {

// The fewest channels of a group for which a row is worth the call.
inline constexpr Index kGroupRow = 64;

inline bool groups_are_rows(const ChannelCall& call, const Context& context) {
  return context.device == Device::kCpu && call.space() == 1 && !call.empty() &&
         call.channels() / call.groups >= kGroupRow;
}

// The parts of a call's arrays that belong to one group of n channels.
struct GroupRows {
  const ChannelCall& call;
  Index group;
  Index n = call.channels() / call.groups;

  // (samples, n) of an array like x.
  template <bool kConst>
  BasicTensor<kConst> rows(const BasicTensor<kConst>& t) const {
    const Index step = t.stride(call.channel_axis);
    BasicTensor<kConst> part = from(t, group * n * step, 2);
    part.set_dim(0, t.shape(0), t.stride(0));
    part.set_dim(1, n, step);
    return part;
  }
  // (n,) of a parameter or its gradient (C,).
  template <bool kConst>
  BasicTensor<kConst> channels(const BasicTensor<kConst>& t) const {
    return along(t, 0, n);
  }
  // (samples, 1) of statistics (samples, groups), or pairs of them.
  template <bool kConst>
  BasicTensor<kConst> column(const BasicTensor<kConst>& t) const {
    return along(t, 1, 1);
  }

 private:
  template <bool kConst>
  static BasicTensor<kConst> from(const BasicTensor<kConst>& t, Index offset, int ndim) {
    auto* data = static_cast<std::conditional_t<kConst, const char*, char*>>(t.data());
    return BasicTensor<kConst>(data + offset * Index(size_of(t.dtype())), t.dtype(), ndim);
  }
  // Of each group `size` entries of an axis.
  template <bool kConst>
  BasicTensor<kConst> along(const BasicTensor<kConst>& t, int axis, Index size) const {
    if (!t) return t;
    BasicTensor<kConst> part = from(t, group * size * t.stride(axis), t.ndim());
    for (int a = 0; a < t.ndim(); ++a) part.set_dim(a, a == axis ? size : t.shape(a), t.stride(a));
    return part;
  }
};

inline LayerNormOptions of_rows(double eps) {
  LayerNormOptions o;
  o.axes = Axes{1};
  o.eps = eps;
  return o;
}

inline void forward_by_rows(const ChannelCall& call, double eps, const Tensor& y,
                            const StatsOut& stats, const Context& context) {
  check_channel_forward(call, y, {}, stats, context, {});
  const LayerNormOptions options = of_rows(eps);
  for (Index g = 0; g < call.groups; ++g) {
    const GroupRows group{call, g};
    const StatsOut own{
        group.column(stats.mean), group.column(stats.rstd), group.column(stats.pooled), {}};
    layer_norm(group.rows(call.x), group.channels(call.weight), group.channels(call.bias),
               group.rows(y), options, own, context);
  }
}

inline void backward_by_rows(const ChannelCall& call, double eps, const ConstTensor& dy,
                             const Gradients& gradients, const SavedStats& stats,
                             const Context& context) {
  check_channel_backward(call, dy, gradients, stats, context, {});
  const LayerNormOptions options = of_rows(eps);
  for (Index g = 0; g < call.groups; ++g) {
    const GroupRows group{call, g};
    const Gradients own{group.rows(gradients.dx), group.channels(gradients.dweight),
                        group.channels(gradients.dbias)};
    layer_norm_backward(group.rows(dy), group.rows(call.x), group.channels(call.weight), own,
                        options, {}, group.column(stats.pooled), context);
  }
}

}  // namespace normcore
