// Local response normalization on a device. Windows along the channels: by tiles
// (local_response.cuh). Anything else, in general form: tables of sums in double, along one axis
// after the other.
#include "cuda/local_response.cuh"
#include "cuda/special.h"

namespace normcore::cuda {
namespace {

// ---- in general

template <class T>
__global__ void squares_kernel(WindowAxes axes, const T* x, double* squares) {
  const Index i = my_index();
  if (i >= axes.count) return;
  const double v = double(widen(x[axes.at(0, i)]));
  squares[i] = v * v;
}
// Of the divisor of an element, by its window's sum.
__device__ response::Powers<Numbers<double>> powers_of(double sum, const ResponseFormula& f) {
  return response_powers(response::divisor<Numbers<double>>(sum, f.scale, f.k), f.beta);
}
template <class T>
__global__ void response_kernel(WindowAxes axes, const T* x, T* y, const double* sums,
                                ResponseFormula f) {
  const Index i = my_index();
  if (i >= axes.count) return;
  const double v = double(widen(x[axes.at(0, i)]));
  y[axes.at(1, i)] = narrow_double<T>(v * powers_of(sums[i], f).power);
}
// What a window's elements get back: dy x d^(-beta-1).
template <class T>
__global__ void terms_kernel(WindowAxes axes, const T* x, const T* dy, const double* sums,
                             double* terms, ResponseFormula f) {
  const Index i = my_index();
  if (i >= axes.count) return;
  const double v = double(widen(x[axes.at(0, i)])), g = double(widen(dy[axes.at(1, i)]));
  terms[i] = response::terms<Numbers<double>>(g, v, powers_of(sums[i], f)).shared;
}
template <class T>
__global__ void response_grad_kernel(WindowAxes axes, const T* x, const T* dy, T* dx,
                                     const double* sums, const double* terms, ResponseFormula f) {
  const Index i = my_index();
  if (i >= axes.count) return;
  const double v = double(widen(x[axes.at(0, i)])), g = double(widen(dy[axes.at(1, i)]));
  const double direct = g * powers_of(sums[i], f).power;
  const double whole = response::grad<Numbers<double>>(direct, v, 2 * f.beta * f.scale, terms[i]);
  dx[axes.at(2, i)] = narrow_double<T>(whole);
}

template <class T>
void run_general(const WindowAxes& axes, const T* x, const T* dy, T* out, const ResponseFormula& f,
                 DeviceMemory& memory) {
  const cudaStream_t stream = memory.stream();
  double* sums = memory.take<double>(axes.count);
  double* spare = memory.take<double>(axes.count);
  launch(one_each(axes.count), stream, squares_kernel<T>, axes, x, sums);
  sum_windows(axes, /*mirrored=*/false, Share::kNone, &sums, &spare, stream);
  if (!dy) {
    return launch(one_each(axes.count), stream, response_kernel<T>, axes, x, out, sums, f);
  }
  double* terms = memory.take<double>(axes.count);
  launch(one_each(axes.count), stream, terms_kernel<T>, axes, x, dy, sums, terms, f);
  sum_windows(axes, /*mirrored=*/true, Share::kNone, &terms, &spare, stream);
  launch(one_each(axes.count), stream, response_grad_kernel<T>, axes, x, dy, out, sums, terms, f);
}

// ---- along the channels

constexpr int kTileBytes = kSharedBytes - 3 * kPixels * int(sizeof(Index));

// Whether the tile serves; where it does, it is launched.
template <class T>
bool run_channels(const ConstTensor* const (&operands)[3], int axis, Index before, Index after,
                  bool overwrites, const T* x, const T* dy, T* out, const ResponseFormula& f,
                  cudaStream_t stream) {
  using C = Compute<T>;
  if (sizeof(C) == 4 && f.limit < 0) return false;
  const Index channels = operands[0]->shape(axis);
  ChannelTile g{{operands, axis, nullptr, nullptr},
                channels,
                std::min(before, channels - 1),
                std::min(after, channels - 1)};
  const bool backward = dy != nullptr;
  // Rows of kPitch elements: x with its surroundings; in backward terms and what is direct too.
  const Index halo = g.before + g.after, row = kPitch * Index(sizeof(C));
  const Index wide_row = kPitch * Index(sizeof(double));
  auto bytes = [&](Index segment) {
    const Index t = std::min(channels, segment + (backward ? halo : 0));
    const Index s = std::min(channels, t + halo);
    return s * row + (backward ? t * (row + wide_row) : 0);
  };
  while (g.segment > 1 && bytes(g.segment) > kTileBytes) g.segment = ceil_div(g.segment, 2);
  if (bytes(g.segment) > kTileBytes) return false;
  // Beyond that blocks would mostly compute what others do; over x they would read what others
  // have written.
  if (g.segment < channels && (overwrites || g.segment < 2 * halo)) return false;
  const Launch l{ceil_div(g.pixels.count, Index(kPixels)), kBlock,
                 int(bytes(g.segment)) + 3 * kPixels * int(sizeof(Index)), 1,
                 ceil_div(channels, g.segment)};
  auto start = [&]<bool kBackward>() {
    if (g.last) {
      launch(l, stream, channels_kernel<T, kBackward, true>, g, x, dy, out, f);
    } else {
      launch(l, stream, channels_kernel<T, kBackward, false>, g, x, dy, out, f);
    }
  };
  backward ? start.template operator()<true>() : start.template operator()<false>();
  return true;
}

}  // namespace

void local_response(const ConstTensor& x, const ConstTensor& dy, const Tensor& out,
                    const Index* before, const Index* after, const ResponseFormula& f,
                    const Context& context) {
  CallMemory of_call(context);
  auto& memory = static_cast<DeviceMemory&>(of_call.get());
  const ConstTensor result(out);
  const ConstTensor* const operands[] = {&x, dy ? &dy : &result, dy ? &result : nullptr};
  int windows = 0, axis = -1;
  for (int a = 0; a < x.ndim(); ++a) {
    if (before[a] + after[a] == 0) continue;
    ++windows;
    axis = a;
  }
  const bool overwrites = out.data() == x.data() || (dy && out.data() == dy.data());
  with_element_type(x.dtype(), [&]<class T>(T) {
    const T* px = static_cast<const T*>(x.data());
    const T* pdy = dy ? static_cast<const T*>(dy.data()) : nullptr;
    T* to = static_cast<T*>(out.data());
    if (windows == 1 && run_channels(operands, axis, before[axis], after[axis], overwrites, px, pdy,
                                     to, f, memory.stream())) {
      return;
    }
    run_general(WindowAxes(operands, -1, before, after), px, pdy, to, f, memory);
  });
}

}  // namespace normcore::cuda
