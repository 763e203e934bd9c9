// Every method of the library as calls on a cell's arguments.
#include "methods.h"

#include <cstdlib>
#include <cstring>

namespace normcore::bench {
namespace {

template <class O>
O by_channel(const Arguments& a) {
  O o;
  o.channel_axis = a.channel_axis;
  return o;
}
// Of the methods with a running mean and scale, whatever the latter's name.
template <class O>
O running(const Arguments& a) {
  O o{a.running_mean, a.running_scale, a.training};
  o.channel_axis = a.channel_axis;
  return o;
}
BatchNormOptions batch_norm_options(const Arguments& a) {
  auto o = running<BatchNormOptions>(a);
  o.mask = a.mask;
  return o;
}
MeanOnlyBatchNormOptions mean_only_options(const Arguments& a) {
  MeanOnlyBatchNormOptions o{a.running_mean, a.training};
  o.channel_axis = a.channel_axis;
  return o;
}
LpBatchNormOptions lp_options(const Arguments& a) {
  LpBatchNormOptions o{a.cell.p, a.running_mean, a.running_scale, a.training};
  o.channel_axis = a.channel_axis;
  return o;
}
TopKBatchNormOptions topk_options(const Arguments& a) {
  TopKBatchNormOptions o{a.cell.k, a.running_mean, a.running_scale, a.training};
  o.channel_axis = a.channel_axis;
  return o;
}
LocalDivisiveNormOptions divisive_options(const Arguments& a) {
  return {{a.cell.summation_window}, {a.cell.suppression_window}, a.channel_axis};
}
Index iterations(const Arguments& a) { return std::atoi(a.cell.variant); }

const Method kMethods[] = {
    {"layer_norm", Saved::rows,
     [](const Arguments& a, const StatsOut& stats) {
       layer_norm(a.x, a.weight, a.bias, a.out, {{a.cell.axis}}, stats, a.context);
     },
     [](const Arguments& a) {
       layer_norm_backward(a.dy, a.x, a.weight, a.gradients(), {{a.cell.axis}}, {}, a.pooled,
                           a.context);
     }},
    {"rms_norm", Saved::rows,
     [](const Arguments& a, const StatsOut& stats) {
       rms_norm(a.x, a.weight, a.out, {{a.cell.axis}}, stats, a.context);
     },
     [](const Arguments& a) {
       rms_norm_backward(a.dy, a.x, a.weight, {a.out, a.dweight, {}}, {{a.cell.axis}}, {}, a.pooled,
                         a.context);
     }},
    {"batch_norm", Saved::channels,
     [](const Arguments& a, const StatsOut& stats) {
       batch_norm(a.x, a.weight, a.bias, a.out, batch_norm_options(a), stats, a.context);
     },
     [](const Arguments& a) {
       batch_norm_backward(a.dy, a.x, a.weight, a.gradients(), batch_norm_options(a), a.saved(),
                           a.context);
     }},
    {"instance_norm", Saved::instances,
     [](const Arguments& a, const StatsOut& stats) {
       instance_norm(a.x, a.weight, a.bias, a.out, by_channel<InstanceNormOptions>(a), stats,
                     a.context);
     },
     [](const Arguments& a) {
       instance_norm_backward(a.dy, a.x, a.weight, a.gradients(),
                              by_channel<InstanceNormOptions>(a), a.saved(), a.context);
     }},
    {"group_norm", Saved::groups,
     [](const Arguments& a, const StatsOut& stats) {
       group_norm(a.x, a.cell.groups, a.weight, a.bias, a.out, by_channel<GroupNormOptions>(a),
                  stats, a.context);
     },
     [](const Arguments& a) {
       group_norm_backward(a.dy, a.x, a.cell.groups, a.weight, a.gradients(),
                           by_channel<GroupNormOptions>(a), a.saved(), a.context);
     }},
    {"batch_renorm", Saved::channels,
     [](const Arguments& a, const StatsOut& stats) {
       batch_renorm(a.x, a.weight, a.bias, a.out, running<BatchRenormOptions>(a), stats, a.context);
     },
     [](const Arguments& a) {
       batch_renorm_backward(a.dy, a.x, a.weight, a.gradients(), running<BatchRenormOptions>(a),
                             a.saved(), a.context);
     }},
    {"batch_instance_norm", Saved::instances,
     [](const Arguments& a, const StatsOut& stats) {
       batch_instance_norm(a.x, a.rho, a.weight, a.bias, a.out,
                           running<BatchInstanceNormOptions>(a), stats, a.context);
     },
     [](const Arguments& a) {
       batch_instance_norm_backward(a.dy, a.x, a.rho, a.weight, a.gradients(), a.drho,
                                    running<BatchInstanceNormOptions>(a), a.saved(), a.context);
     }},
    {"switchable_norm", Saved::instances,
     [](const Arguments& a, const StatsOut& stats) {
       switchable_norm(a.x, a.mean_logits, a.var_logits, a.weight, a.bias, a.out,
                       running<BatchInstanceNormOptions>(a), stats, a.context);
     },
     [](const Arguments& a) {
       switchable_norm_backward(a.dy, a.x, a.mean_logits, a.var_logits, a.weight, a.gradients(),
                                a.dmean_logits, a.dvar_logits, running<BatchInstanceNormOptions>(a),
                                a.saved(), a.context);
     }},
    {"mean_only_batch_norm", Saved::channels,
     [](const Arguments& a, const StatsOut& stats) {
       mean_only_batch_norm(a.x, a.bias, a.out, mean_only_options(a), stats, a.context);
     },
     [](const Arguments& a) {
       mean_only_batch_norm_backward(a.dy, a.x, {a.out, {}, a.dbias}, mean_only_options(a),
                                     a.saved(), a.context);
     }},
    {"lp_batch_norm", Saved::channels,
     [](const Arguments& a, const StatsOut& stats) {
       lp_batch_norm(a.x, a.weight, a.bias, a.out, lp_options(a), stats, a.context);
     },
     [](const Arguments& a) {
       lp_batch_norm_backward(a.dy, a.x, a.weight, a.gradients(), lp_options(a), a.saved(),
                              a.context);
     }},
    {"topk_batch_norm", Saved::channels,
     [](const Arguments& a, const StatsOut& stats) {
       topk_batch_norm(a.x, a.weight, a.bias, a.out, topk_options(a), stats, a.context);
     },
     [](const Arguments& a) {
       topk_batch_norm_backward(a.dy, a.x, a.weight, a.gradients(), topk_options(a), a.saved(),
                                a.context);
     }},
    {"gdn", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       gdn(a.x, a.weight, a.mixing, a.out, {false, 2, 0.5, a.channel_axis}, a.context);
     },
     [](const Arguments& a) {
       double dalpha, depsilon;
       gdn_backward(a.dy, a.x, a.weight, a.mixing,
                    {a.out, a.dweight, a.dmixing, &dalpha, &depsilon},
                    {false, 2, 0.5, a.channel_axis}, a.context);
     }},
    {"divisive_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       divisive_norm(a.x, a.mixing, a.weight, a.bias, a.out, {2, 1, a.channel_axis}, a.context);
     },
     [](const Arguments& a) {
       divisive_norm_backward(a.dy, a.x, a.mixing, a.weight, a.bias,
                              {a.out, a.dmixing, a.dweight, a.dbias}, {2, 1, a.channel_axis},
                              a.context);
     }},
    {"weight_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       weight_norm(a.x, a.weight, a.out, {a.cell.axis}, a.context);
     },
     [](const Arguments& a) {
       weight_norm_backward(a.dy, a.x, a.weight, a.out, a.dweight, {a.cell.axis}, a.context);
     }},
    {"normalize", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       normalize(a.x, a.out, {2, {a.cell.axis}}, a.context);
     },
     [](const Arguments& a) {
       normalize_backward(a.dy, a.x, a.out, {2, {a.cell.axis}}, a.context);
     }},
    {"spectral_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       SpectralNormOptions o;
       o.n_power_iterations = iterations(a);
       o.axis = a.cell.axis;
       spectral_norm(a.x, {a.weight, {}}, {a.out, {}, {}}, o, a.context);
     },
     [](const Arguments& a) {
       // Any vectors will do: u that of the channels, v a row of x.
       ConstTensor row(a.x.data(), a.x.dtype(), 1);
       row.set_dim(0, a.x.shape(1), a.x.stride(1));
       SpectralNormOptions o;
       o.axis = a.cell.axis;
       spectral_norm_backward(a.dy, a.x, 2, a.weight, row, a.out, o, a.context);
     }},
    {"local_response_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       local_response_norm(a.x, a.cell.size, a.out, {.channel_axis = a.channel_axis}, a.context);
     },
     [](const Arguments& a) {
       local_response_norm_backward(a.dy, a.x, a.cell.size, a.out, {.channel_axis = a.channel_axis},
                                    a.context);
     }},
    {"local_divisive_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       local_divisive_norm(a.x, a.rho, a.weight, a.bias, a.out, divisive_options(a), a.context);
     },
     [](const Arguments& a) {
       local_divisive_norm_backward(a.dy, a.x, a.rho, a.weight, {a.out, a.drho, a.dweight, a.dbias},
                                    divisive_options(a), a.context);
     }},
    {"norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       norm(a.x, a.reduced, {.axes = Axes{a.cell.axis}}, a.context);
     },
     nullptr},
    {"moments", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       moments(a.x, {{}, a.reduced, a.reduced_too}, {.axes = Axes{a.cell.axis}}, a.context);
     },
     nullptr},
    {"power_method", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       power_method(a.x, {}, a.left, a.right, {.n_iterations = iterations(a)}, a.context);
     },
     nullptr},
};

}  // namespace

const Method& method_of(const Cell& cell) {
  for (const Method& m : kMethods) {
    if (!std::strcmp(m.name, cell.op)) return m;
  }
  throw value_error(std::string("bench/shapes.json: no method is called ") + cell.op);
}

}  // namespace normcore::bench
