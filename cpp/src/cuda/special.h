// The operations of special/ on a device, behind their checks. The build without CUDA throws.
#pragma once

#include "normcore/local.h"
#include "special/mixing.h"
#include "special/response_formulas.h"

namespace normcore::cuda {

// before, after: of the window along each axis of x. dy is absent in forward.
void local_response(const ConstTensor& x, const ConstTensor& dy, const Tensor& out,
                    const Index* before, const Index* after, const ResponseFormula& formula,
                    const Context& context);

// Gradients in the caller's memory; absent ones are not computed. a and e, of one value, also lie
// on the device.
struct MixingTensors {
  Tensor weights, offset, gain, a, e;
  double sign_of_e = 1;
};
void mix_forward(const MixingCall& call, const Tensor& y, const Context& context);
void mix_backward(const MixingCall& call, const ConstTensor& dy, const Tensor& dx,
                  const MixingTensors& gradients, const Context& context);

struct LocalDivisiveCall {
  const ConstTensor &x, &dy;
  const Tensor& out;
  const ConstTensor &sigma, &weight, &bias;  // the last two may be absent
  int channel_axis;
  const Index *radius_a, *radius_b;         // per axis of x
  const LocalDivisiveGradients* gradients;  // of backward
};
void local_divisive(const LocalDivisiveCall& call, const Context& context);

}  // namespace normcore::cuda
