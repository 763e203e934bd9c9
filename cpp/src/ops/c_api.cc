// The C interface over the C++ one: structs become views and options, exceptions become a status
// and a message that the thread keeps.
#include "normcore/c_api.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "cpu/dispatch.h"
#include "normcore/normcore.h"
#include "ops/signatures.h"
#include "ops/view.h"

namespace normcore {
namespace {

// Of fixed size: there is no memory to ask for where memory has run out.
thread_local char last_error[1024] = "";

normcore_status failed(normcore_status status, const char* message) {
  std::snprintf(last_error, sizeof(last_error), "%s", message);
  return status;
}

// Runs f; nothing is thrown out of here.
template <class F>
normcore_status guarded(F&& f) noexcept {
  try {
    f();
    return NORMCORE_OK;
  } catch (const type_error& e) {
    return failed(NORMCORE_TYPE_ERROR, e.what());
  } catch (const std::invalid_argument& e) {
    return failed(NORMCORE_VALUE_ERROR, e.what());
  } catch (const device_error& e) {
    return failed(NORMCORE_DEVICE_ERROR, e.what());
  } catch (const std::bad_alloc&) {
    return failed(NORMCORE_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& e) {
    return failed(NORMCORE_INTERNAL_ERROR, e.what());
  } catch (...) {
    return failed(NORMCORE_INTERNAL_ERROR, "an error of unknown kind");
  }
}

[[noreturn]] void refuse(const char* name, const std::string& is_and_should_be) {
  throw value_error(std::string(name) + is_and_should_be);
}

// The view of a C tensor; none of a null one.
template <class View, class CTensor>
View view(const char* name, const CTensor* t) {
  if (!t) return {};
  if (t->dtype < NORMCORE_FLOAT32 || t->dtype > NORMCORE_FLOAT16) {
    throw type_error(std::string(name) + "->dtype is " + std::to_string(t->dtype) +
                     ", expected one of NORMCORE_FLOAT32 to NORMCORE_FLOAT16");
  }
  return make_view<View>({name, "->"}, t->data, static_cast<DType>(t->dtype), t->ndim, t->shape,
                         t->strides);
}
ConstTensor in(const char* name, const normcore_const_tensor* t) {
  return view<ConstTensor>(name, t);
}
ConstTensor required(const char* name, const normcore_const_tensor* t) {
  if (!t) refuse(name, " is null, expected a tensor");
  return in(name, t);
}
Tensor out(const char* name, const normcore_tensor* t) { return view<Tensor>(name, t); }
Tensor result(const char* name, const normcore_tensor* t) {
  if (!t) refuse(name, " is null, expected a tensor");
  return out(name, t);
}

// Axes or WindowSizes from n numbers.
template <class List, class T>
void fill(const char* name, const T* values, int n, List* list) {
  if (n < 0 || n >= kMaxDims) {
    refuse(name,
           " has " + std::to_string(n) + " values, expected 0 to " + std::to_string(kMaxDims - 1));
  }
  if (!values && n > 0) refuse(name, " is null, expected " + std::to_string(n) + " values");
  list->count = n;
  for (int i = 0; i < n; ++i) list->values[static_cast<std::size_t>(i)] = values[i];
}
Axes axes(const int32_t* values, int n) {
  Axes list{-1};
  if (n != 0) fill("axes", values, n, &list);
  return list;
}
WindowSizes window(const char* name, const int64_t* values, int n) {
  WindowSizes list{};
  fill(name, values, n, &list);
  return list;
}

Context context_of(const normcore_context* c) {
  Context context;
  if (!c) return context;
  if (c->device != NORMCORE_CPU && c->device != NORMCORE_CUDA) {
    refuse("context->device",
           " is " + std::to_string(c->device) + ", expected NORMCORE_CPU or NORMCORE_CUDA");
  }
  if (c->threads < 0) {
    refuse("context->threads", " is " + std::to_string(c->threads) + ", expected 0 or more");
  }
  context.device = c->device == NORMCORE_CUDA ? Device::kCuda : Device::kCpu;
  context.device_index = c->device_index;
  context.stream = c->stream;
  context.threads = c->threads;
  context.workspace = c->workspace;
  context.workspace_bytes = c->workspace_bytes;
  return context;
}

// Of a layer or rms norm.
template <class Options, class COptions>
Options row_options(const COptions& c) {
  Options o;
  o.axes = axes(c.axes, c.n_axes);
  o.eps = c.eps;
  if (!c.residual != !c.h) {
    refuse(c.residual ? "h" : "residual", std::string(" is null, expected a tensor: ") +
                                              (c.residual ? "residual" : "h") + " is given");
  }
  o.residual = in("residual", c.residual);
  o.h = out("h", c.h);
  return o;
}

void expect_none(const char* name, const normcore_const_tensor* t, const char* op) {
  if (t) refuse(name, std::string(" is given, expected none: ") + op + " has no use for it");
}

// What a function of the channel family is given beside y, the options and the context.
struct GivenArguments {
  const normcore_const_tensor* x;
  const normcore_const_tensor* weight;
  const normcore_const_tensor* bias;
  std::array<const normcore_const_tensor*, 2> own{};
  int64_t groups = 1;
};

// Of a method that can take both: without running statistics those of x.
template <class Method, class A, class Options>
void choose_statistics([[maybe_unused]] const A& a, [[maybe_unused]] Options& o) {
  if constexpr (A::kind == Kind::learns && requires { Signature<Method>::needs_buffers; }) {
    if (!kAlwaysGiven<Method>) o.*a.member = !o.running_mean;
  }
}

// Inference with a method, as its signature says; `o`: what the function has of options itself.
template <class Method>
normcore_status channel_norm(const GivenArguments& given, const normcore_tensor* y,
                             const normcore_channel_options* options,
                             const normcore_context* context,
                             typename Signature<Method>::Options o = {}) {
  return guarded([&] {
    const auto c = options ? *options : normcore_channel_defaults();
    const normcore_const_tensor* running[] = {c.running_mean, c.running_spread};
    const char* names[] = {"running_mean", "running_spread"};
    ConstTensor own[2];
    int buffers = 0, arrays = 0;
    for_each_argument<Method>([&](const auto& a) {
      using A = std::remove_cvref_t<decltype(a)>;
      if constexpr (A::kind == Kind::buffer) {
        o.*a.member = in(names[buffers], running[buffers]);
        ++buffers;
      }
      if constexpr (A::kind == Kind::own) {
        own[arrays] = required(a.name, given.own[static_cast<std::size_t>(arrays)]);
        ++arrays;
      }
      choose_statistics<Method>(a, o);
    });
    for (int i = buffers; i < 2; ++i) expect_none(names[i], running[i], Signature<Method>::title);
    if constexpr (requires { o.eps; }) o.eps = c.eps;
    o.channel_axis = c.channel_axis;
    const ConstTensor x = required("x", given.x), weight = in("weight", given.weight),
                      bias = in("bias", given.bias);
    call_forward<Method>({x, weight, bias, {&own[0], &own[1]}, given.groups}, result("y", y), o, {},
                         context_of(context));
  });
}

}  // namespace
}  // namespace normcore

using namespace normcore;

const char* normcore_last_error(void) { return last_error; }
const char* normcore_version(void) { return NORMCORE_VERSION; }

const char* normcore_get_isa(void) {
  const char* isa = nullptr;
  guarded([&] { isa = cpu::chosen_kernels().isa; });
  return isa;
}
normcore_status normcore_set_isa(const char* name) {
  return guarded([&] {
    if (!name) refuse("name", " is null, expected the name of an instruction set");
    set_isa(name);
  });
}
int32_t normcore_get_num_threads(void) { return get_num_threads(); }
normcore_status normcore_set_num_threads(int32_t n) {
  return guarded([&] { set_num_threads(n); });
}

// ---- rows

normcore_layer_norm_options normcore_layer_norm_defaults(void) {
  return {nullptr, 0, LayerNormOptions().eps, nullptr, nullptr};
}
normcore_status normcore_layer_norm(const normcore_const_tensor* x,
                                    const normcore_const_tensor* weight,
                                    const normcore_const_tensor* bias, const normcore_tensor* y,
                                    const normcore_layer_norm_options* options,
                                    const normcore_context* context) {
  return guarded([&] {
    const auto c = options ? *options : normcore_layer_norm_defaults();
    layer_norm(required("x", x), in("weight", weight), in("bias", bias), result("y", y),
               row_options<LayerNormOptions>(c), {}, context_of(context));
  });
}

normcore_rms_norm_options normcore_rms_norm_defaults(void) {
  return {nullptr, 0, RMSNormOptions().eps, RMSNormOptions().weight_offset, nullptr, nullptr};
}
normcore_status normcore_rms_norm(const normcore_const_tensor* x,
                                  const normcore_const_tensor* weight, const normcore_tensor* y,
                                  const normcore_rms_norm_options* options,
                                  const normcore_context* context) {
  return guarded([&] {
    const auto c = options ? *options : normcore_rms_norm_defaults();
    auto o = row_options<RMSNormOptions>(c);
    o.weight_offset = c.weight_offset;
    rms_norm(required("x", x), in("weight", weight), result("y", y), o, {}, context_of(context));
  });
}

normcore_normalize_options normcore_normalize_defaults(void) {
  return {NormalizeOptions().ord, nullptr, 0, NormalizeOptions().eps};
}
normcore_status normcore_normalize(const normcore_const_tensor* x, const normcore_tensor* y,
                                   const normcore_normalize_options* options,
                                   const normcore_context* context) {
  return guarded([&] {
    const auto c = options ? *options : normcore_normalize_defaults();
    normalize(required("x", x), result("y", y), {c.ord, axes(c.axes, c.n_axes), c.eps},
              context_of(context));
  });
}

// ---- channels

normcore_channel_options normcore_channel_defaults(void) {
  return {nullptr, nullptr, BatchNormOptions().eps, BatchNormOptions().channel_axis};
}
#include "ops/c_channels.inc"

// ---- weights

normcore_weight_norm_options normcore_weight_norm_defaults(void) {
  return {*WeightNormOptions().axis, 0, WeightNormOptions().eps};
}
normcore_status normcore_weight_norm(const normcore_const_tensor* v, const normcore_const_tensor* g,
                                     const normcore_tensor* w,
                                     const normcore_weight_norm_options* options,
                                     const normcore_context* context) {
  return guarded([&] {
    const auto c = options ? *options : normcore_weight_norm_defaults();
    WeightNormOptions o{c.axis, c.eps};
    if (c.whole) o.axis.reset();
    weight_norm(required("v", v), required("g", g), result("w", w), o, context_of(context));
  });
}

normcore_spectral_norm_options normcore_spectral_norm_defaults(void) {
  const SpectralNormOptions o;
  return {o.n_power_iterations, o.axis, o.u_first, o.eps, 0};
}
normcore_status normcore_spectral_norm(const normcore_const_tensor* weight,
                                       const normcore_const_tensor* u,
                                       const normcore_const_tensor* v, const normcore_tensor* w,
                                       double* sigma, const normcore_spectral_norm_options* options,
                                       const normcore_context* context) {
  return guarded([&] {
    const auto c = options ? *options : normcore_spectral_norm_defaults();
    SpectralNormOptions o{c.n_power_iterations, c.axis, c.eps, {}, c.u_first != 0};
    if (c.bound != 0) o.bound = c.bound;
    const double found = spectral_norm(required("weight", weight), {in("u", u), in("v", v)},
                                       {result("w", w), {}, {}}, o, context_of(context));
    if (sigma) *sigma = found;
  });
}

// ---- neighbourhoods

normcore_divisive_norm_options normcore_divisive_norm_defaults(void) {
  const DivisiveNormOptions o;
  return {o.exponent, o.power, o.channel_axis};
}
normcore_status normcore_divisive_norm(const normcore_const_tensor* x,
                                       const normcore_const_tensor* weights,
                                       const normcore_const_tensor* sigma,
                                       const normcore_const_tensor* gain, const normcore_tensor* y,
                                       const normcore_divisive_norm_options* options,
                                       const normcore_context* context) {
  return guarded([&] {
    const auto c = options ? *options : normcore_divisive_norm_defaults();
    divisive_norm(required("x", x), required("weights", weights), required("sigma", sigma),
                  in("gain", gain), result("y", y), {c.exponent, c.power, c.channel_axis},
                  context_of(context));
  });
}

normcore_gdn_options normcore_gdn_defaults(void) {
  const GDNOptions o;
  return {o.inverse, o.channel_axis, o.alpha, o.epsilon};
}
normcore_status normcore_gdn(const normcore_const_tensor* x, const normcore_const_tensor* beta,
                             const normcore_const_tensor* gamma, const normcore_tensor* y,
                             const normcore_gdn_options* options, const normcore_context* context) {
  return guarded([&] {
    const auto c = options ? *options : normcore_gdn_defaults();
    gdn(required("x", x), required("beta", beta), required("gamma", gamma), result("y", y),
        {c.inverse != 0, c.alpha, c.epsilon, c.channel_axis}, context_of(context));
  });
}

normcore_local_response_norm_options normcore_local_response_norm_defaults(void) {
  const LocalResponseNormOptions o;
  return {o.alpha, o.beta, o.k, 0, 0, o.channel_axis};
}
normcore_status normcore_local_response_norm(const normcore_const_tensor* x, int64_t size,
                                             const normcore_tensor* y,
                                             const normcore_local_response_norm_options* options,
                                             const normcore_context* context) {
  return guarded([&] {
    const auto c = options ? *options : normcore_local_response_norm_defaults();
    local_response_norm(
        required("x", x), size, result("y", y),
        {c.alpha, c.beta, c.k, c.across_space ? Across::kSpace : Across::kChannels,
         c.even_window_onnx ? EvenWindow::kOnnx : EvenWindow::kTorch, c.channel_axis},
        context_of(context));
  });
}

normcore_status normcore_local_divisive_norm(const normcore_const_tensor* x,
                                             const normcore_const_tensor* sigma,
                                             const normcore_const_tensor* weight,
                                             const normcore_const_tensor* bias,
                                             const normcore_tensor* y,
                                             const normcore_local_divisive_norm_options* options,
                                             const normcore_context* context) {
  return guarded([&] {
    if (!options) refuse("options", " is null, expected the sizes of both windows");
    const auto& c = *options;
    local_divisive_norm(
        required("x", x), required("sigma", sigma), in("weight", weight), in("bias", bias),
        result("y", y),
        {window("summation_window", c.summation_window, c.n_summation),
         window("suppression_window", c.suppression_window, c.n_suppression), c.channel_axis},
        context_of(context));
  });
}
