// Running buffers that a training call moves towards what it found.
#pragma once

#include <span>

#include "normcore/ops.h"
#include "ops/call.h"
#include "ops/signatures.h"

namespace normcore {

struct BufferUpdate {
  const char* name;
  const Buffer& buffer;  // (C,)
  Follows follows;
  double momentum;
  bool unbiased = false;
};

// All of them, or none.
inline std::span<const BufferUpdate> moving(std::span<const BufferUpdate> updates, bool move) {
  return move ? updates : std::span<const BufferUpdate>();
}

// What channel_forward has let pass.
inline Tensor writable(const Buffer& buffer) {
  Tensor t(const_cast<void*>(buffer.data()), buffer.dtype(), buffer.ndim());
  for (int i = 0; i < buffer.ndim(); ++i) t.set_dim(i, buffer.shape(i), buffer.stride(i));
  return t;
}

inline double* moved(const BufferUpdate& update, const StatsTable& table, Index rows,
                     const Counted& n, Memory& memory) {
  const Buffer& buffer = update.buffer;
  const Index channels = buffer.shape(0);
  const double* values = update.follows == Follows::mean ? table.mean : table.var;
  if (update.follows == Follows::deviation) {
    double* inverse = memory.take<double>(rows * channels);
    memory.transform(Memory::kReciprocal, table.rstd, rows * channels, inverse);
    values = inverse;
  }
  const double* old = memory.load<double>(buffer, vector_walk(buffer));
  double* out = memory.take<double>(channels);
  memory.blend(old, values, rows, channels, update.momentum, n, update.unbiased, out);
  return out;
}

// All of them, or none where memory lacks.
inline void move_buffers(std::span<const BufferUpdate> updates, const StatsTable& table, Index rows,
                         const Counted& n, Memory& memory) {
  constexpr std::size_t kMost = 2;
  const double* values[kMost];
  Index entries = 0;
  for (std::size_t i = 0; i < updates.size(); ++i) {
    values[i] = moved(updates[i], table, rows, n, memory);
    entries += updates[i].buffer.shape(0);
  }
  memory.prepare_stores(static_cast<Index>(updates.size()), entries);
  for (std::size_t i = 0; i < updates.size(); ++i) {
    const Buffer& buffer = updates[i].buffer;
    memory.store(values[i], writable(buffer), vector_walk(buffer));
  }
}

}  // namespace normcore
