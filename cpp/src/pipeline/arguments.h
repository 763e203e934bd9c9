// The arguments of the pipeline: what a call is about beside its geometry. Operations fill them;
// arrays are in the order of the plan's tables, and absent ones are null.
#pragma once

#include "normcore/context.h"
#include "plan/element_parameter.h"
#include "plan/pool.h"

namespace normcore {

// Beyond x: which elements count, and the samples of other processes.
struct Population {
  const void* mask = nullptr;  // weights of the elements, in the compute type: operand kMask
  Weighed own{};               // what a pool over all of x counts; with a mask, on the CPU alone
  double* weights = nullptr;   // out, with a mask: its sums by cell
  Exchange* exchange = nullptr;
  Counted* count = nullptr;  // out, with an exchange or a device's mask: what such a pool counts
  double least_count = 0;    // of those
};

// Numbers in the caller's memory, evenly spaced and of any dtype, where kernels of a device write
// themselves. data null: not wanted.
struct Column {
  void* data = nullptr;
  DType dtype = DType::kFloat64;
  Index stride = 1;
};
// Statistics of the pools in a plan's order.
struct StatisticsColumns {
  Column mean, var, rstd;
  Column pooled_mean, pooled_var;  // in float64

  NORMCORE_HD explicit operator bool() const { return mean.data || rstd.data || pooled_mean.data; }
};

template <class C>
struct ForwardArgs {
  const char* op = nullptr;    // the name of the call, where it is not that of the method
  const void* x;               // what is normalized: h where there is a residual
  void* y;                     // null where only the statistics are wanted
  const void* x_in = nullptr;  // with a residual: its two terms, and x is written first
  const void* residual = nullptr;

  const double* channel_weight = nullptr;  // [cells]
  const double* channel_bias = nullptr;
  ElementParameter<C> element_weight, element_bias;

  // [cells]: statistics of the first pool that are not computed from x.
  const double* given_mean = nullptr;
  const double* given_var = nullptr;

  // For who asks: statistics of the first pool that is computed (or of the only one),
  double* mean = nullptr;
  double* var = nullptr;
  double* rstd = nullptr;
  StatisticsColumns columns{};  // of a device, in place of these
  // and of the last pool of a method of several, for the backward call.
  double* last_mean = nullptr;
  double* last_var = nullptr;

  Population population{};

  static constexpr Index given_step = 1;
  static constexpr Index forward_step = 1;
  const double* saved_mean() const { return nullptr; }
  const double* saved_var() const { return nullptr; }
};

template <class C>
struct BackwardArgs {
  const void* x;
  const void* dy;
  void* dx;
  const void* dh = nullptr;  // gradient of what was normalized from elsewhere; elementwise only

  const double* channel_weight = nullptr;  // [cells]
  ElementParameter<C> element_weight{};    // set where the parameters are elementwise

  const double* given_mean = nullptr;  // [cells]
  const double* given_var = nullptr;
  Index given_step = 1;                  // from one to the next; as forward_step
  const double* forward_mean = nullptr;  // of the last pool, as the forward call wrote them
  const double* forward_var = nullptr;
  Index forward_step = 1;

  // Gradients of weight and bias, [cells] or [count]; null where nobody asks for either.
  double* dweight = nullptr;
  double* dbias = nullptr;
  // Instead of these, the caller's own arrays, where they are of the compute type and in order.
  C* dweight_here = nullptr;
  C* dbias_here = nullptr;
  Column dweight_column{}, dbias_column{};  // of a device
  // Of the method's own parameters, by channel: [kParameterCount, cells]; null likewise.
  double* dparams = nullptr;

  Population population{};

  bool wants_parameters() const {
    return dweight || dbias || dweight_here || dbias_here || dweight_column.data ||
           dbias_column.data;
  }
  const double* saved_mean() const { return forward_mean; }
  const double* saved_var() const { return forward_var; }
};

}  // namespace normcore
