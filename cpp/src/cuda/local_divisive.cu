// Local divisive normalization on a device: the steps of special/local_divisive.cc, whose comment
// has the formulas. Statistics per position are tables of doubles, as many times smaller than x as
// there are channels; windows run over them along one axis after the other.
#include "cuda/special.cuh"
#include "cuda/special.h"
#include "special/divisive_formulas.h"
#include "special/numbers.h"

namespace normcore::cuda {
namespace {

struct Divisive : ChannelLayout {
  const double *sigma, *weight, *bias;
};

// Per position: mean over the channels less m, m and t; and what backward adds to them.
struct Planes {
  double *deviation, *m, *t, *slope, *shift;
};

// Calls f(channel, offsets of the position's elements) for the channels of a position, by one
// thread or, where channels are neighbours in memory, by a warp. `position` is -1 where there is
// none.
struct PositionLanes {
  Index position;
  int lane, lanes;

  __device__ explicit PositionLanes(const Divisive& d)
      : lane(d.last ? int(threadIdx.x) % 32 : 0), lanes(d.last ? 32 : 1) {
    position = my_index() / lanes;
    if (position >= d.pixels.count) position = -1;
  }
  __device__ double sum(double v) const {
    if (lanes == 1) return v;
    for (int k = 16; k > 0; k /= 2) v += __shfl_xor_sync(0xffffffffu, v, k);
    return v;
  }
};
Launch one_position_each(const Divisive& d) { return one_each(d.pixels.count * (d.last ? 32 : 1)); }

// The mean over the channels, twice, and the mean of squares around it.
template <class T>
__global__ void statistics_kernel(Divisive d, const T* x, Planes planes) {
  const PositionLanes mine(d);
  const Index n = mine.position, from = n < 0 ? 0 : d.pixels.at(0, n);
  const Index channels = n < 0 ? 0 : d.channels;
  double sum = 0;
  for (Index c = mine.lane; c < channels; c += mine.lanes) {
    sum += double(widen(x[from + c * d.step[0]]));
  }
  const double mean = mine.sum(sum) / double(d.channels);
  double squares = 0;
  for (Index c = mine.lane; c < channels; c += mine.lanes) {
    const double v = double(widen(x[from + c * d.step[0]])) - mean;
    squares += v * v;
  }
  squares = mine.sum(squares) / double(d.channels);
  if (n < 0 || mine.lane > 0) return;
  planes.deviation[n] = planes.m[n] = mean;
  planes.t[n] = squares;
}
__global__ void deviations_kernel(Planes planes, Index n) {
  const Index i = my_index();
  if (i >= n) return;
  const double d = planes.deviation[i] -= planes.m[i];
  planes.t[i] += d * d;
}

// What divides element (c, n), of x at `from`: in double, so that nothing needs a unit.
template <class T>
__device__ divisive::Divided<Numbers<double>> divided(const Divisive& d, const Planes& planes,
                                                      const T* x, Index from, Index c, Index n) {
  return {double(widen(x[from])) - planes.m[n], d.sigma[c], planes.t[n]};
}

template <class T>
__global__ void divide_kernel(Divisive d, IndexDivision by_inner, const T* x, T* y, Planes planes) {
  const Index i = my_index();
  if (i >= d.channels * d.pixels.count) return;
  const auto [c, n] = d.element(by_inner, i);
  const double value = divided(d, planes, x, d.at(0, c, n), c, n).y(d.weight[c], d.bias[c]);
  y[d.at(1, c, n)] = narrow_double<T>(value);
}

// Means over the channels of g r and of -1/2 g v r^3.
template <class T>
__global__ void position_sums_kernel(Divisive d, const T* x, const T* dy, Planes planes) {
  const PositionLanes mine(d);
  const Index n = mine.position, channels = n < 0 ? 0 : d.channels;
  const Index x_at = n < 0 ? 0 : d.pixels.at(0, n), dy_at = n < 0 ? 0 : d.pixels.at(1, n);
  double shift = 0, slope = 0;
  for (Index c = mine.lane; c < channels; c += mine.lanes) {
    const auto of_x = divided(d, planes, x, x_at + c * d.step[0], c, n);
    const double direct = of_x.direct(double(widen(dy[dy_at + c * d.step[1]])), d.weight[c]);
    shift += direct;
    slope += of_x.slope(direct);
  }
  shift = mine.sum(shift);
  slope = mine.sum(slope);
  if (n < 0 || mine.lane > 0) return;
  planes.shift[n] = shift / double(d.channels);
  planes.slope[n] = -0.5 * slope / double(d.channels);
}
// Gradients of sigma, weight and bias.
template <class T>
__global__ void channel_sums_kernel(Divisive d, ChannelSums sums, const T* x, const T* dy,
                                    Planes planes, double* partial) {
  sums.run<3>(partial, [&](Index c, Index n, double (&to)[3]) {
    const auto of_x = divided(d, planes, x, d.at(0, c, n), c, n);
    const double g = double(widen(dy[d.at(1, c, n)]));
    to[0] += of_x.dsigma(of_x.slope(of_x.direct(g, d.weight[c])));
    to[1] += of_x.dweight(g);
    to[2] += g;
  });
}
__global__ void shifts_kernel(Planes planes, Index n) {
  const Index i = my_index();
  if (i < n) planes.shift[i] += 2 * planes.slope[i] * planes.deviation[i];
}
template <class T>
__global__ void grad_kernel(Divisive d, IndexDivision by_inner, const T* x, const T* dy, T* dx,
                            Planes planes) {
  const Index i = my_index();
  if (i >= d.channels * d.pixels.count) return;
  const auto [c, n] = d.element(by_inner, i);
  const auto of_x = divided(d, planes, x, d.at(0, c, n), c, n);
  const double direct = of_x.direct(double(widen(dy[d.at(1, c, n)])), d.weight[c]);
  const double whole = direct + 2 * planes.slope[n] * of_x.u - planes.shift[n];
  dx[d.at(2, c, n)] = narrow_double<T>(whole);
}

}  // namespace

void local_divisive(const LocalDivisiveCall& call, const Context& context) {
  CallMemory of_call(context);
  auto& memory = static_cast<DeviceMemory&>(of_call.get());
  const bool backward = bool(call.dy);
  const ConstTensor out(call.out);
  const ConstTensor* const operands[] = {&call.x, backward ? &call.dy : &out,
                                         backward ? &out : nullptr};
  const Index channels = call.x.shape(call.channel_axis);
  // The windows of both kinds lie over the same positions: these axes are merged where neither is.
  Index either[kMaxDims];
  for (int a = 0; a < call.x.ndim(); ++a) either[a] = call.radius_a[a] | call.radius_b[a];
  const Divisive d{{operands, call.channel_axis, either, either},
                   per_channel(call.sigma, channels, 1, memory),
                   per_channel(call.weight, channels, 1, memory),
                   per_channel(call.bias, channels, 0, memory)};
  const Index n = d.pixels.count;
  const WindowAxes a(operands, call.channel_axis, call.radius_a, call.radius_a);
  const WindowAxes b(operands, call.channel_axis, call.radius_b, call.radius_b);
  double* spare = memory.take<double>(n);
  auto take = [&](bool wanted) { return wanted ? memory.take<double>(n) : nullptr; };
  Planes planes{take(true), take(true), take(true), take(backward), take(backward)};
  auto means = [&](const WindowAxes& axes, bool transposed, double** plane) {
    const Share share = transposed ? Share::kOfElement : Share::kOfSum;
    sum_windows(axes, /*mirrored=*/false, share, plane, &spare, memory.stream());
  };
  with_element_type(call.x.dtype(), [&]<class T>(T) {
    const T* x = static_cast<const T*>(call.x.data());
    T* to = static_cast<T*>(call.out.data());
    launch(one_position_each(d), memory.stream(), statistics_kernel<T>, d, x, planes);
    means(a, /*transposed=*/false, &planes.m);
    launch(one_each(n), memory.stream(), deviations_kernel, planes, n);
    means(b, /*transposed=*/false, &planes.t);
    if (!backward) {
      return launch(one_each(call.x.size()), memory.stream(), divide_kernel<T>, d, d.by_inner(n), x,
                    to, planes);
    }
    const T* dy = static_cast<const T*>(call.dy.data());
    launch(one_position_each(d), memory.stream(), position_sums_kernel<T>, d, x, dy, planes);
    const LocalDivisiveGradients& g = *call.gradients;
    if (g.dsigma || g.dweight || g.dbias) {
      const ChannelSums of_channels(channels, n, d.last);
      double* partial = memory.take<double>(of_channels.splits * 3 * channels);
      double* sums = memory.take<double>(3 * channels);
      launch(of_channels.launch_of(3), memory.stream(), channel_sums_kernel<T>, d, of_channels, x,
             dy, planes, partial);
      launch(one_each(3 * channels), memory.stream(), add_splits_kernel, partial,
             of_channels.splits, 3 * channels, sums);
      store_per_channel(sums, channels, g.dsigma, memory);
      store_per_channel(sums + channels, channels, g.dweight, memory);
      store_per_channel(sums + 2 * channels, channels, g.dbias, memory);
    }
    means(b, /*transposed=*/true, &planes.slope);
    launch(one_each(n), memory.stream(), shifts_kernel, planes, n);
    means(a, /*transposed=*/true, &planes.shift);
    launch(one_each(call.x.size()), memory.stream(), grad_kernel<T>, d, d.by_inner(n), x, dy, to,
           planes);
  });
}

}  // namespace normcore::cuda
