// Group norm of short planes: a channel's coefficients would each serve a few elements, or one. A
// group is a row in truth: x is (N, G, C / G, S...), normalized over all axes from the third on as
// by layer norm, with parameters (G, C / G, S...) in which a channel's own is repeated over its
// plane.
#pragma once

#include <algorithm>
#include <cstdlib>

#include "ops/channel_pipeline.h"

namespace normcore {

// rows.cc. x and its like: (N, G, C / G, S...); weight, bias and their gradients: without N;
// statistics: (N, G, 1, 1...), and pairs of them.
void normalize_groups(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                      const Tensor& y, double eps, const StatsOut& stats, const Context& context);
void normalize_groups_backward(const ConstTensor& dy, const ConstTensor& x,
                               const ConstTensor& weight, const Gradients& gradients, double eps,
                               const ConstTensor& pooled, const Context& context);

// The most elements of a plane. What is repeated is as large as a sample: no more than a core's own
// cache holds.
inline constexpr Index kGroupPlane = 50;
inline constexpr Index kGroupSampleBytes = Index(1) << 20;

// Nothing here asks how many samples there are, where their axis lies, or how far elements are
// apart: a sample's bits do not depend on that.
inline bool groups_are_rows(const ChannelCall& call, const Context& context) {
  if (context.device != Device::kCpu || call.empty() || call.x.ndim() + 2 > kMaxDims) return false;
  const Index plane = call.space(), n = call.channels() / call.groups;
  if (n == 1 || plane > kGroupPlane) return false;
  if (call.channels() * plane * Index(sizeof(double)) > kGroupSampleBytes) return plane == 1;
  // Channels-last, the elements of a group do not follow each other.
  auto step = [&](int a) { return std::abs(call.x.stride(a)); };
  for (int a = 1; a < call.x.ndim(); ++a) {
    if (a != call.channel_axis && call.x.shape(a) > 1 && step(a) > step(call.channel_axis)) {
      return false;
    }
  }
  return true;
}

// The arrays of a call as normalize_groups takes them.
struct GroupRows {
  const ChannelCall& call;
  Memory& memory;
  Index plane = call.space();
  Index n = call.channels() / call.groups;

  // f(axis of x, place of it in a view) for those of the plane.
  template <class F>
  void for_plane(int at, F f) const {
    for (int a = 1; a < call.x.ndim(); ++a) {
      if (a != call.channel_axis) f(a, at++);
    }
  }
  template <bool kConst>
  BasicTensor<kConst> rows(const BasicTensor<kConst>& t) const {
    const Index step = t.stride(call.channel_axis);
    BasicTensor<kConst> view(t.data(), t.dtype(), t.ndim() + 1);
    view.set_dim(0, t.shape(0), t.stride(0));
    view.set_dim(1, call.groups, n * step);
    view.set_dim(2, n, step);
    for_plane(3, [&](int a, int at) { view.set_dim(at, t.shape(a), t.stride(a)); });
    return view;
  }
  // Of an array with `step` from channel to channel: of one value for each, or of its plane.
  template <bool kConst>
  BasicTensor<kConst> by_group(const BasicTensor<kConst>& t, Index step) const {
    BasicTensor<kConst> view(t.data(), t.dtype(), call.x.ndim());
    view.set_dim(0, call.groups, n * step);
    view.set_dim(1, n, step);
    Index rest = plane;
    for_plane(2, [&](int a, int at) {
      rest /= call.x.shape(a);
      view.set_dim(at, call.x.shape(a), rest);
    });
    return view;
  }
  ConstTensor parameters(const ConstTensor& t) const {
    if (!t) return t;
    if (plane == 1) return by_group(t, t.stride(0));
    const double* values = call.load_channels(t, memory);
    ConstTensor repeated;
    with_compute(call.x.dtype(), [&]<class C>(std::type_identity<C>) {
      const Index size = call.channels() * plane;
      C* to = memory.take<C>(size);
      for (Index c = 0; c < call.channels(); ++c) std::fill_n(to + c * plane, plane, C(values[c]));
      repeated = by_group(ConstTensor(to, {size}), plane);
    });
    return repeated;
  }
  // Where the gradient of a parameter is written, and how it comes from there to the caller.
  Tensor gradient(const Tensor& t) const {
    if (!t) return t;
    if (plane == 1) return by_group(t, t.stride(0));
    const Index size = call.channels() * plane;
    return by_group(Tensor(memory.take<double>(size), {size}), plane);
  }
  void store(const Tensor& gradient, const Tensor& t) const {
    if (!t || plane == 1) return;
    const double* from = static_cast<const double*>(gradient.data());
    double* by_channel = memory.take<double>(call.channels());
    for (Index c = 0; c < call.channels(); ++c) by_channel[c] = sum(from + c * plane);
    store_gradient(call, by_channel, t, memory);
  }
  // In four chains of additions: one would take as long as all that was done before.
  double sum(const double* values) const {
    double sums[4] = {};
    Index i = 0;
    for (; i + 4 <= plane; i += 4) {
      for (int j = 0; j < 4; ++j) sums[j] += values[i + j];
    }
    for (; i < plane; ++i) sums[0] += values[i];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
  template <bool kConst>
  BasicTensor<kConst> statistics(const BasicTensor<kConst>& t) const {
    if (!t) return t;
    const int kept = call.x.ndim() + 1;
    const bool pairs = t.ndim() == 3;
    BasicTensor<kConst> view(t.data(), t.dtype(), kept + pairs);
    for (int a = 0; a < kept; ++a) view.set_dim(a, a < 2 ? t.shape(a) : 1, a < 2 ? t.stride(a) : 1);
    if (pairs) view.set_dim(kept, t.shape(2), t.stride(2));
    return view;
  }
};

inline void forward_by_rows(const ChannelCall& call, double eps, const Tensor& y,
                            const StatsOut& stats, const Context& context) {
  Operands operands;
  declare_forward(call, y, {}, stats, {}, operands);
  check_channel_forward(call, y, {}, stats, context, operands);
  CallMemory memory(context);
  const GroupRows as{call, memory.get()};
  const StatsOut of_groups{
      as.statistics(stats.mean), as.statistics(stats.rstd), as.statistics(stats.pooled), {}};
  normalize_groups(as.rows(call.x), as.parameters(call.weight), as.parameters(call.bias),
                   as.rows(y), eps, of_groups, context);
}

inline void backward_by_rows(const ChannelCall& call, double eps, const ConstTensor& dy,
                             const Gradients& gradients, const SavedStats& stats,
                             const Context& context) {
  Operands operands;
  declare_backward(call, dy, gradients, stats, {}, operands);
  check_channel_backward(call, dy, gradients, stats, context, operands);
  CallMemory memory(context);
  const GroupRows as{call, memory.get()};
  const Gradients of_groups{as.rows(gradients.dx), as.gradient(gradients.dweight),
                            as.gradient(gradients.dbias)};
  normalize_groups_backward(as.rows(dy), as.rows(call.x), as.parameters(call.weight), of_groups,
                            eps, as.statistics(stats.pooled), context);
  as.store(of_groups.dweight, gradients.dweight);
  as.store(of_groups.dbias, gradients.dbias);
}

}  // namespace normcore
