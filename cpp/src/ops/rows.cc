// Layer and RMS normalization and division by a norm: the pool is any set of axes, and parameters
// belong to its elements. Check the arguments, ask for a plan, bring parameters and statistics into
// its order, run the pipeline, and write back.
#include <numeric>

#include "normcore/ops.h"
#include "ops/call.h"
#include "ops/groups_as_rows.h"

namespace normcore {
namespace {

const ConstTensor kAbsent{};
// Arguments and geometry: every kept position of x is a cell.
struct ElementCall {
  const ConstTensor& x;
  const ConstTensor& weight;
  const ConstTensor& bias;
  const Axes& axes;
  int parameter_axis;  // kept, along which parameters differ too; none: -1
  double weight_offset = 0;
  bool normalized[kMaxDims];
  ExpectedShape parameter_shape, stats_shape;

  template <class Options>
  ElementCall(const ConstTensor& x_in, const ConstTensor& w, const ConstTensor& b, const Options& o,
              int parameters_along = -1)
      : x(x_in), weight(w), bias(b), axes(o.axes), parameter_axis(parameters_along) {
    if constexpr (requires { o.weight_offset; }) weight_offset = o.weight_offset;
  }

  // What a call is known by beside its operands; `down`: in backward.
  template <class Method>
  Operands operands(bool down, const Context& context) const {
    Operands operands(kMethodName<Method>,
                      {down, static_cast<Index>(context.device), parameter_axis, axes.count});
    for (int i = 0; i < std::min(axes.count, kMaxDims); ++i) operands.is_with(axes.values[i]);
    return operands;
  }

  // `known`: but for the options that are numbers, it has passed already.
  template <class Method>
  void check(const typename Signature<Method>::Options& o, bool known) {
    if (!known) {
      check_view("x", x);
      if (x.ndim() == 0) throw value_error("x has shape (), expected at least one axis");
    }
    check_axes(axes, x.ndim(), normalized);
    check_options<Method>(o);
    if (known) return;
    for (int a = 0; a < x.ndim(); ++a) {
      if (of_parameters(a)) parameter_shape.append(x.shape(a));
      stats_shape.append(normalized[a] ? 1 : x.shape(a));
    }
    parameter_shape.rule = "x's shape over axis";
    if (weight) check_shape("weight", weight, parameter_shape);
    if (bias) check_shape("bias", bias, parameter_shape);
  }

  void plan(std::initializer_list<const ConstTensor*> operands, Plan* out) const {
    plan_of_cells(x, normalized, operands, out, parameter_axis);
  }
  bool of_parameters(int a) const { return normalized[a] || a == parameter_axis; }

  // The elements of a parameter in the plan's order.
  template <class T>
  Walk parameter_walk(const Plan& plan, const T& t) const {
    Walk w;
    auto append = [&](int x_axis) {
      int axis = 0;
      for (int a = 0; a < x_axis; ++a) axis += of_parameters(a);
      w.append(t.shape(axis), t.stride(axis));
    };
    if (plan.parameters_by_row) append(parameter_axis);
    for (int i = 0; i < plan.space_axis_count; ++i) append(plan.space_axes[i]);
    return w;
  }

  template <class C>
  ElementParameter<C> load_parameter(const Plan& plan, const ConstTensor& t, double missing,
                                     double offset, const Context& context, Memory& memory) const {
    const bool host = context.device == Device::kCpu;
    if (!host && !plan.parameters_by_row && (!t || parameter_walk(plan, t).contiguous())) {
      ElementParameter<C> given;
      given.as_given = true;
      given.data = t ? t.data() : nullptr;
      given.dtype = t ? t.dtype() : DTypeOf<C>::value;
      given.offset = t ? offset : missing;
      return given;
    }
    if (t) {
      const Index row = plan.parameters_by_row ? plan.count : 0;
      return {memory.load_shifted<C>(t, parameter_walk(plan, t), offset), 1, row};
    }
    // A tile is a chunk at most; a device's kernels take rows as they come.
    const Index n = host ? std::min(plan.count, plan.chunk) : plan.count;
    return {memory.take_filled<C>(n, C(missing)), host ? 0 : 1};
  }

  // Where the pipeline leaves the gradient of a parameter: in the caller's array, or in a table
  // that `store_gradient` brings there.
  template <class C>
  void place_gradient(const Plan& plan, const Tensor& t, const Context& context, Memory& memory,
                      double** table, C** here, Column* column) const {
    if (!t) return;
    const Walk walk = parameter_walk(plan, t);
    Index step;
    if (context.device != Device::kCpu && walk.even(&step)) {
      *column = {t.data(), t.dtype(), step};
    } else if (context.device == Device::kCpu && t.dtype() == DTypeOf<C>::value &&
               walk.contiguous()) {
      *here = static_cast<C*>(t.data());
    } else if (context.device == Device::kCpu && t.dtype() == DType::kFloat64 &&
               walk.contiguous()) {
      *table = static_cast<double*>(t.data());
    } else {
      *table = memory.take<double>(plan.parameter_rows() * plan.count);
    }
  }
  void store_gradient(const Plan& plan, const double* table, const Tensor& t,
                      Memory& memory) const {
    if (t && table && table != t.data()) memory.store(table, t, parameter_walk(plan, t));
  }
};

// `Named`: whose options they are.
template <class Method, class Named = Method>
void element_forward(ElementCall call, const typename Signature<Named>::Options& o,
                     const typename Method::Params& params, const Tensor& y,
                     const ConstTensor& residual, const Tensor& h, const StatsOut& stats,
                     const Context& context) {
  Operands operands = call.operands<Method>(/*down=*/false, context);
  operands.reads("x", call.x);
  operands.reads("weight", call.weight);
  operands.reads("bias", call.bias);
  operands.writes("out", y, {&call.x});
  if (residual) {
    operands.reads("residual", residual);
    operands.writes("h", h, {&call.x, &residual});
  }
  declare_stats(stats, operands);
  KeptPlan kept(operands.key());
  const bool known = kept && operands.check_addresses();
  call.check<Named>(o, known);
  if (!known) {
    check_device(context);
    check_output("out", y, call.x);
    if (residual) {
      check_like("residual", residual, call.x);
      check_output("h", h, call.x);
    }
    check_stats_out(stats, call.stats_shape);
    operands.check();
    if (call.x.size() == 0) return finish_empty(stats, context);
    kept.plan([&](Plan* plan) {
      const ConstTensor y_view = y, h_view = h;
      call.plan({&call.x, &y_view, &residual, residual ? &h_view : nullptr}, plan);
      // What is normalized lies where h lies.
      if (residual) std::swap(plan->access[kX], plan->access[kXIn]);
    });
  }
  const Plan& plan = *kept;
  on_device_of<Method>(context, call.x, [&] {
    CallMemory call_memory(context);
    Memory& memory = call_memory.get();
    with_compute(call.x.dtype(), [&]<class C>(std::type_identity<C>) {
      ForwardArgs<C> args{};
      args.x = residual ? h.data() : call.x.data();
      args.y = y.data();
      if (residual) {
        args.x_in = call.x.data();
        args.residual = residual.data();
      }
      // Ones and zeros along long rows would cost a third of what is in cache.
      if (call.weight || call.bias || context.device != Device::kCpu) {
        args.element_weight =
            call.load_parameter<C>(plan, call.weight, 1, call.weight_offset, context, memory);
        args.element_bias = call.load_parameter<C>(plan, call.bias, 0, 0, context, memory);
      }
      StatsTable table;
      const bool wanted = stats.mean || stats.rstd || stats.pooled;
      if (wanted && !columns_of(plan, stats, context, &args.columns)) {
        table = StatsTable(plan.outer * plan.cells, memory);
        args.mean = table.mean;
        args.var = table.var;
        args.rstd = table.rstd;
      }
      run_forward<Method, C>(plan, call.x.dtype(), args, params, context, memory);
      if (args.mean) write_stats(plan, table, stats, memory);
    });
  });
}

template <class Method, class Named = Method>
void element_backward(ElementCall call, const typename Signature<Named>::Options& o,
                      const typename Method::Params& params, const ConstTensor& dy,
                      const Gradients& g, const ConstTensor& dh, const ConstTensor& pooled,
                      const Context& context) {
  Operands operands = call.operands<Method>(/*down=*/true, context);
  operands.reads("x", call.x);
  operands.reads("dy", dy);
  operands.reads("dh", dh);
  operands.reads("weight", call.weight);
  operands.reads("stats.pooled", pooled);
  operands.writes("out", g.dx, {&call.x, &dy, &dh});
  operands.writes("dweight", g.dweight);
  operands.writes("dbias", g.dbias);
  KeptPlan kept(operands.key());
  const bool known = kept && operands.check_addresses();
  call.check<Named>(o, known);
  if (!known) {
    check_device(context);
    check_like("dy", dy, call.x);
    if (dh) check_like("dh", dh, call.x);
    check_output("out", g.dx, call.x);
    if (g.dweight) check_shape("dweight", g.dweight, call.parameter_shape);
    if (g.dbias) check_shape("dbias", g.dbias, call.parameter_shape);
    check_pooled(pooled, call.stats_shape);
    operands.check();
    if (call.x.size() == 0) return finish_empty(g, context);
    kept.plan([&](Plan* plan) {
      const ConstTensor dx_view = g.dx;
      call.plan({&call.x, &dy, &dx_view, &dh}, plan);
    });
  }
  const Plan& plan = *kept;
  on_device_of<Method>(context, call.x, [&] {
    CallMemory call_memory(context);
    Memory& memory = call_memory.get();
    with_compute(call.x.dtype(), [&]<class C>(std::type_identity<C>) {
      BackwardArgs<C> args{};
      args.x = call.x.data();
      args.dy = dy.data();
      args.dx = g.dx.data();
      args.dh = dh ? dh.data() : nullptr;
      // As forward does, where no mean is subtracted: else it is the kernels with weights that
      // leave nothing of equal gradients.
      const bool scaled = call.weight || g.dweight || g.dbias || dh || !Method::raw;
      if (scaled || context.device != Device::kCpu) {
        args.element_weight =
            call.load_parameter<C>(plan, call.weight, 1, call.weight_offset, context, memory);
      }
      if (g.dweight || g.dbias) {
        call.place_gradient(plan, g.dweight, context, memory, &args.dweight, &args.dweight_here,
                            &args.dweight_column);
        call.place_gradient(plan, g.dbias, context, memory, &args.dbias, &args.dbias_here,
                            &args.dbias_column);
      }
      const PooledValues forward(plan, pooled, memory);
      args.forward_mean = forward.mean;
      args.forward_var = forward.var;
      args.forward_step = forward.step;
      run_backward<Method, C>(plan, call.x.dtype(), args, params, context, memory);
      call.store_gradient(plan, args.dweight, g.dweight, memory);
      call.store_gradient(plan, args.dbias, g.dbias, memory);
    });
  });
}

}  // namespace

void layer_norm(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                const Tensor& y, const LayerNormOptions& o, const StatsOut& stats,
                const Context& context) {
  const cpu::RunningCall running(context);
  element_forward<LayerNorm>({x, weight, bias, o}, o, {o.eps}, y, o.residual, o.h, stats, context);
}

void layer_norm_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& weight,
                         const Gradients& gradients, const LayerNormOptions& o,
                         const ConstTensor& dh, const SavedStats& stats, const Context& context) {
  const cpu::RunningCall running(context);
  element_backward<LayerNorm>({x, weight, kAbsent, o}, o, {o.eps}, dy, gradients, dh, stats.pooled,
                              context);
}

void rms_norm(const ConstTensor& x, const ConstTensor& weight, const Tensor& y,
              const RMSNormOptions& o, const StatsOut& stats, const Context& context) {
  const cpu::RunningCall running(context);
  element_forward<RMSNorm>({x, weight, kAbsent, o}, o, {o.eps}, y, o.residual, o.h, stats, context);
}

void rms_norm_backward(const ConstTensor& dy, const ConstTensor& x, const ConstTensor& weight,
                       const Gradients& gradients, const RMSNormOptions& o, const ConstTensor& dh,
                       const SavedStats& stats, const Context& context) {
  const cpu::RunningCall running(context);
  element_backward<RMSNorm>({x, weight, kAbsent, o}, o, {o.eps}, dy, gradients, dh, stats.pooled,
                            context);
}

namespace {
LayerNormOptions within_groups(const ConstTensor& x, double eps) {
  LayerNormOptions o{.eps = eps};
  o.axes.count = x.ndim() - 2;
  std::iota(o.axes.values.begin(), o.axes.values.begin() + o.axes.count, 2);
  return o;
}
}  // namespace

void normalize_groups(const ConstTensor& x, const ConstTensor& weight, const ConstTensor& bias,
                      const Tensor& y, double eps, const StatsOut& stats, const Context& context) {
  const LayerNormOptions o = within_groups(x, eps);
  element_forward<LayerNorm>({x, weight, bias, o, /*parameters_along=*/1}, o, {eps}, y, kAbsent, {},
                             stats, context);
}

void normalize_groups_backward(const ConstTensor& dy, const ConstTensor& x,
                               const ConstTensor& weight, const Gradients& gradients, double eps,
                               const ConstTensor& pooled, const Context& context) {
  const LayerNormOptions o = within_groups(x, eps);
  element_backward<LayerNorm>({x, weight, kAbsent, o, /*parameters_along=*/1}, o, {eps}, dy,
                              gradients, kAbsent, pooled, context);
}

namespace {
// f(method, params) for the order of the norm. Squares of double may leave its own range:
// LpNormalize minds them.
template <class F>
void with_norm(const NormalizeOptions& o, DType dtype, F&& f) {
  if (o.ord == 2 && dtype != DType::kFloat64)
    return f(std::type_identity<Normalize>{}, Normalize::Params{o.eps});
  f(std::type_identity<LpNormalize>{}, LpNormalize::Params{o.eps, spread_of_norm(o.ord)});
}
}  // namespace

void normalize(const ConstTensor& x, const Tensor& y, const NormalizeOptions& o,
               const Context& context) {
  const cpu::RunningCall running(context);
  with_norm(o, x.dtype(),
            [&]<class Method>(std::type_identity<Method>, const typename Method::Params& p) {
              element_forward<Method, Normalize>({x, kAbsent, kAbsent, o}, o, p, y, kAbsent, {}, {},
                                                 context);
            });
}

void normalize_backward(const ConstTensor& dy, const ConstTensor& x, const Tensor& dx,
                        const NormalizeOptions& o, const Context& context) {
  const cpu::RunningCall running(context);
  with_norm(o, x.dtype(),
            [&]<class Method>(std::type_identity<Method>, const typename Method::Params& p) {
              element_backward<Method, Normalize>({x, kAbsent, kAbsent, o}, o, p, dy, {dx, {}, {}},
                                                  kAbsent, kAbsent, context);
            });
}

}  // namespace normcore
