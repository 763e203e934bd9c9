// The kernels that mix channels, on the pixels of one tile: bound by arithmetic. What they
// overwrite is put back before each call, which costs a hundredth of a product and a part of
// `divide`.
#include <cstring>

#include "kernel_registry.h"

namespace normcore::bench {
namespace {

// GDN of 192 channels.
template <class C>
struct MixingTile {
  explicit MixingTile(const cpu::MixingKernels<C>& k)
      : rows((kChannels + k.block - 1) / k.block * k.block),
        size(rows * k.pixels),
        weights(std::size_t(rows * kChannels), C(0.01)),
        ones(std::size_t(rows), C(1)),
        start(std::size_t(size), C(1)),
        sums(std::size_t(rows * k.lanes)) {
    for (auto& b : buffers) b = start;
    const Index columns = (rows + k.pixels - 1) / k.pixels;
    scratch.resize(std::size_t((rows + columns * k.pixels) * k.pixels));
    dw.resize(std::size_t(rows * columns * k.pixels));
    f = {kChannels,   rows,        k.pixels, weights.data(), weights.data(),
         ones.data(), ones.data(), C(2),     C(1),           C(0.5)};
  }
  C* fresh(int i) {
    std::memcpy(buffers[i].data(), start.data(), start.size() * sizeof(C));
    return buffers[i].data();
  }
  double bytes(int arrays) const { return double(arrays) * double(size) * sizeof(C); }
  // Of a matrix product.
  double flops() const { return 2.0 * double(size) * double(kChannels); }

  static constexpr Index kChannels = 192;
  Index rows, size;
  std::vector<C> weights, ones, start, sums, scratch, dw;
  std::vector<C> buffers[4];
  cpu::Mixture<C> f;
};

template <class C, class Run>
void add(KernelRegistry& registry, const char* name, std::size_t place, int arrays, double products,
         Run run) {
  bool wanted = false;
  for (const DType t : registry.options().dtypes) wanted = wanted || t == DTypeOf<C>::value;
  if (!wanted) return;
  registry.add(std::string("mixing/") + name + "/" + short_name(DTypeOf<C>::value),
               [=](benchmark::State& state) {
                 const auto& k = KernelRegistry::at<cpu::MixingKernels<C>>(place);
                 MixingTile<C> t(k);
                 run_kernel(state, t.bytes(arrays), products * t.flops(), [&] { run(k, t); });
               });
}

}  // namespace

template <class C>
void add_mixing(KernelRegistry& registry, const cpu::MixingKernels<C>& kernels) {
  using Kernels = cpu::MixingKernels<C>;
  using T = MixingTile<C>;
  const std::size_t place = KernelRegistry::place_of(kernels);
  for (const Index* size : {&kernels.block, &kernels.lanes, &kernels.pixels}) {
    registry.cover(*size);
  }
  registry.cover(kernels.denominators);
  add<C>(registry, "denominators", place, 3, 1, [](const Kernels& k, T& t) {
    bool outside[64];
    k.denominators(t.f, t.start.data(), nullptr, t.buffers[0].data(), t.buffers[1].data(), outside);
  });
  registry.cover(kernels.divide);
  add<C>(registry, "divide", place, 3, 0,
         [](const Kernels& k, T& t) { k.divide(t.f, t.start.data(), t.fresh(0)); });
  registry.cover(kernels.gradient);
  add<C>(registry, "gradient", place, 6, 1, [](const Kernels& k, T& t) {
    k.gradient(t.f, t.start.data(), t.start.data(), t.fresh(0), t.fresh(1), t.scratch.data(),
               {t.sums.data(), t.sums.data(), nullptr, nullptr});
  });
  registry.cover(kernels.turn);
  registry.cover(kernels.outer_product);
  add<C>(registry, "outer_product", place, 2, 1, [](const Kernels& k, T& t) {
    k.turn(t.start.data(), t.start.data(), t.rows, t.scratch.data());
    k.outer_product(t.scratch.data(), t.rows, 0, t.rows, t.dw.data());
  });
}

template <class C>
void add_mix(KernelRegistry& registry, DType dtype, const cpu::PixelKernels<C>& kernels) {
  bool wanted = false;
  for (const DType t : registry.options().dtypes) wanted = wanted || t == dtype;
  using Kernel = bool (*)(const cpu::Mixture<C>&, const cpu::MixingTile<C>&, cpu::Out,
                          const cpu::MixingTile<C>&, cpu::In);
  for (const cpu::Orientation o : {cpu::kRows, cpu::kCols}) {
    registry.cover(kernels.mix[o]);
    if (!wanted) continue;
    const std::size_t place = KernelRegistry::place_of(kernels.mix[o]);
    const char* name = o == cpu::kRows ? "mixing/tile/rows/" : "mixing/tile/columns/";
    registry.add(name + std::string(short_name(dtype)), [=](benchmark::State& state) {
      const auto& mix = KernelRegistry::at<Kernel>(place);
      const cpu::KernelTable& table = cpu::kernels();
      const auto& k = [&]() -> const cpu::MixingKernels<C>& {
        if constexpr (sizeof(C) == 8) {
          return table.mixing64;
        } else {
          return table.mixing32;
        }
      }();
      MixingTile<C> t(k);
      // Channels are rows of as many pixels as a tile has, or columns of whole blocks of pixels.
      const Index channels = t.kChannels, element = Index(size_of(dtype));
      const Index pixels = o == cpu::kRows ? k.pixels : 4 * k.block;
      const Index wide = (channels + k.pixels - 1) / k.pixels * k.pixels;
      const Index size = o == cpu::kRows ? t.size : pixels * wide;
      if (o == cpu::kCols) t.f.rows = wide;
      std::vector<C> parameters(std::size_t(wide * channels), C(0.01)),
          ones(std::size_t(wide), C(1));
      t.f.weights = parameters.data();
      t.f.offset = t.f.gain = ones.data();
      const Memory x(size * element / 2, DType::kBFloat16), y(size * element / 2, DType::kBFloat16);
      std::vector<C> buffers(std::size_t(4 * size), C(1)), ends(std::size_t(4 * k.lanes), C(1));
      auto tile = [&](int i) {
        C* at = buffers.data() + 2 * i * size;
        return cpu::MixingTile<C>{pixels, at, at + size, ends.data() + 2 * i * k.lanes};
      };
      const cpu::MixingTile<C> now = tile(0), next = tile(1);
      const Index stride = o == cpu::kRows ? pixels : channels;
      const Index bytes = 2 * pixels * channels * element;
      run_kernel(state, double(bytes), 2.0 * double(pixels * channels * channels),
                 [&] { mix(t.f, now, {y.get(), stride, false}, next, {x.get(), stride, 0}); });
    });
  }
}

template void add_mixing(KernelRegistry&, const cpu::MixingKernels<float>&);
template void add_mixing(KernelRegistry&, const cpu::MixingKernels<double>&);
template void add_mix(KernelRegistry&, DType, const cpu::PixelKernels<float>&);
template void add_mix(KernelRegistry&, DType, const cpu::PixelKernels<double>&);

}  // namespace normcore::bench
