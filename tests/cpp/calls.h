// A call of every operation, on arrays small or large: for what must hold of all of them, whatever
// they compute.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "support.h"

namespace normcore::testing {

// What the calls read and write: x of (N, C, side, side), parameters, and results.
struct Operands {
  Index n, c, side;
  Array x, dy, residual, y, dx, h, axis_weight, weight, bias, ones, logits, matrix, pooled, given,
      cells, mask, gradient, second, axis_gradient, axis_second, square, one, u, v;

  Operands(DType t, Index samples, Index channels, Index side_in, double scale = 1)
      : n(samples),
        c(channels),
        side(side_in),
        x(t, {n, c, side, side}),
        dy(t, x.shape),
        residual(t, x.shape),
        y(t, x.shape),
        dx(t, x.shape),
        h(t, x.shape),
        axis_weight(statistics_dtype(t), {side}),
        weight(statistics_dtype(t), {c}),
        bias(statistics_dtype(t), {c}),
        ones(statistics_dtype(t), {c}),
        logits(statistics_dtype(t), {3}),
        matrix(statistics_dtype(t), {c, c}),
        pooled(DType::kFloat64, {c, 2}),
        given(DType::kFloat64, {c, 2}),
        cells(DType::kFloat64, {n, c, 2}),
        mask(statistics_dtype(t), {n, side, side}),
        gradient(statistics_dtype(t), {c}),
        second(statistics_dtype(t), {c}),
        axis_gradient(statistics_dtype(t), {side}),
        axis_second(statistics_dtype(t), {side}),
        square(statistics_dtype(t), {c, c}),
        one(statistics_dtype(t), {n, 1, side, side}),
        u(statistics_dtype(t), {n}),
        v(statistics_dtype(t), {c * side * side}) {
    Random random(1);
    for (Array* a : {&x, &dy, &residual}) a->fill(random, 0, scale);
    for (Array* a : {&axis_weight, &weight, &bias, &logits, &u}) a->fill(random, 0.25, 1);
    for (Array* a : {&ones, &gradient, &matrix, &mask}) {
      a->assign(std::vector<double>(std::size_t(a->size()), 1));
    }
  }
  // Everything that may have been written.
  std::vector<Array*> results() {
    return {&y,           &dx,     &h,        &pooled, &given,
            &cells,       &ones,   &gradient, &second, &axis_gradient,
            &axis_second, &square, &one,      &v};
  }
};

struct Operation {
  std::string name;
  std::function<void(Operands&, const Context&)> run;
};
inline void PrintTo(const Operation& o, std::ostream* out) { *out << o.name; }

inline std::vector<Operation> operations() {
  auto t = [](const Array& a) { return a.tensor(); };
  std::vector<Operation> all;
  auto add = [&](std::string name, std::function<void(Operands&, const Context&)> run) {
    all.push_back({std::move(name), std::move(run)});
  };
  add("layer_norm", [=](Operands& o, const Context& c) {
    LayerNormOptions options;
    options.residual = t(o.residual), options.h = t(o.h);
    layer_norm(t(o.x), t(o.axis_weight), t(o.axis_weight), t(o.y), options, {}, c);
  });
  add("layer_norm_backward", [=](Operands& o, const Context& c) {
    layer_norm_backward(t(o.dy), t(o.x), t(o.axis_weight),
                        {t(o.dx), t(o.axis_gradient), t(o.axis_second)}, {}, t(o.residual), {}, c);
  });
  add("layer_norm of a leading axis", [=](Operands& o, const Context& c) {
    layer_norm(t(o.x), t(o.weight), t(o.bias), t(o.y), {{1}}, {}, c);
  });
  add("rms_norm", [=](Operands& o, const Context& c) {
    rms_norm(t(o.x), t(o.axis_weight), t(o.y), {}, {}, c);
  });
  add("rms_norm_backward", [=](Operands& o, const Context& c) {
    rms_norm_backward(t(o.dy), t(o.x), t(o.axis_weight), {t(o.dx), t(o.axis_gradient), {}}, {}, {},
                      {}, c);
  });
  auto batch = [=](Operands& o) {
    BatchNormOptions options{t(o.ones), t(o.ones)};
    options.training = true;
    return options;
  };
  add("batch_norm", [=](Operands& o, const Context& c) {
    BatchNormOptions options{t(o.ones), t(o.gradient)};
    options.training = true;
    options.mask = t(o.mask);
    batch_norm(t(o.x), t(o.weight), t(o.bias), t(o.y), options, {.pooled = t(o.pooled)}, c);
  });
  add("batch_norm_backward", [=](Operands& o, const Context& c) {
    batch_norm_backward(t(o.dy), t(o.x), t(o.weight), {t(o.dx), t(o.gradient), t(o.second)},
                        batch(o), {}, c);
  });
  add("instance_norm", [=](Operands& o, const Context& c) {
    instance_norm(t(o.x), t(o.weight), t(o.bias), t(o.y), {t(o.ones), t(o.gradient)}, {}, c);
  });
  add("instance_norm_backward", [=](Operands& o, const Context& c) {
    instance_norm_backward(t(o.dy), t(o.x), t(o.weight), {t(o.dx), t(o.gradient), t(o.second)}, {},
                           {}, c);
  });
  add("group_norm", [=](Operands& o, const Context& c) {
    group_norm(t(o.x), 2, t(o.weight), t(o.bias), t(o.y), {}, {}, c);
  });
  add("group_norm_backward", [=](Operands& o, const Context& c) {
    group_norm_backward(t(o.dy), t(o.x), 2, t(o.weight), {t(o.dx), t(o.gradient), t(o.second)}, {},
                        {}, c);
  });
  add("batch_renorm and backward", [=](Operands& o, const Context& c) {
    BatchRenormOptions options;
    options.running_mean = t(o.gradient), options.running_std = t(o.ones);
    options.training = true;
    batch_renorm(t(o.x), t(o.weight), t(o.bias), t(o.y), options,
                 {.pooled = t(o.pooled), .given = t(o.given)}, c);
    batch_renorm_backward(t(o.dy), t(o.x), t(o.weight), {t(o.dx), {}, t(o.second)}, options,
                          {t(o.pooled), t(o.given)}, c);
  });
  add("batch_instance_norm", [=](Operands& o, const Context& c) {
    BatchInstanceNormOptions options;
    options.training = true;
    batch_instance_norm(t(o.x), t(o.ones), t(o.weight), t(o.bias), t(o.y), options, {}, c);
  });
  add("batch_instance_norm_backward", [=](Operands& o, const Context& c) {
    BatchInstanceNormOptions options;
    options.training = true;
    batch_instance_norm_backward(t(o.dy), t(o.x), t(o.ones), t(o.weight), {t(o.dx), {}, {}},
                                 t(o.gradient), options, {}, c);
  });
  add("switchable_norm", [=](Operands& o, const Context& c) {
    SwitchableNormOptions options;
    options.training = true;
    switchable_norm(t(o.x), t(o.logits), t(o.logits), t(o.weight), t(o.bias), t(o.y), options, {},
                    c);
  });
  add("mean_only_batch_norm", [=](Operands& o, const Context& c) {
    MeanOnlyBatchNormOptions options;
    options.training = true;
    mean_only_batch_norm(t(o.x), t(o.bias), t(o.y), options, {}, c);
    mean_only_batch_norm_backward(t(o.dy), t(o.x), {t(o.dx), {}, t(o.second)}, options, {}, c);
  });
  for (const double p : {1.0, 3.0}) {
    add("lp_batch_norm " + std::to_string(p), [=](Operands& o, const Context& c) {
      LpBatchNormOptions options{p};
      options.training = true;
      lp_batch_norm(t(o.x), t(o.weight), t(o.bias), t(o.y), options, {}, c);
      lp_batch_norm_backward(t(o.dy), t(o.x), t(o.weight), {t(o.dx), {}, t(o.second)}, options, {},
                             c);
    });
  }
  add("topk_batch_norm", [=](Operands& o, const Context& c) {
    TopKBatchNormOptions options{5};
    options.training = true;
    topk_batch_norm(t(o.x), t(o.weight), t(o.bias), t(o.y), options, {}, c);
    topk_batch_norm_backward(t(o.dy), t(o.x), t(o.weight), {t(o.dx), {}, t(o.second)}, options, {},
                             c);
  });
  add("normalize", [=](Operands& o, const Context& c) {
    normalize(t(o.x), t(o.y), {1, {1}}, c);
    normalize_backward(t(o.dy), t(o.x), t(o.dx), {2, {-1}}, c);
  });
  add("norm", [=](Operands& o, const Context& c) { norm(t(o.x), t(o.one), {2, Axes{1}}, c); });
  add("moments", [=](Operands& o, const Context& c) {
    moments(t(o.x), {{}, t(o.one), {}}, {Axes{1}, {}}, c);
  });
  add("weight_norm", [=](Operands& o, const Context& c) {
    weight_norm(t(o.x), t(o.u), t(o.y), {}, c);
    weight_norm_backward(t(o.dy), t(o.x), t(o.u), t(o.dx), {}, {}, c);
  });
  add("spectral_norm", [=](Operands& o, const Context& c) {
    spectral_norm(t(o.x), {t(o.u), {}}, {t(o.y), {}, t(o.v)}, {}, c);
    spectral_norm_backward(t(o.dy), t(o.x), 2, t(o.u), t(o.v), t(o.dx), {}, c);
  });
  add("power_method", [=](Operands& o, const Context& c) {
    power_method(t(o.matrix), {}, t(o.gradient), t(o.second), {3}, c);
  });
  add("divisive_norm", [=](Operands& o, const Context& c) {
    divisive_norm(t(o.x), t(o.matrix), t(o.ones), t(o.weight), t(o.y), {}, c);
  });
  add("divisive_norm_backward", [=](Operands& o, const Context& c) {
    divisive_norm_backward(t(o.dy), t(o.x), t(o.matrix), t(o.ones), t(o.weight),
                           {t(o.dx), t(o.square), t(o.gradient), t(o.second)}, {}, c);
  });
  add("gdn", [=](Operands& o, const Context& c) {
    gdn(t(o.x), t(o.ones), t(o.matrix), t(o.y), {.alpha = 1, .epsilon = 1}, c);
  });
  add("gdn_backward", [=](Operands& o, const Context& c) {
    double dalpha, depsilon;
    gdn_backward(t(o.dy), t(o.x), t(o.ones), t(o.matrix),
                 {t(o.dx), t(o.gradient), t(o.square), &dalpha, &depsilon}, {}, c);
  });
  for (const Across across : {Across::kChannels, Across::kSpace}) {
    const std::string where = across == Across::kSpace ? " across space" : "";
    add("local_response_norm" + where, [=](Operands& o, const Context& c) {
      LocalResponseNormOptions options;
      options.across = across;
      local_response_norm(t(o.x), 5, t(o.y), options, c);
      local_response_norm_backward(t(o.dy), t(o.x), 5, t(o.dx), options, c);
    });
  }
  add("local_divisive_norm", [=](Operands& o, const Context& c) {
    local_divisive_norm(t(o.x), t(o.ones), t(o.weight), t(o.bias), t(o.y), {{3, 3}, {5, 5}}, c);
  });
  add("local_divisive_norm_backward", [=](Operands& o, const Context& c) {
    local_divisive_norm_backward(t(o.dy), t(o.x), t(o.ones), t(o.weight),
                                 {t(o.dx), t(o.gradient), t(o.second), {}}, {{3, 3}, {5, 5}}, c);
  });
  return all;
}

}  // namespace normcore::testing
