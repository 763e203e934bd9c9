// Every method of the library as calls on a cell's arguments: those over channels by their
// signatures, which is all that a new one needs here.
#include "methods.h"

#include <cstdlib>
#include <cstring>

namespace normcore::bench {
namespace {

Index whole(const Arguments& a, const char* option) { return Index(a.cell.option(option).value()); }
LocalDivisiveNormOptions divisive_options(const Arguments& a) {
  return {{whole(a, "summation_window")}, {whole(a, "suppression_window")}, a.channel_axis};
}
Index iterations(const Arguments& a) { return std::atoi(a.cell.variant); }

// ---- written out: of rows, of weights, and what has no statistics

const Method kWritten[] = {
    {"layer_norm", Saved::rows,
     [](const Arguments& a, const StatsOut& stats) {
       layer_norm(a.x, a.weight, a.bias, a.out, {{a.axis}}, stats, a.context);
     },
     [](const Arguments& a) {
       layer_norm_backward(a.dy, a.x, a.weight, a.gradients(), {{a.axis}}, {}, a.pooled, a.context);
     }},
    {"rms_norm", Saved::rows,
     [](const Arguments& a, const StatsOut& stats) {
       rms_norm(a.x, a.weight, a.out, {{a.axis}}, stats, a.context);
     },
     [](const Arguments& a) {
       rms_norm_backward(a.dy, a.x, a.weight, {a.out, a.dweight, {}}, {{a.axis}}, {}, a.pooled,
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
       weight_norm(a.x, a.weight, a.out, {a.axis}, a.context);
     },
     [](const Arguments& a) {
       weight_norm_backward(a.dy, a.x, a.weight, a.out, a.dweight, {a.axis}, a.context);
     }},
    {"normalize", Saved::none,
     [](const Arguments& a, const StatsOut&) { normalize(a.x, a.out, {2, {a.axis}}, a.context); },
     [](const Arguments& a) { normalize_backward(a.dy, a.x, a.out, {2, {a.axis}}, a.context); }},
    {"spectral_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       SpectralNormOptions o;
       o.n_power_iterations = iterations(a);
       o.axis = a.axis;
       spectral_norm(a.x, {a.weight, {}}, {a.out, {}, {}}, o, a.context);
     },
     [](const Arguments& a) {
       // Any vectors will do: u that of the channels, v a row of x.
       ConstTensor row(a.x.data(), a.x.dtype(), 1);
       row.set_dim(0, a.x.shape(1), a.x.stride(1));
       SpectralNormOptions o;
       o.axis = a.axis;
       spectral_norm_backward(a.dy, a.x, 2, a.weight, row, a.out, o, a.context);
     }},
    {"local_response_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       local_response_norm(a.x, whole(a, "size"), a.out, {.channel_axis = a.channel_axis},
                           a.context);
     },
     [](const Arguments& a) {
       local_response_norm_backward(a.dy, a.x, whole(a, "size"), a.out,
                                    {.channel_axis = a.channel_axis}, a.context);
     }},
    {"local_divisive_norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       local_divisive_norm(a.x, a.own[0], a.weight, a.bias, a.out, divisive_options(a), a.context);
     },
     [](const Arguments& a) {
       local_divisive_norm_backward(a.dy, a.x, a.own[0], a.weight,
                                    {a.out, a.down[0], a.dweight, a.dbias}, divisive_options(a),
                                    a.context);
     }},
    {"norm", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       norm(a.x, a.reduced, {.axes = Axes{a.axis}}, a.context);
     },
     nullptr},
    {"moments", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       moments(a.x, {{}, a.reduced, a.reduced_too}, {.axes = Axes{a.axis}}, a.context);
     },
     nullptr},
    {"power_method", Saved::none,
     [](const Arguments& a, const StatsOut&) {
       power_method(a.x, {}, a.left, a.right, {.n_iterations = iterations(a)}, a.context);
     },
     nullptr},
};

// ---- over channels, as their signatures say

template <class M>
using OptionsOf = typename Signature<M>::Options;

// Those of the cell, by name. Running buffers go with a variant: training or evaluation.
template <class M>
void set_options(Arguments& a) {
  OptionsOf<M> o;
  for_each_argument<M>([&](const auto& argument) {
    using A = std::remove_cvref_t<decltype(argument)>;
    if constexpr (A::kind == Kind::buffer) {
      const bool mean = argument.follows == Follows::mean;
      if (*a.cell.variant) o.*argument.member = mean ? a.running_mean : a.running_scale;
    } else if constexpr (A::kind == Kind::mask) {
      o.*argument.member = a.mask;
    } else if constexpr (A::kind == Kind::learns || A::kind == Kind::option) {
      auto& field = o.*argument.member;
      using T = std::remove_reference_t<decltype(field)>;
      if (const auto value = a.cell.option(argument.name)) field = static_cast<T>(*value);
    }
  });
  o.channel_axis = a.channel_axis;
  a.options = o;
}
template <class M>
const OptionsOf<M>& options(const Arguments& a) {
  return *std::any_cast<OptionsOf<M>>(&a.options);
}

template <class M>
void forward(const Arguments& a, const StatsOut& stats) {
  const ConstTensor x = a.x, weight = a.weight, bias = a.bias;
  call_forward<M>({x, weight, bias, {&a.own[0], &a.own[1]}, a.groups}, a.out, options<M>(a), stats,
                  a.context);
}
template <class M>
void backward(const Arguments& a) {
  const ConstTensor x = a.x, weight = a.weight, bias = a.bias;
  const Gradients gradients{a.out, has<M>(Kind::weight) ? a.dweight : Tensor(),
                            has<M>(Kind::bias) ? a.dbias : Tensor()};
  call_backward<M>(a.dy, {x, weight, bias, {&a.own[0], &a.own[1]}, a.groups}, gradients,
                   {&a.down[0], &a.down[1]}, options<M>(a), /*dh=*/{}, a.saved(), a.context);
}

template <class M>
void add(std::vector<Method>& all) {
  if constexpr (Signature<M>::family == Family::channels) {
    constexpr Pool pool = kStatsOf<M>;
    Method m{Signature<M>::name,
             pool == Pool::batch   ? Saved::channels
             : pool == Pool::group ? Saved::groups
                                   : Saved::instances,
             &forward<M>, &backward<M>, &set_options<M>};
    std::size_t i = 0;
    for_each_argument<M>([&](const auto& argument) {
      if constexpr (requires { argument.shape; }) m.own[i++] = argument.shape;
    });
    all.push_back(m);
  }
}

const std::vector<Method>& methods() {
  static const std::vector<Method> all = [] {
    std::vector<Method> made(std::begin(kWritten), std::end(kWritten));
#define NORMCORE_METHOD(name, type) add<type>(made);
#include "normcore/methods.def"
#undef NORMCORE_METHOD
    return made;
  }();
  return all;
}

}  // namespace

const Method& method_of(const Cell& cell) {
  for (const Method& m : methods()) {
    if (!std::strcmp(m.name, cell.op)) return m;
  }
  throw value_error(std::string("bench/shapes.json: no method is called ") + cell.op);
}

}  // namespace normcore::bench
