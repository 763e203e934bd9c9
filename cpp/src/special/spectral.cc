// Spectral normalization and the power method: checks, vectors into the matrix's order and back,
// iterations, and the pass that divides.
#include "normcore/spectral.h"

#include <cmath>
#include <limits>
#include <string>

#include "cpu/arrays.h"
#include "cpu/explain.h"
#include "cpu/running_call.h"
#include "cuda/spectral.h"
#include "normcore/errors.h"
#include "ops/checks.h"
#include "pipeline/memory.h"
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

// y = factor * x + left * right^T, of operands `from` and `to` of the plan; left may be null.
template <class C>
void scale_and_add(const special::Matrix<C>& matrix, const Plan& plan, int from, const void* x,
                   int to, void* y, double factor, const C* left, const C* right) {
  const special::Factor f(factor);
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

void check_bound(const std::optional<double>& bound) {
  if (!bound || (std::isfinite(*bound) && *bound > 0)) return;
  throw value_error("bound is " + std::to_string(*bound) + ", expected a finite number > 0");
}

// As special::factor_of takes it.
double number_of(const std::optional<double>& bound) { return bound.value_or(0); }

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
    for (int i = 0; !found && i < special::kRestarts; ++i) {
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
                   shape.w.data(), kY, out.weight.data(),
                   special::factor_of(sigma, number_of(o.bound)), nullptr, nullptr);
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
  const double bound = number_of(o.bound), factor = special::factor_of(sigma, bound);
  if (special::is_constant(sigma, bound)) {
    return scale_and_add<C>(matrix, plan, kDy, dw.data(), kDx, dweight.data(), factor, nullptr,
                            nullptr);
  }
  const double along = inner_product(matrix, plan, shape.w.data(), dw.data());
  const Side u_side = side_of(matrix, true), v_side = special::other(u_side);
  C* vectors[2];
  for (const Side s : {kRowSide, kColSide}) vectors[s] = scope.template take<C>(matrix.length(s));
  read_vector(shape, plan, true, u, vectors[u_side]);
  read_vector(shape, plan, false, v, vectors[v_side]);
  const double share = special::rank_one_factor(sigma, bound, along);
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
  for (int i = 0; !found && i < special::kRestarts; ++i) {
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

// ---- on a device

// The vectors of a call there, by sides of A.
template <class C>
class DeviceVectors {
 public:
  DeviceVectors(const Shape& shape, const Plan& plan, Memory& memory)
      : shape_(shape), plan_(plan), memory_(memory) {}

  Side side(bool is_u) const {
    return is_u == (plan_.layout == Layout::columns) ? kColSide : kRowSide;
  }
  Index length(bool is_u) const { return is_u ? shape_.out : shape_.rest; }
  const C* load(bool is_u, const ConstTensor& t) {
    return t ? memory_.load<C>(t, shape_.walk_of(plan_, is_u, t)) : nullptr;
  }
  // Where a result is made: its own memory, if that will do.
  C* place(bool is_u, const Tensor& t) {
    if (in_place(is_u, t)) return static_cast<C*>(t.data());
    return memory_.take<C>(length(is_u));
  }
  void store(bool is_u, const C* from, const Tensor& t) {
    if (!t || in_place(is_u, t)) return;
    const ConstTensor vector(from, {length(is_u)});
    memory_.store(memory_.load<double>(vector, vector_walk(vector)), t,
                  shape_.walk_of(plan_, is_u, t));
  }

 private:
  bool in_place(bool is_u, const Tensor& t) const {
    return t && t.dtype() == DTypeOf<C>::value && shape_.walk_of(plan_, is_u, t).contiguous();
  }
  const Shape& shape_;
  const Plan& plan_;
  Memory& memory_;
};

void store_number(const double* number, const Tensor& t, Memory& memory) {
  if (t) memory.store(number, t, Walk());
}
void fill(double value, const Tensor& t, Memory& memory) {
  if (!t || t.size() == 0) return;
  const Walk w = whole_walk(t);
  memory.store(memory.take_filled<double>(w.count(), value), t, w);
}

template <class C>
void spectral_norm_there(const Shape& shape, const SpectralNormVectors& start,
                         const SpectralNormOut& out, const SpectralNormOptions& o, Memory& memory) {
  Plan plan;
  shape.plan({&shape.w}, &plan);
  DeviceVectors<C> vectors(shape, plan, memory);
  const Side u_side = vectors.side(true), v_side = special::other(u_side);
  cuda::PowerCall<C> call{plan, shape.w.dtype(), shape.w.data()};
  call.start = o.u_first ? v_side : u_side;
  call.u_side = u_side;
  call.iterations = o.n_power_iterations;
  call.given[u_side] = vectors.load(true, start.u);
  call.given[v_side] = vectors.load(false, start.v);
  call.vector[u_side] = vectors.place(true, out.u);
  call.vector[v_side] = vectors.place(false, out.v);
  call.keep = true;
  call.eps = o.eps;
  call.bound = number_of(o.bound);
  call.between = &cpu::RunningCall::check;
  const cuda::PowerNumbers* numbers = cuda::power_iteration(call, memory);
  const ConstTensor w_out = out.weight;
  Plan apply;
  shape.plan({&shape.w, &w_out}, &apply);
  cuda::divide<C>(apply, shape.w.dtype(), shape.w.data(), out.weight.data(), numbers, memory);
  vectors.store(true, call.vector[u_side], out.u);
  vectors.store(false, call.vector[v_side], out.v);
  store_number(&numbers->sigma, out.sigma, memory);
}

template <class C>
void spectral_norm_backward_there(const Shape& shape, const ConstTensor& dw, const double* sigma,
                                  const ConstTensor& u, const ConstTensor& v, const Tensor& dweight,
                                  const SpectralNormOptions& o, Memory& memory) {
  const ConstTensor dweight_in = dweight;
  Plan plan;
  shape.plan({&shape.w, &dw, &dweight_in}, &plan);
  DeviceVectors<C> vectors(shape, plan, memory);
  const C* by_side[2];
  by_side[vectors.side(true)] = vectors.load(true, u);
  by_side[vectors.side(false)] = vectors.load(false, v);
  cuda::spectral_gradient<C>(plan, shape.w.dtype(), shape.w.data(), dw.data(), dweight.data(),
                             sigma, by_side, number_of(o.bound), memory);
}

template <class C>
void power_method_there(const Shape& shape, const ConstTensor& start, const Tensor& u,
                        const Tensor& v, const PowerMethodOptions& o, const PowerMethodNumbers& out,
                        Memory& memory) {
  Plan plan;
  shape.plan({&shape.w}, &plan);
  DeviceVectors<C> vectors(shape, plan, memory);
  const Side u_side = vectors.side(true), v_side = special::other(u_side);
  cuda::PowerCall<C> call{plan, shape.w.dtype(), shape.w.data()};
  call.start = call.u_side = u_side;
  call.iterations = o.n_iterations.value_or(o.max_iterations);
  call.given[u_side] = vectors.load(true, start);
  call.given[v_side] = nullptr;
  call.vector[u_side] = vectors.place(true, u);
  call.vector[v_side] = vectors.place(false, v);
  call.residual = true;
  call.tol = o.tol;
  call.exact = o.n_iterations.has_value();
  call.iterations_of_zeros = double(o.n_iterations.value_or(0));
  call.between = &cpu::RunningCall::check;
  const cuda::PowerNumbers* numbers = cuda::power_iteration(call, memory);
  vectors.store(true, call.vector[u_side], u);
  vectors.store(false, call.vector[v_side], v);
  store_number(&numbers->sigma, out.sigma, memory);
  store_number(&numbers->iterations, out.n_iterations, memory);
  store_number(&numbers->converged, out.converged, memory);
}

void check_number(const char* name, const ConstTensor& t) {
  ExpectedShape shape;
  shape.rule = "a number";
  if (t) check_shape(name, t, shape);
}

}  // namespace

double spectral_norm(const ConstTensor& weight, const SpectralNormVectors& start,
                     const SpectralNormOut& out, const SpectralNormOptions& o,
                     const Context& context) {
  const cpu::RunningCall running(context);
  check_device(context);
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
  check_number("out.sigma", out.sigma);
  check_output("out", out.weight, weight, "weight");
  Operands operands;
  operands.reads("weight", weight);
  operands.reads("u", start.u);
  operands.reads("v", start.v);
  operands.writes("out", out.weight, {&weight});
  operands.writes("out.u", out.u, {&start.u});
  operands.writes("out.v", out.v, {&start.v});
  operands.writes("out.sigma", out.sigma);
  operands.check();
  double sigma = 0;
  on_device_of("spectral_norm", context, weight, [&] {
    CallMemory call_memory(context);
    Memory& memory = call_memory.get();
    if (weight.size() == 0) {
      for (const Tensor* t : {&out.u, &out.v, &out.sigma}) fill(0, *t, memory);
      return;
    }
    with_compute(weight.dtype(), [&]<class C>(std::type_identity<C>) {
      if (context.device == Device::kCuda) {
        spectral_norm_there<C>(shape, start, out, o, memory);
        sigma = std::numeric_limits<double>::quiet_NaN();
      } else {
        sigma = run_spectral_norm<C>(shape, start, out, o, context);
        store_number(&sigma, out.sigma, memory);
      }
    });
  });
  return sigma;
}

namespace {

// Sigma is a number, or where it is absent an array of one.
void backward(const ConstTensor& dw, const ConstTensor& w, const std::optional<double>& sigma,
              const ConstTensor& sigma_array, const ConstTensor& u, const ConstTensor& v,
              const Tensor& dweight, const SpectralNormOptions& o, const Context& context) {
  const cpu::RunningCall running(context);
  check_device(context);
  const Shape shape("result.weight", w, o.axis);
  check_bound(o.bound);
  if (!u || !v) throw type_error("result.u and result.v are None, expected arrays");
  if (!sigma) {
    check_view("result.sigma", sigma_array);
    check_number("result.sigma", sigma_array);
  }
  shape.check_vectors("result.u", u, "result.v", v);
  check_like("dw", dw, w, "result.weight");
  check_output("out", dweight, dw, "dw");
  Operands operands;
  operands.reads("dw", dw);
  operands.reads("result.weight", w);
  operands.reads("result.sigma", sigma_array);
  operands.reads("result.u", u);
  operands.reads("result.v", v);
  operands.writes("out", dweight, {&dw, &w});
  operands.check();
  if (w.size() == 0) return;
  on_device_of("spectral_norm_backward", context, w, [&] {
    CallMemory call_memory(context);
    Memory& memory = call_memory.get();
    const double* number =
        sigma ? memory.take_filled<double>(1, *sigma) : memory.load<double>(sigma_array, Walk());
    with_compute(w.dtype(), [&]<class C>(std::type_identity<C>) {
      if (context.device == Device::kCuda) {
        spectral_norm_backward_there<C>(shape, dw, number, u, v, dweight, o, memory);
      } else {
        run_spectral_norm_backward<C>(shape, dw, *number, u, v, dweight, o, context);
      }
    });
  });
}

}  // namespace

void spectral_norm_backward(const ConstTensor& dw, const ConstTensor& w, double sigma,
                            const ConstTensor& u, const ConstTensor& v, const Tensor& dweight,
                            const SpectralNormOptions& o, const Context& context) {
  backward(dw, w, sigma, {}, u, v, dweight, o, context);
}
void spectral_norm_backward(const ConstTensor& dw, const ConstTensor& w, const ConstTensor& sigma,
                            const ConstTensor& u, const ConstTensor& v, const Tensor& dweight,
                            const SpectralNormOptions& o, const Context& context) {
  if (!sigma) throw type_error("result.sigma is None, expected a number");
  backward(dw, w, {}, sigma, u, v, dweight, o, context);
}

PowerMethodResult power_method(const ConstTensor& a, const ConstTensor& start, const Tensor& u,
                               const Tensor& v, const PowerMethodOptions& o, const Context& context,
                               const PowerMethodNumbers& numbers) {
  const cpu::RunningCall running(context);
  check_device(context);
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
  check_number("numbers.sigma", numbers.sigma);
  check_number("numbers.n_iterations", numbers.n_iterations);
  check_number("numbers.converged", numbers.converged);
  Operands operands;
  operands.reads("a", a);
  operands.reads("u", start);
  operands.writes("out.u", u, {&start});
  operands.writes("out.v", v);
  operands.writes("numbers.sigma", numbers.sigma);
  operands.writes("numbers.n_iterations", numbers.n_iterations);
  operands.writes("numbers.converged", numbers.converged);
  operands.check();
  PowerMethodResult result{0, o.n_iterations.value_or(0), true};
  on_device_of("power_method", context, a, [&] {
    CallMemory call_memory(context);
    Memory& memory = call_memory.get();
    auto report = [&] {
      fill(result.sigma, numbers.sigma, memory);
      fill(double(result.n_iterations), numbers.n_iterations, memory);
      fill(double(result.converged), numbers.converged, memory);
    };
    if (a.size() == 0) {
      fill(0, u, memory);
      fill(0, v, memory);
      return report();
    }
    with_compute(a.dtype(), [&]<class C>(std::type_identity<C>) {
      if (context.device == Device::kCuda) {
        power_method_there<C>(shape, start, u, v, o, numbers, memory);
        result = {std::numeric_limits<double>::quiet_NaN(), 0, false};
      } else {
        result = run_power_method<C>(shape, start, u, v, o, context);
        report();
      }
    });
  });
  return result;
}

}  // namespace normcore
