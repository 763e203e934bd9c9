// Means over windows of a plane: a small dense array of doubles, such as statistics per position.
#pragma once

#include <algorithm>

#include "cpu/dispatch.h"
#include "cpu/workspace.h"
#include "normcore/tensor.h"

namespace normcore {

// The axes of a plane, outermost first, each with the radius of its window (0: none).
struct PlaneAxes {
  int count = 0;
  Index size[kMaxDims], radius[kMaxDims];

  void append(Index n, Index r) {
    size[count] = n;
    radius[count++] = std::min(r, n - 1);
  }
};

// Replaces every element by the mean over its window, or what of it lies inside; transposed, by the
// sum of elements each divided by how many its own window has. `parallel(n, f)` calls f(0 .. n -
// 1).
template <class Parallel>
void window_means(double* plane, const PlaneAxes& axes, bool transposed, Parallel&& parallel) {
  // A strip of columns and its sums, in a core's own cache.
  constexpr Index kStripElements = Index(1) << 13;
  Index outer = 1, inner = 1;
  for (int d = 1; d < axes.count; ++d) inner *= axes.size[d];
  for (int d = 0; d < axes.count; ++d) {
    const Index n = axes.size[d], radius = axes.radius[d], window = 2 * radius + 1;
    if (radius > 0) {
      const Index fits = kStripElements / (n + 2 * radius) / 8 * 8;
      const Index width = std::min(std::max<Index>(fits, 8), inner);
      const Index strips = (inner + width - 1) / width;
      parallel(outer * strips, [=](Index task) {
        const Index first = task % strips * width, w = std::min(width, inner - first);
        double* block = plane + task / strips * n * inner + first;
        cpu::Workspace::Scope scope(cpu::Workspace::local());
        double* padded = scope.take_filled<double>((n + 2 * radius) * w, 0.0);
        double* sums = scope.take<double>(n * w);
        auto inside = [=](Index i) {
          return double(std::min(i + radius, n - 1) - std::max<Index>(i - radius, 0) + 1);
        };
        for (Index i = 0; i < n; ++i) {
          const double divisor = transposed ? inside(i) : 1;
          double* to = padded + (i + radius) * w;
          for (Index j = 0; j < w; ++j) to[j] = block[i * inner + j] / divisor;
        }
        cpu::kernels().f64.windows.sums(padded, sums, n * w, w, window);
        for (Index i = 0; i < n; ++i) {
          const double divisor = transposed ? 1 : inside(i);
          for (Index j = 0; j < w; ++j) block[i * inner + j] = sums[i * w + j] / divisor;
        }
      });
    }
    outer *= n;
    if (d + 1 < axes.count) inner /= axes.size[d + 1];
  }
}

}  // namespace normcore
