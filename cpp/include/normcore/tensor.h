// Views over the caller's memory: a pointer, an element type, sizes and strides in elements. They
// own nothing and copy nothing. `Tensor` may be written through, `ConstTensor` may not, and
// `Buffer` where its memory allows it; a default-constructed one stands for an argument that was
// not given.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "normcore/dtype.h"
#include "normcore/errors.h"

namespace normcore {

// 32 axes, and one more for the pairs of a statistics array.
inline constexpr int kMaxDims = 33;

template <bool kConst>
class BasicTensor {
 public:
  using Pointer = std::conditional_t<kConst, const void*, void*>;

  // User-provided: `= default` would let braces zero all of the arrays, which small calls notice.
  BasicTensor() {}
  BasicTensor(Pointer data, DType dtype, int ndim) : data_(data), dtype_(dtype), ndim_(ndim) {
    if (ndim > kMaxDims) throw value_error("a tensor has more axes than kMaxDims");
  }
  // A copy takes the axes that there are: all of kMaxDims would cost a small call a tenth.
  BasicTensor(const BasicTensor& other) { *this = other; }
  BasicTensor& operator=(const BasicTensor& other) {
    data_ = other.data_;
    dtype_ = other.dtype_;
    ndim_ = other.ndim_;
    for (int i = 0; i < ndim_; ++i) set_dim(i, other.shape(i), other.stride(i));
    return *this;
  }

  // C-contiguous memory.
  template <class T>
    requires(kConst || !std::is_const_v<T>)
  BasicTensor(T* data, std::initializer_list<Index> shape)
      : BasicTensor(data, DTypeOf<std::remove_const_t<T>>::value, static_cast<int>(shape.size())) {
    int i = 0;
    for (Index n : shape) shape_[i++] = n;
    set_contiguous();
  }
  template <class T>
    requires(kConst || !std::is_const_v<T>)
  BasicTensor(T* data, std::initializer_list<Index> shape, std::initializer_list<Index> strides)
      : BasicTensor(data, shape) {
    if (strides.size() != shape.size()) throw value_error("shape and strides differ in length");
    int i = 0;
    for (Index s : strides) strides_[i++] = s;
  }
  // What may be written may be read.
  template <bool kOther>
    requires(kConst && !kOther)
  BasicTensor(const BasicTensor<kOther>& other)
      : BasicTensor(other.data(), other.dtype(), other.ndim()) {
    for (int i = 0; i < ndim_; ++i) set_dim(i, other.shape(i), other.stride(i));
  }

  explicit operator bool() const { return ndim_ >= 0; }
  Pointer data() const { return data_; }
  DType dtype() const { return dtype_; }
  int ndim() const { return ndim_; }
  Index shape(int i) const { return shape_[i]; }
  Index stride(int i) const { return strides_[i]; }

  Index size() const {
    Index n = 1;
    for (int i = 0; i < ndim_; ++i) n *= shape_[i];
    return n;
  }
  bool contiguous() const {
    Index expected = 1;
    for (int i = ndim_ - 1; i >= 0; --i) {
      if (shape_[i] != 1 && strides_[i] != expected) return false;
      expected *= shape_[i];
    }
    return true;
  }

  void set_dim(int i, Index size, Index stride) {
    shape_[i] = size;
    strides_[i] = stride;
  }
  void set_contiguous() {
    // Sizes that nobody has looked at yet: what overflows is for the operations to refuse.
    std::uint64_t stride = 1;
    for (int i = ndim_ - 1; i >= 0; --i) {
      strides_[i] = static_cast<Index>(stride);
      stride *= static_cast<std::uint64_t>(shape_[i]);
    }
  }

 private:
  Pointer data_ = nullptr;
  DType dtype_ = DType::kFloat32;
  int ndim_ = -1;
  Index shape_[kMaxDims];
  Index strides_[kMaxDims];
};

using Tensor = BasicTensor<false>;
using ConstTensor = BasicTensor<true>;

// Running statistics: training moves them, inference only reads them, and then they may lie in
// memory that is const.
class Buffer : public ConstTensor {
 public:
  Buffer() {}
  Buffer(const ConstTensor& read_only) : ConstTensor(read_only) {}
  Buffer(const Tensor& tensor) : ConstTensor(tensor), writable_(true) {}
  template <class T>
  Buffer(T* data, std::initializer_list<Index> shape)
      : ConstTensor(data, shape), writable_(!std::is_const_v<T>) {}
  template <class T>
  Buffer(T* data, std::initializer_list<Index> shape, std::initializer_list<Index> strides)
      : ConstTensor(data, shape, strides), writable_(!std::is_const_v<T>) {}

  bool writable() const { return writable_; }

 private:
  bool writable_ = false;
};

template <bool A, bool B>
bool same_shape(const BasicTensor<A>& a, const BasicTensor<B>& b) {
  if (a.ndim() != b.ndim()) return false;
  for (int i = 0; i < a.ndim(); ++i) {
    if (a.shape(i) != b.shape(i)) return false;
  }
  return true;
}

}  // namespace normcore
