// Divisive norm and GDN on a device: what the host does, and the kernels that work by element; the
// others are in mixing.cuh.
#include "cuda/mixing.cuh"
#include "cuda/special.h"

namespace normcore::cuda {
namespace {

// y from its table.
template <class T>
__global__ void place_kernel(Mixture m, IndexDivision by_inner, const T* table, T* y) {
  const Index i = my_index();
  if (i >= m.channels * m.run) return;
  const auto [c, n] = m.element(by_inner, i);
  y[m.at(1, c, n)] = table[i];
}

__global__ void powers_kernel(const double* values, Index n, double exponent, double* out) {
  const Index i = my_index();
  if (i < n) out[i] = Double::power(values[i], exponent);
}
// Gradients by b from those by b^q.
__global__ void chain_kernel(double* sums, const double* b, Index n, double q) {
  const Index i = my_index();
  if (i < n) sums[i] *= b[i] == 0 && q < 1 ? 0 : q * Double::power(b[i], q - 1);
}

// The parameters of a call, loaded, and its pixels by runs.
struct Loaded {
  const double* b;  // the offset, to the power of 1
  Mixture m;
  Index rows, pixels;  // of a product's tile

  Loaded(const MixingCall& call, const ConstTensor* const (&operands)[3], DeviceMemory& memory)
      : m{{operands, call.channel_axis, nullptr, nullptr},
          memory.load<double>(call.weights, whole_walk(call.weights)),
          nullptr,
          per_channel(call.gain, call.channels(), 1, memory),
          call.a,
          call.p,
          call.e,
          0,
          0},
        rows(few() ? ProductTile<true>::kRows : ProductTile<false>::kRows),
        pixels(few() ? ProductTile<true>::kPixels : ProductTile<false>::kPixels) {
    m.run = m.pixels.count;
    b = per_channel(call.offset, m.channels, 1, memory);
    m.offset = b;
    if (call.offset_power == 1) return;
    double* powers = memory.take<double>(m.channels);
    launch(one_each(m.channels), memory.stream(), powers_kernel, b, m.channels, call.offset_power,
           powers);
    m.offset = powers;
  }
  bool few() const { return m.channels <= kFewChannels; }
  // As many pixels at once as tables of so many bytes for each element leave half the cache to.
  void set_run(Index bytes, const DeviceMemory& memory) {
    const Index most = facts_of(memory.device()).cache_bytes / 2 / (bytes * m.channels);
    m.run = std::min(m.pixels.count, std::max<Index>(1, most / pixels) * pixels);
  }
  Index tiles() const { return ceil_div(m.run, pixels); }
  Index row_blocks() const { return ceil_div(m.channels, rows); }

  // f(the mixture of a run, whether it is not the first one)
  template <class F>
  void each_run(F f) const {
    for (Mixture part = m; part.first < m.pixels.count; part.first += m.run) {
      part.run = std::min(m.run, m.pixels.count - part.first);
      f(part, part.first > 0);
    }
  }
  template <Product kWhat, class T>
  void product(const Mixture& part, const MixingArrays<T>& arrays, cudaStream_t stream) const {
    const bool is_few = few();
    launch({ceil_div(part.run, pixels), kBlock,
            is_few ? ProductTile<true>::kBytes : ProductTile<false>::kBytes, 1, row_blocks()},
           stream, is_few ? product_kernel<T, kWhat, true> : product_kernel<T, kWhat, false>, part,
           arrays);
  }
};

}  // namespace

void mix_forward(const MixingCall& call, const Tensor& y, const Context& context) {
  CallMemory of_call(context);
  auto& memory = static_cast<DeviceMemory&>(of_call.get());
  const ConstTensor out(y);
  const ConstTensor* const operands[] = {&call.x, &out, nullptr};
  Loaded loaded(call, operands, memory);
  // Over x a block may write only what no other block reads.
  const bool direct = call.x.data() != y.data() || loaded.row_blocks() == 1;
  with_element_type(call.x.dtype(), [&]<class T>(T) {
    MixingArrays<T> arrays{};
    arrays.x = static_cast<const T*>(call.x.data());
    arrays.out = static_cast<T*>(y.data());
    if (!direct) {
      loaded.set_run(sizeof(T), memory);
      arrays.y_table = memory.take<T>(loaded.m.run * loaded.m.channels);
    }
    loaded.each_run([&](const Mixture& part, bool) {
      loaded.product<Product::kY>(part, arrays, memory.stream());
      if (direct) return;
      launch(one_each(part.run * part.channels), memory.stream(), place_kernel<T>, part,
             part.by_inner(part.run), arrays.y_table, arrays.out);
    });
  });
}

void mix_backward(const MixingCall& call, const ConstTensor& dy, const Tensor& dx,
                  const MixingTensors& gradients, const Context& context) {
  CallMemory of_call(context);
  auto& memory = static_cast<DeviceMemory&>(of_call.get());
  const ConstTensor out(dx);
  const ConstTensor* const operands[] = {&call.x, &dy, &out};
  Loaded loaded(call, operands, memory);
  loaded.set_run(2 * sizeof(double), memory);
  const Mixture& m = loaded.m;
  const Index n = m.channels;
  const bool few = loaded.few();
  const Index across =
      ceil_div(n, Index(few ? OuterTile<true>::kChannels : OuterTile<false>::kChannels));
  const Index tiles = across * across;
  const Index most_splits = std::max<Index>(1, 512 / tiles);
  const Index splits = std::clamp<Index>(m.run / 512, std::min<Index>(m.run, 1), most_splits);
  const Index blocks = loaded.tiles() * loaded.row_blocks();
  double* t = memory.take<double>(m.run * n);
  double* rest = memory.take<double>(m.run * n);
  auto take = [&](bool wanted, Index size) { return wanted ? memory.take<double>(size) : nullptr; };
  double* of_channels = memory.take<double>(loaded.tiles() * 2 * n);
  double* of_weights = take(bool(gradients.weights), splits * n * n);
  double* of_a = take(bool(gradients.a), blocks);
  double* of_e = take(bool(gradients.e), blocks);
  with_element_type(call.x.dtype(), [&]<class T>(T) {
    MixingArrays<T> arrays{};
    arrays.x = static_cast<const T*>(call.x.data());
    arrays.dy = static_cast<const T*>(dy.data());
    arrays.out = static_cast<T*>(dx.data());
    arrays.t = t;
    arrays.rest = rest;
    arrays.channels = of_channels;
    arrays.weights = of_weights;
    arrays.a = of_a;
    arrays.e = of_e;
    loaded.each_run([&](const Mixture& part, bool adds) {
      arrays.adds = adds;
      loaded.product<Product::kTerms>(part, arrays, memory.stream());
      if (of_weights) {
        launch({tiles, kBlock, few ? OuterTile<true>::kBytes : OuterTile<false>::kBytes, 1, splits},
               memory.stream(), few ? outer_kernel<T, true> : outer_kernel<T, false>, part, arrays,
               splits);
      }
      loaded.product<Product::kGradient>(part, arrays, memory.stream());
    });
  });

  double* sums = memory.take<double>(2 * n);
  double* weights = take(of_weights, n * n);
  double* a = take(of_a, 1);
  double* e = take(of_e, 1);
  const Folds folds{{{of_channels, loaded.tiles(), 2 * n, sums, 1},
                     {of_weights, splits, of_weights ? n * n : 0, weights, 1},
                     {of_a, blocks, of_a ? 1 : 0, a, 1},
                     {of_e, blocks, of_e ? 1 : 0, e, gradients.sign_of_e}}};
  launch({ceil_div(std::max(2 * n, of_weights ? n * n : 0), Index(kWarps)), kBlock, 0, 1, kFolds},
         memory.stream(), fold_kernel, folds);
  if (gradients.offset && call.offset_power != 1) {
    launch(one_each(n), memory.stream(), chain_kernel, sums, loaded.b, n, call.offset_power);
  }
  store_per_channel(sums, n, gradients.offset, memory);
  store_per_channel(sums + n, n, gradients.gain, memory);
  auto store = [&](const double* values, const Tensor& to) {
    if (to) memory.store(values, to, whole_walk(to));
  };
  store(weights, gradients.weights);
  store(a, gradients.a);
  store(e, gradients.e);
}

}  // namespace normcore::cuda
