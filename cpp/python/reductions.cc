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

// float64, which merges exactly: of NumPy, or of x's library where x lies on a device, so that
// nobody waits for it.
class Doubles {
 public:
  Doubles(const Array& x, const ReducedAxes& axes) {
    Tensor packed(nullptr, DType::kFloat64, axes.result.ndim());
    if (x.where().device == Device::kCuda) {
      result_ = x.new_contiguous(axes.result, DType::kFloat64, &packed);
      tensor = axes.view(packed.data(), DType::kFloat64);
      return;
    }
    Index strides[kMaxDims];
    for (int a = 0; a < packed.ndim(); ++a) packed.set_dim(a, axes.result.shape(a), 0);
    packed.set_contiguous();
    for (int a = 0; a < packed.ndim(); ++a) strides[a] = packed.stride(a);
    py::object array = new_numpy(packed, numpy_dtype(DType::kFloat64), strides, sizeof(double));
    tensor = axes.view(py::detail::array_proxy(array.ptr())->data, DType::kFloat64);
    result_ = Result(std::move(array));
  }
  py::object take() { return result_.take(); }

  Tensor tensor;

 private:
  Result result_;
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
  Doubles count(x, reduced), mean(x, reduced), m2(x, reduced);
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
