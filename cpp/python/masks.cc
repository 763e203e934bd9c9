#include "masks.h"

namespace normcore::python {

Maskable::Maskable(py::handle x_, py::handle mask_, py::handle channel_axis)
    : x(py::reinterpret_borrow<py::object>(x_)), mask(py::reinterpret_borrow<py::object>(mask_)) {
  const bool may_be_masked =
      py::isinstance<py::array>(x) && Py_TYPE(x.ptr()) != py::detail::npy_api::get().PyArray_Type_;
  if (may_be_masked) {
    const py::tuple both = interop("split_masked")(x, mask, channel_axis);
    x = both[0];
    mask = both[1];
  }
}

Array read_mask(py::handle mask, const Array& x, std::optional<int> channel_axis) {
  if (mask.is_none()) return {};
  const Tensor& t = x.tensor();
  py::tuple shape(t.ndim());
  for (int a = 0; a < t.ndim(); ++a) shape[a] = t.shape(a);
  const bool wide = t.dtype() == DType::kFloat64;
  const py::object axis = channel_axis ? py::object(py::int_(*channel_axis)) : py::none();
  return Array(interop("position_weights")(mask, shape, wide, axis), "mask");
}

}  // namespace normcore::python
