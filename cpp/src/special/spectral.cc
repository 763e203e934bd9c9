// Spectral normalization and the power method: checks, vectors into the matrix's order and back,
// iterations, and the pass that divides.
#include "normcore/spectral.h"

#include <cmath>
#include <string>

#include "cpu/arrays.h"
#include "cpu/explain.h"
#include "cpu/running_call.h"
#include "normcore/errors.h"
#include "ops/checks.h"
#include "plan/with_compute.h"
#include "special/power_iteration.h"

namespace normcore {
namespace {

using special::kColSide;
using special::kRowSide;
using special::Panel;
using special::Side;
using Scope = cpu::Workspace::Scope;

// A tensor as a matrix of `axis` by the rest.
struct Shape {
  const ConstTensor& w;
  int axis;
  Index out, rest;

  Shape(const char* name, const ConstTensor& weight, int axis_in) : w(weight) {
    check_view(name, w);
    if (w.ndim() == 0) {
      throw value_error(std::string(name) + " has shape (), expected at least one axis");
    }
    axis = check_axis("axis", axis_in, w.ndim());
    out = w.shape(axis);
    rest = 1;
    for (int a = 0; a < w.ndim(); ++a) rest *= a == axis ? 1 : w.shape(a);
  }

  template <bool kConst>
  void check_vectors(const char* u_name, const BasicTensor<kConst>& u, const char* v_name,
                     const BasicTensor<kConst>& v) const {
    auto check = [](const char* name, const BasicTensor<kConst>& t, Index n, const char* rule) {
      ExpectedShape shape;
      shape.append(n);
      shape.rule = rule;
      if (t) check_shape(name, t, shape);
    };
    check(u_name, u, out, "the matrix's rows");
    check(v_name, v, rest, "the matrix's columns");
  }

  void plan(std::initializer_list<const ConstTensor*> operands, Plan* plan) const {
    Role roles[kMaxDims];
    for (int a = 0; a < w.ndim(); ++a) roles[a] = a == axis ? Role::channel : Role::space;
    // A cell is a row of W.
    PlanRequest request{.roles = roles, .pools = {Extent::column}};
    request.set_operands(operands);
    make_plan(request, plan);
    plan->reason = "power iteration";
  }

  // The entries of v in the order of the plan.
  template <bool kConst>
  Walk walk_of_v(const Plan& plan, const BasicTensor<kConst>& v) const {
    Index stride[kMaxDims], next = v.stride(0);
    for (int a = w.ndim() - 1; a >= 0; --a) {
      stride[a] = next;
      if (a != axis) next *= w.shape(a);
    }
    Walk walk;
    for (int i = 0; i < plan.space_axis_count; ++i) {
      const int a = plan.space_axes[i];
      walk.append(w.shape(a), stride[a]);
    }
    return walk;
  }
  template <bool kConst>
  Walk walk_of(const Plan& plan, bool is_u, const BasicTensor<kConst>& t) const {
    return is_u ? vector_walk(t) : walk_of_v(plan, t);
  }
};

// Where u and v are in A, which may be W^T.
template <class C>
Side side_of(const special::Matrix<C>& matrix, bool is_u) {
  return is_u == matrix.transposed() ? kColSide : kRowSide;
}

template <class C>
void read_vector(const Shape& shape, const Plan& plan, bool is_u, const ConstTensor& t, C* to) {
  Scope scope(cpu::Workspace::local());
  read_array(t, shape.walk_of(plan, is_u, t), scope, to);
}
template <class C>
void write_vector(const Shape& shape, const Plan& plan, bool is_u, const C* from, Index n,
                  const Tensor& t) {
  if (!t) return;
  Scope scope(cpu::Workspace::local());
  double* wide = scope.take<double>(n);
  for (Index i = 0; i < n; ++i) wide[i] = double(from[i]);
  store_array(wide, t, shape.walk_of(plan, is_u, t), scope);
}

// factor as p * q, neither of which leaves float's range where the factor does.
struct Factor {
  double p = 1, q;
  explicit Factor(double factor) : q(factor) {
    for (; std::isfinite(q) && std::abs(q) > 0x1p100; q *= 0x1p-100) p *= 0x1p100;
  }
};

// y = factor * x + left * right^T, of operands `from` and `to` of the plan; left may be null.
template <class C>
void scale_and_add(const special::Matrix<C>& matrix, const Plan& plan, int from, const void* x,
                   int to, void* y, double factor, const C* left, const C* right) {
  const Factor f(factor);
  const bool gathered = !plan.access[from].direct || !plan.access[to].direct;
  // Backwards: the sweep before this one has just read the end.
  matrix.for_panels(matrix.cut(gathered), /*reverse=*/true, [&](const Panel& p, Index) {
    Scope scope(cpu::Workspace::local());
    const Index packed = gathered ? p.rn * p.cn : 0;
    void* scratch_x = scope.template take<C>(packed);
    void* scratch_y = scope.template take<C>(packed);
    const cpu::TileRange range = matrix.range(p);
    const cpu::Out out = matrix.tiles().out(to, y, range, scratch_y);
    matrix.kernels().matrix.add_rank_one(matrix.tiles().in(from, x, range, scratch_x), out, p.rn,
                                         p.cn, C(f.p), C(f.q), left ? left + p.r0 : nullptr,
                                         right ? right + p.c0 : nullptr);
    matrix.tiles().commit(to, y, range, out);
  });
}

// <w, dw>.
template <class C>
double inner_product(const special::Matrix<C>& matrix, const Plan& plan, const void* w,
                     const void* dw) {
  const bool gathered = !plan.access[kX].direct || !plan.access[kDy].direct;
  auto cut = matrix.cut(gathered);
  Scope scope(cpu::Workspace::local());
  double* parts = scope.take<double>(cut.count);
  matrix.for_panels(cut, /*reverse=*/false, [&](const Panel& p, Index number) {
    Scope inner(cpu::Workspace::local());
    const Index packed = gathered ? p.rn * p.cn : 0;
    void* scratch_w = inner.template take<C>(packed);
    void* scratch_dw = inner.template take<C>(packed);
    const C* zeros = inner.template take_filled<C>(p.rn, 0);
    const C* ones = inner.template take_filled<C>(p.rn, 1);
    double* products = inner.template take<double>(p.rn);
    double* sums = inner.template take<double>(p.rn);
    const cpu::TileRange range = matrix.range(p);
    matrix.kernels().sums[cpu::kRows](matrix.tiles().in(kX, w, range, scratch_w),
                                      matrix.tiles().in(kDy, dw, range, scratch_dw), p.rn, p.cn,
                                      {zeros, ones}, products, sums);
    parts[number] = 0;
    for (Index r = 0; r < p.rn; ++r) parts[number] += products[r];
  });
  double sum = 0;
  for (Index i = 0; i < cut.count; ++i) sum += parts[i];
  return sum;
}

// What the weight is divided by: sigma, or max(1, sigma / bound).
double factor_of(double sigma, const std::optional<double>& bound) {
  if (bound) return sigma > *bound ? *bound / sigma : 1;
  return sigma == 0 ? 0 : 1 / sigma;
}

void check_bound(const std::optional<double>& bound) {
  if (!bound || (std::isfinite(*bound) && *bound > 0)) return;
  throw value_error("bound is " + std::to_string(*bound) + ", expected a finite number > 0");
}

constexpr int kRestarts = 3;

template <class C>
double run_spectral_norm(const Shape& shape, const SpectralNormVectors& start,
                         const SpectralNormOut& out, const SpectralNormOptions& o,
                         const Context& context) {
  Plan plan;
  shape.plan({&shape.w}, &plan);
  const special::Matrix<C> matrix(plan, shape.w.dtype(), context.threads);
  explain("spectral_norm", plan, matrix.threads());
  Scope scope(cpu::Workspace::local());
  const Side u_side = side_of(matrix, true), v_side = special::other(u_side);
  special::PowerIteration<C> power(matrix, shape.w.data(), o.u_first ? v_side : u_side, scope);
  auto read = [&] {
    if (start.u) read_vector(shape, plan, true, start.u, power.vector(u_side));
    if (start.v) read_vector(shape, plan, false, start.v, power.vector(v_side));
  };
  read();
  double sigma = 0;
  if (o.n_power_iterations == 0) {
    power.evaluate(v_side);
    sigma = power.sigma();
  } else {
    bool found = power.run({o.n_power_iterations}, o.eps);
    for (int i = 0; !found && i < kRestarts; ++i) {
      power.set_pseudo_random(o.u_first ? v_side : u_side, std::uint64_t(i));
      found = power.run({o.n_power_iterations}, o.eps);
    }
    if (found) {
      sigma = power.sigma();
    } else {
      // Zeros: the vectors stay what they were, for the weight that comes after this one.
      power.set_pseudo_random(u_side, 0);
      power.set_pseudo_random(v_side, 1);
      read();
    }
  }
  // A plan of its own: `out` may lie otherwise in memory.
  const ConstTensor w_out = out.weight;
  Plan apply;
  shape.plan({&shape.w, &w_out}, &apply);
  scale_and_add<C>(special::Matrix<C>(apply, shape.w.dtype(), matrix.threads()), apply, kX,
                   shape.w.data(), kY, out.weight.data(), factor_of(sigma, o.bound), nullptr,
                   nullptr);
  write_vector(shape, plan, true, power.vector(u_side), shape.out, out.u);
  write_vector(shape, plan, false, power.vector(v_side), shape.rest, out.v);
  return sigma;
}

template <class C>
void run_spectral_norm_backward(const Shape& shape, const ConstTensor& dw, double sigma,
                                const ConstTensor& u, const ConstTensor& v, const Tensor& dweight,
                                const SpectralNormOptions& o, const Context& context) {
  const ConstTensor dweight_in = dweight;
  Plan plan;
  shape.plan({&shape.w, &dw, &dweight_in}, &plan);
  const special::Matrix<C> matrix(plan, shape.w.dtype(), context.threads);
  explain("spectral_norm_backward", plan, matrix.threads());
  Scope scope(cpu::Workspace::local());
  const double factor = factor_of(sigma, o.bound);
  if (sigma == 0 || (o.bound && sigma <= *o.bound)) {
    return scale_and_add<C>(matrix, plan, kDy, dw.data(), kDx, dweight.data(), factor, nullptr,
                            nullptr);
  }
  const double along = inner_product(matrix, plan, shape.w.data(), dw.data());
  const Side u_side = side_of(matrix, true), v_side = special::other(u_side);
  C* vectors[2];
  for (const Side s : {kRowSide, kColSide}) vectors[s] = scope.template take<C>(matrix.length(s));
  read_vector(shape, plan, true, u, vectors[u_side]);
  read_vector(shape, plan, false, v, vectors[v_side]);
  const double share = -factor * along / o.bound.value_or(1);
  for (Index i = 0; i < matrix.length(kRowSide); ++i) {
    vectors[kRowSide][i] = C(share * double(vectors[kRowSide][i]));
  }
  scale_and_add<C>(matrix, plan, kDy, dw.data(), kDx, dweight.data(), factor, vectors[kRowSide],
                   vectors[kColSide]);
}

template <class C>
PowerMethodResult run_power_method(const Shape& shape, const ConstTensor& start, const Tensor& u,
                                   const Tensor& v, const PowerMethodOptions& o,
                                   const Context& context) {
  Plan plan;
  shape.plan({&shape.w}, &plan);
  const special::Matrix<C> matrix(plan, shape.w.dtype(), context.threads);
  explain("power_method", plan, matrix.threads());
  Scope scope(cpu::Workspace::local());
  const Side u_side = side_of(matrix, true), v_side = special::other(u_side);
  special::PowerIteration<C> power(matrix, shape.w.data(), u_side, scope);
  typename special::PowerIteration<C>::Goal goal{o.max_iterations, /*residual=*/true, o.tol};
  if (o.n_iterations) {
    goal.most = *o.n_iterations;
    goal.tol = -1;
  }
  PowerMethodResult result{0, o.n_iterations.value_or(0), true};
  bool found = false;
  if (start) {
    read_vector(shape, plan, true, start, power.vector(u_side));
    found = power.run(goal, 0);
  }
  for (int i = 0; !found && i < kRestarts; ++i) {
    power.set_pseudo_random(u_side, std::uint64_t(i));
    found = power.run(goal, 0);
  }
  if (found) {
    const bool converged = power.residual() <= o.tol * power.sigma();
    result = {power.sigma(), power.iterations(), converged};
  } else {
    // Zeros, of which any vectors are the singular ones.
    power.set_pseudo_random(u_side, 0);
    power.set_pseudo_random(v_side, 1);
  }
  write_vector(shape, plan, true, power.vector(u_side), shape.out, u);
  write_vector(shape, plan, false, power.vector(v_side), shape.rest, v);
  return result;
}

}  // namespace

double spectral_norm(const ConstTensor& weight, const SpectralNormVectors& start,
                     const SpectralNormOut& out, const SpectralNormOptions& o,
                     const Context& context) {
  const cpu::RunningCall running(context);
  check_on_cpu("spectral_norm", context);
  const Shape shape("weight", weight, o.axis);
  check_at_least("n_power_iterations", o.n_power_iterations, Index(0));
  check_at_least("eps", o.eps, 0.0);
  check_bound(o.bound);
  const bool none = o.n_power_iterations == 0;
  if (!start.u && (none || !o.u_first)) throw type_error("u is None, expected an array");
  if (!start.v && (none || o.u_first)) {
    throw value_error("v is None, expected an array where " +
                      std::string(none ? "n_power_iterations is 0" : "iterations start from it"));
  }
  shape.check_vectors("u", start.u, "v", start.v);
  shape.check_vectors("out.u", out.u, "out.v", out.v);
  check_output("out", out.weight, weight, "weight");
  Operands operands;
  operands.reads("weight", weight);
  operands.reads("u", start.u);
  operands.reads("v", start.v);
  operands.writes("out", out.weight, {&weight});
  operands.writes("out.u", out.u, {&start.u});
  operands.writes("out.v", out.v, {&start.v});
  operands.check();
  if (weight.size() == 0) {
    fill_array(0, out.u);
    fill_array(0, out.v);
    return 0;
  }
  double sigma = 0;
  with_compute(weight.dtype(), [&]<class C>(std::type_identity<C>) {
    sigma = run_spectral_norm<C>(shape, start, out, o, context);
  });
  return sigma;
}

void spectral_norm_backward(const ConstTensor& dw, const ConstTensor& w, double sigma,
                            const ConstTensor& u, const ConstTensor& v, const Tensor& dweight,
                            const SpectralNormOptions& o, const Context& context) {
  const cpu::RunningCall running(context);
  check_on_cpu("spectral_norm_backward", context);
  const Shape shape("result.weight", w, o.axis);
  check_bound(o.bound);
  if (!u || !v) throw type_error("result.u and result.v are None, expected arrays");
  shape.check_vectors("result.u", u, "result.v", v);
  check_like("dw", dw, w, "result.weight");
  check_output("out", dweight, dw, "dw");
  Operands operands;
  operands.reads("dw", dw);
  operands.reads("result.weight", w);
  operands.reads("result.u", u);
  operands.reads("result.v", v);
  operands.writes("out", dweight, {&dw, &w});
  operands.check();
  if (w.size() == 0) return;
  with_compute(w.dtype(), [&]<class C>(std::type_identity<C>) {
    run_spectral_norm_backward<C>(shape, dw, sigma, u, v, dweight, o, context);
  });
}

PowerMethodResult power_method(const ConstTensor& a, const ConstTensor& start, const Tensor& u,
                               const Tensor& v, const PowerMethodOptions& o,
                               const Context& context) {
  const cpu::RunningCall running(context);
  check_on_cpu("power_method", context);
  check_view("a", a);
  if (a.ndim() != 2) {
    throw value_error("a has shape " + shape_text(a) + ", expected two axes");
  }
  const Shape shape("a", a, 0);
  if (o.n_iterations) check_at_least("n_iterations", *o.n_iterations, Index(1));
  check_at_least("max_iterations", o.max_iterations, Index(1));
  check_at_least("tol", o.tol, 0.0);
  shape.check_vectors("u", start, "v", ConstTensor());
  shape.check_vectors("out.u", u, "out.v", v);
  Operands operands;
  operands.reads("a", a);
  operands.reads("u", start);
  operands.writes("out.u", u, {&start});
  operands.writes("out.v", v);
  operands.check();
  if (a.size() == 0) {
    fill_array(0, u);
    fill_array(0, v);
    return {0, o.n_iterations.value_or(0), true};
  }
  PowerMethodResult result{};
  with_compute(a.dtype(), [&]<class C>(std::type_identity<C>) {
    result = run_power_method<C>(shape, start, u, v, o, context);
  });
  return result;
}

}  // namespace normcore
