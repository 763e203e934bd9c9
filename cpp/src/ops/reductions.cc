// Norms and moments over any axes: the statistics of the row family alone, with nothing to apply
// them to. Every kept position of x is a cell.
#include <algorithm>
#include <optional>

#include "normcore/ops.h"
#include "ops/call.h"
#include "ops/mask.h"
#include "pipeline/masked.h"

namespace normcore {
namespace {

struct Reduction {
  const char* op;
  const ConstTensor& x;
  bool reduced[kMaxDims];
  Index count = 1;  // of a cell
  ExpectedShape shape;

  Reduction(const char* name, const ConstTensor& x_in, const std::optional<Axes>& axes)
      : op(name), x(x_in) {
    check_view("x", x);
    if (axes) {
      check_axes(*axes, x.ndim(), reduced);
    } else {
      std::fill_n(reduced, x.ndim(), true);
    }
    for (int a = 0; a < x.ndim(); ++a) {
      if (reduced[a]) count *= x.shape(a);
      shape.append(reduced[a] ? 1 : x.shape(a));
    }
    shape.rule = "x's shape with 1 along axis";
  }

  // write(plan, statistics by cell, memory), unless there is nothing to reduce.
  // With a mask the statistics have sums in place of variances, and sums of weights for rstd.
  template <class Method, class Write>
  void run(const typename Method::Params& params, const Context& context, const ConstTensor& mask,
           Write&& write) const {
    Plan plan;
    plan_of_cells(x, reduced, {&x, nullptr, nullptr, &mask}, &plan);
    on_device_of(op, context, x, [&] {
      CallMemory call_memory(context);
      Memory& memory = call_memory.get();
      StatsTable table(plan.outer * plan.cells, memory);
      double* weights = mask ? memory.take<double>(plan.outer * plan.cells) : nullptr;
      if (mask && context.device == Device::kCuda) {
        cuda::masked_moments(plan, x.dtype(), x.data(), mask.data(), memory, weights, table.mean,
                             table.var);
        table.rstd = weights;
        return write(plan, table, memory);
      }
      with_compute(x.dtype(), [&]<class C>(std::type_identity<C>) {
        ForwardArgs<C> args{};
        args.op = op;
        args.x = x.data();
        args.mean = table.mean;
        args.var = table.var;
        args.rstd = table.rstd;
        if (mask) args.population = {mask.data(), /*own=*/{1, 0}, weights};
        run_forward<Method, C>(plan, x.dtype(), args, params, context, memory);
      });
      if (mask) table.rstd = weights;
      write(plan, table, memory);
    });
  }
};

}  // namespace

void norm(const ConstTensor& x, const Tensor& y, const NormOptions& o, const Context& context) {
  const cpu::RunningCall running(context);
  check_device(context);
  const Reduction call("norm", x, o.axes);
  check_bounds("ord", o.ord, kNormOrder, false);
  const LpNormalize::Params params{0, spread_of_norm(o.ord)};
  Operands operands;
  operands.reads("x", x);
  check_shape("out", y, call.shape);
  operands.writes("out", y);
  operands.check();
  if (x.size() == 0) {
    CallMemory memory(context);
    return fill(y, 0, memory.get());
  }
  call.run<LpNormalize>(params, context, {}, [&](const Plan& plan, const StatsTable& t, Memory& m) {
    m.store(t.var, y, statistics_walk(plan, y));
  });
}

void moments(const ConstTensor& x, const MomentsOut& out, const MomentsOptions& o,
             const Context& context) {
  const cpu::RunningCall running(context);
  check_device(context);
  const Reduction call("moments", x, o.axes);
  if (out.count) check_shape("count", out.count, call.shape);
  if (out.mean) check_shape("mean", out.mean, call.shape);
  if (out.m2) check_shape("m2", out.m2, call.shape);
  if (o.mask) {
    ExpectedShape shape;
    for (int a = 0; a < x.ndim(); ++a) shape.append(x.shape(a));
    shape.rule = "that of x";
    check_shape("mask", o.mask, shape);
    check_mask_dtype(o.mask, x);
    // For its check: on a device nobody waits for it.
    if (context.device == Device::kCpu) weigh(o.mask, 1);
  }
  Operands operands;
  operands.reads("x", x);
  operands.reads("mask", o.mask);
  operands.writes("count", out.count);
  operands.writes("mean", out.mean);
  operands.writes("m2", out.m2);
  operands.check();
  {
    CallMemory memory(context);
    fill(out.count, double(call.count), memory.get());
    if (x.size() == 0) {
      fill(out.mean, 0, memory.get());
      fill(out.m2, 0, memory.get());
      return;
    }
  }
  call.run<LayerNorm>({0}, context, o.mask, [&](const Plan& plan, const StatsTable& t, Memory& m) {
    if (!o.mask) {
      m.scale(t.var, plan.outer * plan.cells, double(call.count));
    } else if (out.count) {
      m.store(t.rstd, out.count, statistics_walk(plan, out.count));
    }
    if (out.mean) m.store(t.mean, out.mean, statistics_walk(plan, out.mean));
    if (out.m2) m.store(t.var, out.m2, statistics_walk(plan, out.m2));
  });
}

}  // namespace normcore
