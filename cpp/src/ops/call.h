// What the operations share: the way of statistics between the plan's tables and the caller's
// arrays, and calls on nothing.
#pragma once

#include <cmath>
#include <string>
#include <type_traits>

#include "cpu/running_call.h"
#include "normcore/errors.h"
#include "ops/checks.h"
#include "ops/signatures.h"
#include "pipeline/memory.h"
#include "pipeline/methods.h"
#include "plan/with_compute.h"

namespace normcore {

template <class Method, class F>
void on_device_of(const Context& context, const ConstTensor& x, F&& f) {
  on_device_of(kMethodName<Method>, context, x, f);
}

// The plan of a call whose cells are the kept positions of x; operands that are absent are null or
// empty. Along `parameter_axis` parameters of elements differ too.
inline void plan_of_cells(const ConstTensor& x, const bool (&reduced)[kMaxDims],
                          std::initializer_list<const ConstTensor*> operands, Plan* out,
                          int parameter_axis = -1) {
  Role roles[kMaxDims];
  for (int a = 0; a < x.ndim(); ++a) roles[a] = reduced[a] ? Role::space : Role::outer;
  PlanRequest request{.roles = roles, .affinity = Affinity::element, .pools = {Extent::cell}};
  request.parameter_axis = parameter_axis;
  int i = 0;
  for (const ConstTensor* t : operands) request.operands[i++] = t && *t ? t : nullptr;
  make_plan(request, out);
}

// An option, as its signature says: an integer, a float or what has no bounds.
template <class Option, class Options>
void check_option(const Option& option, const Options& o, bool training) {
  const auto value = o.*option.member;
  if constexpr (std::is_same_v<decltype(value), const Index>) {
    check_at_least(option.name, value, static_cast<Index>(option.bounds.least));
  } else if constexpr (std::is_same_v<decltype(value), const double>) {
    check_bounds(option.name, value, option.bounds, training);
  }
}
// All of them, of a method that knows no training.
template <class Method>
void check_options(const typename Signature<Method>::Options& o) {
  for_each_argument<Method>([&](const auto& argument) {
    if constexpr (std::remove_cvref_t<decltype(argument)>::kind == Kind::option) {
      check_option(argument, o, false);
    }
  });
}

// The norm of an order, which has been checked, as a spread around zero.
inline SpreadKind spread_of_norm(double ord) {
  return std::isinf(ord) ? SpreadKind{0, 1} : SpreadKind{ord, 0, true};
}

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

inline void write_pairs(const Plan& plan, const double* mean, const double* var,
                        const Tensor& pairs, Memory& memory) {
  const Tensor means = half_of_pairs(pairs, 0), vars = half_of_pairs(pairs, 1);
  memory.store(mean, means, statistics_walk(plan, means));
  memory.store(var, vars, statistics_walk(plan, vars));
}

inline void write_stats(const Plan& plan, const StatsTable& table, const StatsOut& out,
                        Memory& memory) {
  auto write = [&](const double* values, const Tensor& t) {
    if (t) memory.store(values, t, statistics_walk(plan, t));
  };
  write(table.mean, out.mean);
  write(table.rstd, out.rstd);
  if (out.pooled) write_pairs(plan, table.mean, table.var, out.pooled, memory);
}

// The caller's arrays as kernels of a device write them; false where those of the host or a table
// must do.
inline bool columns_of(const Plan& plan, const StatsOut& out, const Context& context,
                       StatisticsColumns* columns) {
  if (context.device == Device::kCpu) return false;
  bool even = true;
  auto column = [&](const Tensor& t, Column* c) {
    Index step;
    even = even && statistics_walk(plan, t).even(&step);
    if (even) *c = {t.data(), t.dtype(), step};
  };
  StatisticsColumns all;
  if (out.mean) column(out.mean, &all.mean);
  if (out.rstd) column(out.rstd, &all.rstd);
  if (out.pooled) {
    column(half_of_pairs(out.pooled, 0), &all.pooled_mean);
    column(half_of_pairs(out.pooled, 1), &all.pooled_var);
  }
  if (even) *columns = all;
  return even;
}

// Statistics that a forward call wrote, `step` apart, where they are if that serves.
struct PooledValues {
  const double* mean = nullptr;
  const double* var = nullptr;
  Index step = 1;
  PooledValues(const Plan& plan, const ConstTensor& pooled, Memory& memory) {
    if (!pooled) return;
    const ConstTensor means = half_of_pairs(pooled, 0), vars = half_of_pairs(pooled, 1);
    if (statistics_walk(plan, means).even(&step)) {
      mean = static_cast<const double*>(means.data());
      var = static_cast<const double*>(vars.data());
      return;
    }
    step = 1;
    mean = memory.load<double>(means, statistics_walk(plan, means));
    var = memory.load<double>(vars, statistics_walk(plan, vars));
  }
};

inline void check_pooled(const ConstTensor& pooled, const ExpectedShape& pools,
                         const char* name = "stats.pooled") {
  if (!pooled) return;
  if (pooled.dtype() != DType::kFloat64) {
    throw type_error(std::string(name) + " has dtype " + name_of(pooled.dtype()) +
                     ", expected float64");
  }
  ExpectedShape shape = pools;
  shape.append(2);
  shape.rule = "what the forward call returned";
  shape.has_axis = false;
  check_shape(name, pooled, shape);
}

inline void check_stats_out(const StatsOut& out, const ExpectedShape& pools) {
  if (!out.mean && !out.rstd && !out.pooled) return;
  ExpectedShape shape = pools;
  shape.rule = "one entry per pool of the method";
  if (out.mean) check_shape("stats.mean", out.mean, shape);
  if (out.rstd) check_shape("stats.rstd", out.rstd, shape);
  check_pooled(out.pooled, shape);
}

inline void declare_stats(const StatsOut& out, Operands& operands) {
  operands.writes("stats.mean", out.mean);
  operands.writes("stats.rstd", out.rstd);
  operands.writes("stats.pooled", out.pooled);
  operands.writes("stats.given", out.given);
}

inline void fill(const Tensor& t, double value, Memory& memory) {
  if (!t) return;
  Walk w;
  for (int i = 0; i < t.ndim(); ++i) w.append(t.shape(i), t.stride(i));
  memory.store(memory.take_filled<double>(w.count(), value), t, w);
}

// Nothing to normalize: gradients of parameters are sums over nothing.
inline void finish_empty(const Gradients& g, const Context& context) {
  CallMemory memory(context);
  fill(g.dweight, 0, memory.get());
  fill(g.dbias, 0, memory.get());
}
inline void finish_empty(const StatsOut& s, const Context& context) {
  CallMemory memory(context);
  for (const Tensor* t : {&s.mean, &s.rstd, &s.pooled, &s.given}) {
    fill(*t, std::nan(""), memory.get());
  }
}

}  // namespace normcore
