#include "call.h"

#include <algorithm>
#include <cstring>

#include "yardsticks.h"

namespace normcore::bench {

Call::Call(const Cell& cell, DType dtype, int threads)
    : method_(method_of(cell)),
      a_{cell, cell.axis(), std::strcmp(cell.layout, "NHWC") ? 1 : -1, cell.groups()} {
  a_.context.threads = threads;
  std::vector<Index> shape = cell.shape;
  if (a_.channel_axis == -1) std::rotate(shape.begin() + 1, shape.begin() + 2, shape.end());
  for (Tensor* t : {&a_.x, &a_.dy, &a_.out}) *t = make(dtype, shape);

  const int ndim = int(cell.shape.size());
  const int axis = (a_.axis + ndim) % ndim;
  const Index n = cell.shape[std::size_t(axis)];
  const bool like_x = method_.saved == Saved::rows || method_.saved == Saved::none;
  const DType parameters = like_x ? dtype : DType::kFloat32;
  for (Tensor* t : {&a_.weight, &a_.bias, &a_.dweight, &a_.dbias}) *t = make(parameters, {n});
  for (std::size_t i = 0; i < method_.own.size(); ++i) {
    const std::vector<Index> own = {method_.own[i] == OwnShape::logits ? 3 : n};
    a_.own[i] = make(parameters, own);
    a_.down[i] = make(parameters, own);
  }
  for (Tensor* t : {&a_.running_mean, &a_.running_scale}) *t = make(DType::kFloat32, {n});
  if (!std::strcmp(cell.op, "gdn") || !std::strcmp(cell.op, "divisive_norm")) {
    for (Tensor* t : {&a_.mixing, &a_.dmixing}) *t = make(DType::kFloat32, {n, n});
  }
  std::vector<Index> kept = cell.shape;
  kept[std::size_t(axis)] = 1;
  for (Tensor* t : {&a_.reduced, &a_.reduced_too}) *t = make(DType::kFloat64, kept);
  a_.left = make(dtype, {cell.shape[0]});
  a_.right = make(dtype, {cell.shape[1]});
  if (!std::strcmp(cell.variant, "masked")) make_mask(a_.x);
  if (method_.set_options) method_.set_options(a_);
  save_statistics(cell.shape, axis);
}

double Call::traffic_bytes(bool backward) const {
  const Cell::Traffic& t = backward ? a_.cell.backward : a_.cell.forward;
  return double(bytes()) * (double(bytes()) <= cache_bytes() ? t.in_cache : t.beyond);
}

double Call::copy_seconds(double bytes) const {
  return bench::copy_seconds(static_cast<const char*>(a_.x.data()),
                             static_cast<char*>(a_.out.data()), this->bytes(), bytes);
}

// Of one matrix forward, of three backward.
double Call::mixing_flops(bool backward) const {
  if (!a_.mixing) return 0;
  return 2.0 * double(a_.x.size()) * double(a_.mixing.shape(0)) * (backward ? 3 : 1);
}

Tensor Call::make(DType dtype, const std::vector<Index>& shape) {
  return view(owned_.emplace_back(count(shape), dtype).get(), dtype, shape);
}

// Padding at the end of every row of positions: the last quarter does not count.
void Call::make_mask(const Tensor& x) {
  std::vector<Index> shape;
  const int channels = (a_.channel_axis + x.ndim()) % x.ndim();
  for (int i = 0; i < x.ndim(); ++i) {
    if (i != channels) shape.push_back(x.shape(i));
  }
  a_.mask = make(statistics_dtype(x.dtype()), shape);
  const Index row = shape.back(), rows = count(shape) / row;
  for (Index i = 0; i < rows * row; ++i) {
    const bool counts = i % row < std::max<Index>(1, row * 3 / 4);
    if (a_.mask.dtype() == DType::kFloat64) {
      static_cast<double*>(a_.mask.data())[i] = counts;
    } else {
      static_cast<float*>(a_.mask.data())[i] = counts;
    }
  }
}

// What backward is handed: the statistics of a forward call.
void Call::save_statistics(const std::vector<Index>& shape, int axis) {
  const Index n = shape[std::size_t(axis)];
  std::vector<Index> pools;
  switch (method_.saved) {
    case Saved::none:
      return;
    case Saved::rows:
      pools = shape;
      pools[std::size_t(axis)] = 1;
      break;
    case Saved::channels:
      pools = {n};
      break;
    case Saved::instances:
      pools = {shape[0], n};
      break;
    case Saved::groups:
      pools = {shape[0], a_.groups};
      break;
  }
  pools.push_back(2);
  a_.pooled = make(DType::kFloat64, pools);
  a_.given = make(DType::kFloat64, {n, 2});
  method_.forward(a_, {{}, {}, a_.pooled, method_.saved == Saved::rows ? Tensor() : a_.given});
}

}  // namespace normcore::bench
