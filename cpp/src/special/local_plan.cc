#include "special/local_plan.h"

#include <algorithm>

#include "plan/plan.h"

namespace normcore {
namespace {

// Lanes from which on a window across rows is better than one along the run.
constexpr Index kManyLanes = 64;

bool continues(const WindowAxis& outer, const WindowAxis& inner) {
  for (int i = 0; i < WindowAxis::kOperands; ++i) {
    if (outer.stride[i] != inner.stride[i] * inner.size) return false;
  }
  return true;
}

}  // namespace

void make_window_plan(const ConstTensor* const (&operands)[WindowAxis::kOperands],
                      const Index* before, const Index* after, WindowPlan* p) {
  const ConstTensor& x = *operands[0];
  int order[kMaxDims];
  const int ndim = sort_axes(x, order);
  WindowAxis axes[kMaxDims];
  int n = 0;
  for (int i = 0; i < ndim; ++i) {
    const int a = order[i];
    WindowAxis axis{
        x.shape(a), std::min(before[a], x.shape(a) - 1), std::min(after[a], x.shape(a) - 1), {}};
    for (int o = 0; o < WindowAxis::kOperands; ++o) {
      axis.stride[o] = operands[o] ? operands[o]->stride(a) : x.stride(a);
    }
    if (n > 0 && !axis.windowed() && !axes[n - 1].windowed() && continues(axes[n - 1], axis)) {
      axis.size *= axes[n - 1].size;
      axes[n - 1] = axis;
    } else {
      axes[n++] = axis;
    }
  }
  *p = {};
  // A run of one element, where there is nothing else.
  std::fill_n(p->lanes.stride, WindowAxis::kOperands, 1);
  if (n == 0) return;

  int first = n, last = -1;
  for (int i = 0; i < n; ++i) {
    if (!axes[i].windowed()) continue;
    first = std::min(first, i);
    last = i;
  }
  int run = n;  // where the run begins
  const bool whole =
      last >= 0 && (last == n - 1 || (last == n - 2 && continues(axes[last], axes[n - 1])));
  const Index lanes = last == n - 1 ? 1 : axes[n - 1].size;
  if (whole && (first < last || lanes < kManyLanes)) {
    run = last;
    p->run = axes[last];
    if (last < n - 1) {
      p->lanes = axes[n - 1];
    } else {
      std::copy_n(axes[last].stride, WindowAxis::kOperands, p->lanes.stride);
    }
  } else {
    run = n - 1;
    p->lanes = axes[n - 1];
  }
  // The rows: a window's axis, or what is next to the run.
  const int row = first < run ? first : run - 1;
  for (int i = 0; i < run; ++i) {
    if (i == row) {
      p->row = axes[i];
    } else if (axes[i].windowed()) {
      p->mid[p->mids++] = axes[i];
    } else {
      p->slices *= axes[i].size;
      p->slice[p->slice_dims++] = axes[i];
    }
  }
}

}  // namespace normcore
