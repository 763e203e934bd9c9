// Arrays without a geometry: between storage types and the compute type, and plain copies.
#pragma once

#include "drivers.inl"

namespace normcore::cpu::NORMCORE_ISA {
namespace {

template <class T>
void load_array(const void* src, Compute<T>* dst, Index n) {
  const T* s = static_cast<const T*>(src);
  sweep<false>(dst, 0, n, [=](Index i, auto tag) __attribute__((always_inline)) {
    return one(load(s + i, tag));
  });
}
template <class T>
void store_array(const Compute<T>* src, void* dst, Index n) {
  sweep<false>(static_cast<T*>(dst), 0, n, [=](Index i, auto tag) __attribute__((always_inline)) {
    return one(load(src + i, tag));
  });
}

void copy(const void* src, void* dst, std::size_t bytes, bool stream) {
  const Index n = Index(bytes / sizeof(float));
  const float* s = static_cast<const float*>(src);
  float* d = static_cast<float*>(dst);
  auto move = [=](Index i, auto tag)
                  __attribute__((always_inline)) { return one(load(s + i, tag)); };
  if (stream) {
    sweep<true>(d, 0, n, move);
  } else {
    sweep<false>(d, 0, n, move);
  }
  const std::size_t done = std::size_t(n) * sizeof(float);
  for (std::size_t i = done; i < bytes; ++i) {
    static_cast<char*>(dst)[i] = static_cast<const char*>(src)[i];
  }
}

}  // namespace
}  // namespace normcore::cpu::NORMCORE_ISA
