// oneDNN's normalization primitives, of its versions 2 and 3, for the cells that both libraries
// have.
#pragma once

#include <cstring>
#include <oneapi/dnnl/dnnl.hpp>
#include <string>
#include <vector>

#include "cells.h"

#define NORMCORE_ONEDNN_3 (DNNL_VERSION_MAJOR >= 3)
#define NORMCORE_ONEDNN_GROUPS (DNNL_VERSION_MAJOR * 100 + DNNL_VERSION_MINOR >= 303)

namespace normcore::bench::onednn {

using dnnl::memory;
using dnnl::normalization_flags;
using dnnl::prop_kind;

constexpr float kEps = 1e-5f;

inline memory::data_type type_of(DType t) {
  return t == DType::kFloat32    ? memory::data_type::f32
         : t == DType::kBFloat16 ? memory::data_type::bf16
         : t == DType::kFloat16  ? memory::data_type::f16
                                 : memory::data_type::undef;
}

// The normalizations that both have.
enum class Kind { none, layer, batch, group };

inline Kind kind_of(const Cell& cell) {
  const std::string op = cell.op;
  if (op == "layer_norm" && cell.axis() == -1) return Kind::layer;
  if (op == "batch_norm" && std::strcmp(cell.variant, "masked")) return Kind::batch;
#if NORMCORE_ONEDNN_GROUPS
  if (op == "group_norm" || op == "instance_norm") return Kind::group;
#endif
  return Kind::none;
}

// What a primitive is made from.
struct Problem {
  const Cell& cell;
  Kind kind;
  DType dtype;
  bool backward;

  bool given() const { return !std::strcmp(cell.variant, "eval"); }  // statistics
  Index groups() const {
    return !std::strcmp(cell.op, "instance_norm") ? cell.shape[1] : cell.groups();
  }
  normalization_flags flags() const {
    const auto affine = normalization_flags::use_scale | normalization_flags::use_shift;
    return given() ? affine | normalization_flags::use_global_stats : affine;
  }
  // Of the forward primitive: one that keeps its statistics where they are of use.
  prop_kind forward_kind() const {
    const bool keeps = backward || (kind == Kind::batch && !given());
    return keeps ? prop_kind::forward_training : prop_kind::forward_inference;
  }
  // x in the layout of the cell.
  memory::desc tensor() const {
    const memory::dims dims(cell.shape.begin(), cell.shape.end());
    memory::dims strides(dims.size());
    memory::dim stride = 1;
    const bool last = !std::strcmp(cell.layout, "NHWC");
    if (last) {
      strides[1] = 1;
      stride = dims[1];
    }
    for (std::size_t i = dims.size(); i-- > 0;) {
      if (last && i == 1) continue;
      strides[i] = stride;
      stride *= dims[i];
    }
    return {dims, type_of(dtype), strides};
  }
  std::vector<Index> statistics() const {
    if (kind == Kind::layer) return {cell.shape[0]};
    if (kind == Kind::batch) return {cell.shape[1]};
    return {cell.shape[0], groups()};
  }
};

struct Layer {
  using Forward = dnnl::layer_normalization_forward;
  using Backward = dnnl::layer_normalization_backward;
};
struct Batch {
  using Forward = dnnl::batch_normalization_forward;
  using Backward = dnnl::batch_normalization_backward;
};
#if NORMCORE_ONEDNN_GROUPS
struct Group {
  using Forward = dnnl::group_normalization_forward;
  using Backward = dnnl::group_normalization_backward;
};
#endif

struct Made {
  dnnl::primitive primitive;
  std::string implementation;
};

// Throws dnnl::error for what is not implemented. `groups` is for group norm alone.
template <class Norm, class... Groups>
Made make_norm(const Problem& p, const dnnl::engine& engine, Groups... groups) {
  using Forward = typename Norm::Forward;
  using Backward = typename Norm::Backward;
  const memory::desc d = p.tensor();
  const prop_kind both = prop_kind::backward;
#if NORMCORE_ONEDNN_3
  const typename Forward::primitive_desc forward(engine, p.forward_kind(), d, d, groups..., kEps,
                                                 p.flags());
  if (!p.backward) return {Forward(forward), forward.impl_info_str()};
  const typename Backward::primitive_desc backward(engine, both, d, d, d, groups..., kEps,
                                                   p.flags(), forward);
#else
  const typename Forward::primitive_desc forward({p.forward_kind(), d, groups..., kEps, p.flags()},
                                                 engine);
  if (!p.backward) return {Forward(forward), forward.impl_info_str()};
  const typename Backward::primitive_desc backward({both, d, d, groups..., kEps, p.flags()}, engine,
                                                   forward);
#endif
  return {Backward(backward), backward.impl_info_str()};
}

inline Made make(const Problem& p, const dnnl::engine& engine) {
#if NORMCORE_ONEDNN_GROUPS
  if (p.kind == Kind::group) return make_norm<Group>(p, engine, p.groups());
#endif
  return p.kind == Kind::layer ? make_norm<Layer>(p, engine) : make_norm<Batch>(p, engine);
}

}  // namespace normcore::bench::onednn
