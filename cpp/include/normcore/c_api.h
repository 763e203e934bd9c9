// The C interface: inference with every method, for programs in C or in any language that calls C.
// Plain structs, no ownership; memory is the caller's. All functions may run in many threads at
// once. The C++ headers say what each method computes.
//
// A call returns NORMCORE_OK, or a status with its message in normcore_last_error(), in the words
// of the C++ functions (y is `out`, None is null); arguments are checked before anything is
// written. A null tensor is one that is not given (weight 1, bias 0), null options are the
// defaults, a null context is the CPU with the threads of the process. Options other than the
// defaults begin with them:
//
//   normcore_layer_norm_options options = normcore_layer_norm_defaults();
//   options.eps = 1e-12;
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "normcore/export.h"

#if defined(__cplusplus)
extern "C" {
#endif

typedef enum normcore_status {
  NORMCORE_OK = 0,
  NORMCORE_VALUE_ERROR = 1,   // a shape, a size or a number
  NORMCORE_TYPE_ERROR = 2,    // an element type
  NORMCORE_DEVICE_ERROR = 3,  // of the CUDA runtime; outputs may be incomplete
  NORMCORE_OUT_OF_MEMORY = 4,
  NORMCORE_INTERNAL_ERROR = 5
} normcore_status;

enum { NORMCORE_FLOAT32 = 0, NORMCORE_FLOAT64 = 1, NORMCORE_BFLOAT16 = 2, NORMCORE_FLOAT16 = 3 };
enum { NORMCORE_CPU = 0, NORMCORE_CUDA = 1 };

// Sizes and strides in elements; without strides the last axis is the fastest and nothing lies
// between. At most 32 axes.
typedef struct normcore_tensor {
  void* data;
  int32_t dtype;
  int32_t ndim;
  const int64_t* shape;
  const int64_t* strides;
} normcore_tensor;
typedef struct normcore_const_tensor {
  const void* data;
  int32_t dtype;
  int32_t ndim;
  const int64_t* shape;
  const int64_t* strides;
} normcore_const_tensor;

// All zeros is the default. See Context in context.h.
typedef struct normcore_context {
  int32_t device;
  int32_t device_index;
  void* stream;
  int32_t threads;
  void* workspace;
  size_t workspace_bytes;
} normcore_context;

// Of the thread's last call that failed; never null. Valid until its next one that fails.
NORMCORE_API const char* normcore_last_error(void);
NORMCORE_API const char* normcore_version(void);
// "x86-64-v3" and the like; null where this CPU, or what NORMCORE_ISA asks for, is not supported.
// The string is the library's. To set it, "v3" will do; calls that run keep what they began with.
NORMCORE_API const char* normcore_get_isa(void);
NORMCORE_API normcore_status normcore_set_isa(const char* name);
NORMCORE_API int32_t normcore_get_num_threads(void);
// 1 to 1024. A call takes fewer where the system does not let it start so many.
NORMCORE_API normcore_status normcore_set_num_threads(int32_t n);

// ---- rows: axes are those of x that are normalized, negative ones from the end; none: the last

typedef struct normcore_layer_norm_options {
  const int32_t* axes;
  int32_t n_axes;
  double eps;  // 1e-5
  // Both or neither: h = x + residual is written and normalized; h may be x or the residual itself.
  const normcore_const_tensor* residual;
  const normcore_tensor* h;
} normcore_layer_norm_options;
NORMCORE_API normcore_layer_norm_options normcore_layer_norm_defaults(void);
NORMCORE_API normcore_status normcore_layer_norm(const normcore_const_tensor* x,
                                                 const normcore_const_tensor* weight,
                                                 const normcore_const_tensor* bias,
                                                 const normcore_tensor* y,
                                                 const normcore_layer_norm_options* options,
                                                 const normcore_context* context);

typedef struct normcore_rms_norm_options {
  const int32_t* axes;
  int32_t n_axes;
  double eps;  // 1e-6
  double weight_offset;
  const normcore_const_tensor* residual;
  const normcore_tensor* h;
} normcore_rms_norm_options;
NORMCORE_API normcore_rms_norm_options normcore_rms_norm_defaults(void);
NORMCORE_API normcore_status normcore_rms_norm(const normcore_const_tensor* x,
                                               const normcore_const_tensor* weight,
                                               const normcore_tensor* y,
                                               const normcore_rms_norm_options* options,
                                               const normcore_context* context);

typedef struct normcore_normalize_options {
  double ord;  // 2; or 1, or infinite
  const int32_t* axes;
  int32_t n_axes;
  double eps;  // 1e-12
} normcore_normalize_options;
NORMCORE_API normcore_normalize_options normcore_normalize_defaults(void);
NORMCORE_API normcore_status normcore_normalize(const normcore_const_tensor* x,
                                                const normcore_tensor* y,
                                                const normcore_normalize_options* options,
                                                const normcore_context* context);

// ---- channels: weight, bias and running statistics are (C,)

// Both running statistics or neither: then those of x. The spread is the variance; for batch renorm
// the standard deviation, for Lp and top-k batch norm the scale; mean-only batch norm has none.
typedef struct normcore_channel_options {
  const normcore_const_tensor* running_mean;
  const normcore_const_tensor* running_spread;
  double eps;            // 1e-5
  int32_t channel_axis;  // 1
} normcore_channel_options;
NORMCORE_API normcore_channel_options normcore_channel_defaults(void);

#include "normcore/c_channels.h"

// ---- weights

typedef struct normcore_weight_norm_options {
  int32_t axis;   // 0, kept
  int32_t whole;  // not 0: one norm of everything, whatever the axis
  double eps;     // 0
} normcore_weight_norm_options;
NORMCORE_API normcore_weight_norm_options normcore_weight_norm_defaults(void);
NORMCORE_API normcore_status normcore_weight_norm(const normcore_const_tensor* v,
                                                  const normcore_const_tensor* g,
                                                  const normcore_tensor* w,
                                                  const normcore_weight_norm_options* options,
                                                  const normcore_context* context);

typedef struct normcore_spectral_norm_options {
  int64_t n_power_iterations;  // 1
  int32_t axis;                // 0
  int32_t u_first;             // 0
  double eps;                  // 1e-12
  double bound;                // 0: none; else w is divided by max(1, sigma / bound)
} normcore_spectral_norm_options;
NORMCORE_API normcore_spectral_norm_options normcore_spectral_norm_defaults(void);
// u, v: the one that the first product needs, without iterations both. sigma may be null; a call on
// a device does not wait for it, and leaves NaN.
NORMCORE_API normcore_status normcore_spectral_norm(const normcore_const_tensor* weight,
                                                    const normcore_const_tensor* u,
                                                    const normcore_const_tensor* v,
                                                    const normcore_tensor* w, double* sigma,
                                                    const normcore_spectral_norm_options* options,
                                                    const normcore_context* context);

// ---- neighbourhoods

typedef struct normcore_divisive_norm_options {
  double exponent;       // 2
  double power;          // 1
  int32_t channel_axis;  // 1
} normcore_divisive_norm_options;
NORMCORE_API normcore_divisive_norm_options normcore_divisive_norm_defaults(void);
NORMCORE_API normcore_status normcore_divisive_norm(
    const normcore_const_tensor* x, const normcore_const_tensor* weights,
    const normcore_const_tensor* sigma, const normcore_const_tensor* gain, const normcore_tensor* y,
    const normcore_divisive_norm_options* options, const normcore_context* context);

typedef struct normcore_gdn_options {
  int32_t inverse;       // 0
  int32_t channel_axis;  // 1
  double alpha;          // 2
  double epsilon;        // 0.5
} normcore_gdn_options;
NORMCORE_API normcore_gdn_options normcore_gdn_defaults(void);
NORMCORE_API normcore_status normcore_gdn(const normcore_const_tensor* x,
                                          const normcore_const_tensor* beta,
                                          const normcore_const_tensor* gamma,
                                          const normcore_tensor* y,
                                          const normcore_gdn_options* options,
                                          const normcore_context* context);

typedef struct normcore_local_response_norm_options {
  double alpha;              // 1e-4
  double beta;               // 0.75
  double k;                  // 1
  int32_t across_space;      // 0: across the channels
  int32_t even_window_onnx;  // 0: even windows as torch has them
  int32_t channel_axis;      // 1
} normcore_local_response_norm_options;
NORMCORE_API normcore_local_response_norm_options normcore_local_response_norm_defaults(void);
NORMCORE_API normcore_status normcore_local_response_norm(
    const normcore_const_tensor* x, int64_t size, const normcore_tensor* y,
    const normcore_local_response_norm_options* options, const normcore_context* context);

// Odd sizes: one for all spatial axes, or one for each.
typedef struct normcore_local_divisive_norm_options {
  const int64_t* summation_window;
  const int64_t* suppression_window;
  int32_t n_summation;
  int32_t n_suppression;
  int32_t channel_axis;
} normcore_local_divisive_norm_options;
// There are no default windows: the options must be given.
NORMCORE_API normcore_status normcore_local_divisive_norm(
    const normcore_const_tensor* x, const normcore_const_tensor* sigma,
    const normcore_const_tensor* weight, const normcore_const_tensor* bias,
    const normcore_tensor* y, const normcore_local_divisive_norm_options* options,
    const normcore_context* context);

#if defined(__cplusplus)
}
#endif
