// Norms and moments as functions of the module.
#include "results.h"

namespace normcore::python {
namespace {

// The axes that a call reduces; None stands for all.
struct ReducedAxes {
  std::optional<Axes> axes;
  // x's shape with 1 along them, and without them unless they are kept. Wrong ones are for the
  // operation to refuse.
  ConstTensor kept, result;

  ReducedAxes(const Array& x, py::handle axis, bool keepdims) {
    if (!axis.is_none()) axes = as_axes(axis, x.tensor().ndim());
    const Tensor& t = x.tensor();
    bool reduced[kMaxDims];
    std::fill_n(reduced, t.ndim(), !axes);
    for (int i = 0; axes && i < axes->count; ++i) {
      const int a = axes->values[i] < 0 ? axes->values[i] + t.ndim() : axes->values[i];
      if (a >= 0 && a < t.ndim()) reduced[a] = true;
    }
    const auto gone = keepdims ? 0 : std::count(reduced, reduced + t.ndim(), true);
    kept = ConstTensor(nullptr, t.dtype(), t.ndim());
    result = ConstTensor(nullptr, t.dtype(), t.ndim() - static_cast<int>(gone));
    int to = 0;
    for (int a = 0; a < t.ndim(); ++a) {
      const Index n = reduced[a] ? 1 : t.shape(a);
      kept.set_dim(a, n, 0);
      if (keepdims || !reduced[a]) result.set_dim(to++, n, 0);
    }
  }

  // C-contiguous memory as the operation wants it.
  Tensor view(void* data, DType dtype) const {
    Tensor v(data, dtype, kept.ndim());
    for (int a = 0; a < kept.ndim(); ++a) v.set_dim(a, kept.shape(a), 0);
    v.set_contiguous();
    return v;
  }
};

// float64 in NumPy's memory, whatever the library of x: what was computed elsewhere is fetched.
class HostDoubles {
 public:
  HostDoubles(const Array& x, const ReducedAxes& axes) : where_(x.where()) {
    Tensor packed(nullptr, DType::kFloat64, axes.result.ndim());
    Index strides[kMaxDims];
    for (int a = 0; a < packed.ndim(); ++a) packed.set_dim(a, axes.result.shape(a), 0);
    packed.set_contiguous();
    for (int a = 0; a < packed.ndim(); ++a) strides[a] = packed.stride(a);
    array_ = new_numpy(packed, numpy_dtype(DType::kFloat64), strides, sizeof(double));
    data_ = py::detail::array_proxy(array_.ptr())->data;
    bytes_ = static_cast<std::size_t>(packed.size()) * sizeof(double);
    if (where_.device == Device::kCuda) device_ = cuda::allocate_shared(bytes_, where_);
    tensor = axes.view(device_ ? device_.get() : data_, DType::kFloat64);
  }
  py::object take() {
    if (device_) cuda::copy_to_host(data_, device_.get(), bytes_, where_);
    return array_;
  }

  Tensor tensor;

 private:
  Context where_;
  py::object array_;
  void* data_;
  std::size_t bytes_;
  std::shared_ptr<void> device_;
};

py::object norm_(py::handle x_, py::handle ord, py::handle axis, py::handle keepdims) {
  const Array x(x_, "x");
  const ReducedAxes reduced(x, axis, as_bool(keepdims, "keepdims"));
  const NormOptions options{as_double(ord, "ord"), reduced.axes};
  const DType dtype = statistics_dtype(x.tensor().dtype());
  Tensor view;
  Result result = x.new_contiguous(reduced.result, dtype, &view);
  const Context context = call_context(x, {});
  unlocked(x.tensor().size(), &norm, x.tensor(), reduced.view(view.data(), dtype), options,
           context);
  return result.take();
}

py::object moments_(py::handle x_, py::handle axis, py::handle mask_, py::handle keepdims) {
  const Maskable given(x_, mask_, py::none());
  const Array x(given.x, "x");
  const Array mask = read_mask(given.mask, x, std::nullopt);
  const ReducedAxes reduced(x, axis, as_bool(keepdims, "keepdims"));
  HostDoubles count(x, reduced), mean(x, reduced), m2(x, reduced);
  const Context context = call_context(x, {{"mask", mask}});
  unlocked(x.tensor().size(), &moments, x.tensor(), {count.tensor, mean.tensor, m2.tensor},
           {reduced.axes, mask.tensor()}, context);
  return py::make_tuple(count.take(), mean.take(), m2.take());
}

}  // namespace

void register_reductions(py::module_& m) {
  m.def("norm", &norm_);
  m.def("moments", &moments_);
}

}  // namespace normcore::python
