// Group norm without positions: a group is a run of channels, and of a channel's coefficients each
// would serve one element. Groups of many channels are rows in truth: x is (samples, groups, n),
// normalized over its last axis as by layer norm, with parameters (groups, n).
#pragma once

#include "ops/channel_checks.h"

namespace normcore {

// rows.cc. x and its like: (N, G, n); weight, bias and their gradients: (G, n); statistics:
// (N, G, 1), pairs of them (N, G, 1, 2).
void normalize_groups(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                      const Tensor& y, double eps, const StatsOut& stats, const Context& context);
void normalize_groups_backward(const ConstTensor& dy, const ConstTensor& x,
                               const ConstTensor& weight, const Gradients& gradients, double eps,
                               const ConstTensor& pooled, const Context& context);

// The fewest channels of a group that are a row.
inline constexpr Index kGroupRow = 64;

inline bool groups_are_rows(const ChannelCall& call, const Context& context) {
  return context.device == Device::kCpu && call.space() == 1 && !call.empty() &&
         call.channels() / call.groups >= kGroupRow;
}

// The arrays of a call as normalize_groups takes them.
struct GroupRows {
  const ChannelCall& call;
  Index n = call.channels() / call.groups;

  template <bool kConst>
  BasicTensor<kConst> rows(const BasicTensor<kConst>& t) const {
    const Index step = t.stride(call.channel_axis);
    BasicTensor<kConst> view(t.data(), t.dtype(), 3);
    view.set_dim(0, t.shape(0), t.stride(0));
    view.set_dim(1, call.groups, n * step);
    view.set_dim(2, n, step);
    return view;
  }
  template <bool kConst>
  BasicTensor<kConst> parameters(const BasicTensor<kConst>& t) const {
    if (!t) return t;
    BasicTensor<kConst> view(t.data(), t.dtype(), 2);
    view.set_dim(0, call.groups, n * t.stride(0));
    view.set_dim(1, n, t.stride(0));
    return view;
  }
  template <bool kConst>
  BasicTensor<kConst> statistics(const BasicTensor<kConst>& t) const {
    if (!t) return t;
    BasicTensor<kConst> view(t.data(), t.dtype(), t.ndim() + 1);
    for (int a = 0; a < 2; ++a) view.set_dim(a, t.shape(a), t.stride(a));
    view.set_dim(2, 1, 1);
    if (t.ndim() == 3) view.set_dim(3, t.shape(2), t.stride(2));
    return view;
  }
};

inline void forward_by_rows(const ChannelCall& call, double eps, const Tensor& y,
                            const StatsOut& stats, const Context& context) {
  check_channel_forward(call, y, {}, stats, context, {});
  const GroupRows as{call};
  const StatsOut of_groups{
      as.statistics(stats.mean), as.statistics(stats.rstd), as.statistics(stats.pooled), {}};
  normalize_groups(as.rows(call.x), as.parameters(call.weight), as.parameters(call.bias),
                   as.rows(y), eps, of_groups, context);
}

inline void backward_by_rows(const ChannelCall& call, double eps, const ConstTensor& dy,
                             const Gradients& gradients, const SavedStats& stats,
                             const Context& context) {
  check_channel_backward(call, dy, gradients, stats, context, {});
  const GroupRows as{call};
  const Gradients of_groups{as.rows(gradients.dx), as.parameters(gradients.dweight),
                            as.parameters(gradients.dbias)};
  normalize_groups_backward(as.rows(dy), as.rows(call.x), as.parameters(call.weight), of_groups,
                            eps, as.statistics(stats.pooled), context);
}

}  // namespace normcore
