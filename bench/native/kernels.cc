// Every kernel of cpu/kernels.h on a tile in the first-level cache: a line or two for each.
#include <algorithm>
#include <cstring>

#include "kernel_registry.h"
#include "probes.h"

namespace normcore::bench {
namespace {

template <class C>
void add_set(KernelRegistry& registry, DType dtype, const cpu::KernelSet<C>& set) {
  using Set = cpu::KernelSet<C>;
  using T = Tile<C>;
  Group<C, Set> group(registry, "", dtype, set);
  auto affine = [](const T& t) { return cpu::Affine<C>{t.c, t.c, t.c}; };
  auto gradient = [](const T& t) { return cpu::Gradient<C>{t.c, t.c, t.c, {t.c, t.c}}; };

  group.add("moments", &Set::moments, {1},
            [](auto f, T& t) { f(t.x, t.rows, t.cols, t.sum(0), t.sum(1)); });
  group.add("squares", &Set::squares, {1},
            [](auto f, T& t) { f(t.x, t.rows, t.cols, t.sum(0), t.sum(1)); });
  group.add("masked_moments", &Set::masked_moments, {1, 1},
            [](auto f, T& t) { f(t.x, t.mask, t.rows, t.cols, t.sum(0), t.sum(1), t.sum(2)); });
  group.add("affine", &Set::affine, {2},
            [=](auto f, T& t) { f(t.x, t.y, t.rows, t.cols, affine(t)); });
  group.add("weighted_affine", &Set::weighted_affine, {2},
            [=](auto f, T& t) { f(t.x, t.y, t.rows, t.cols, affine(t), t.c, t.c); });
  constexpr const char* kTwoPhases[2][2] = {
      {"affine_moments", "affine_squares"},
      {"weighted_affine_moments", "weighted_affine_squares"},
  };
  group.add(kTwoPhases, &Set::affine_moments, {3}, [=](auto f, T& t) {
    f(t.x, t.y, t.rows, t.cols, affine(t), t.c, t.c, t.dy, t.sum(0), t.sum(1));
  });
  group.add("sums", &Set::sums, {2},
            [](auto f, T& t) { f(t.dy, t.x, t.rows, t.cols, {t.c, t.c}, t.sum(0), t.sum(1)); });
  group.add("weighted_sums", &Set::weighted_sums, {2}, [](auto f, T& t) {
    f(t.dy, t.x, t.rows, t.cols, {t.c, t.c}, t.c, t.sum(0), t.sum(1));
  });
  group.add("sums_and_parameters", &Set::sums_and_parameters, {2}, [=](auto f, T& t) {
    f(t.dy, t.x, t.rows, t.cols, {t.c, t.c}, t.c, t.sum(0), t.sum(1), affine(t), t.buffer(0),
      t.buffer(1));
  });
  group.add("grad", &Set::grad, {3},
            [=](auto f, T& t) { f(t.dy, t.x, t.y, t.rows, t.cols, gradient(t)); });
  group.add("masked_grad", &Set::masked_grad, {3, 1},
            [=](auto f, T& t) { f(t.dy, t.x, t.mask, t.y, t.rows, t.cols, gradient(t)); });
  group.add("weighted_grad", &Set::weighted_grad, {3}, [=](auto f, T& t) {
    f(t.dy, t.x, {nullptr, 0}, t.y, t.rows, t.cols, gradient(t), t.c);
  });
  group.add("parameter_sums", &Set::parameter_sums, {2}, [=](auto f, T& t) {
    f(t.dy, t.x, t.rows, t.cols, affine(t), t.buffer(0), t.buffer(1));
  });
  group.add("add", &Set::add, {3}, [](auto f, T& t) { f(t.x, t.dy, t.y, t.rows, t.cols); });
  group.add("repeat", &Set::repeat, {0, 1},
            [](auto f, T& t) { f(t.c, t.size() / 16, 16, t.buffer(0)); });
  group.add("load", &Set::load, {1, 1}, [](auto f, T& t) { f(t.x.data, t.buffer(0), t.size()); });
  group.add("store", &Set::store, {1, 1}, [](auto f, T& t) { f(t.buffer(0), t.y.data, t.size()); });

  // Spread of order 1, and of the few largest: with u = x / 2 - 0.5 one in 25 reaches 0.24.
  const C high = C(0.24);
  auto order = [](const T& t) { return cpu::Spread<C>{t.c, t.c, t.c, t.c, t.c, C(1)}; };
  auto largest = [=](T& t) {
    if (t.buffer(3)[0] != high) std::fill_n(t.buffer(3), t.size(), high);
    return cpu::Spread<C>{t.c, t.c, t.c, t.buffer(3), t.c, C(0)};
  };
  auto tally = [](auto f, T& t, const cpu::Spread<C>& s) {
    double* sums[] = {t.sum(0), t.sum(1), t.sum(2), t.sum(3), t.sum(4)};
    f(t.x, t.rows, t.cols, s, sums);
  };
  group.add("tally/order", &Set::tally, {1}, [=](auto f, T& t) { tally(f, t, order(t)); });
  group.add("tally/largest", &Set::tally, {1}, [=](auto f, T& t) { tally(f, t, largest(t)); });
  group.add("peak", &Set::peak, {1},
            [=](auto f, T& t) { f(t.x, t.rows, t.cols, largest(t), t.sum(0)); });
  group.add("outliers", &Set::outliers, {1}, [=](auto f, T& t) {
    static Index cells[kElements];
    f(t.x, t.rows, t.cols, largest(t), t.buffer(0), cells, t.size());
  });
  group.add("slope_grad/order", &Set::slope_grad, {3},
            [=](auto f, T& t) { f(t.dy, t.x, t.y, t.rows, t.cols, gradient(t), order(t)); });
  group.add("slope_grad/largest", &Set::slope_grad, {3},
            [=](auto f, T& t) { f(t.dy, t.x, t.y, t.rows, t.cols, gradient(t), largest(t)); });
}

template <class C>
void add_matrix(KernelRegistry& registry, DType dtype, const cpu::KernelSet<C>& set) {
  using Set = cpu::MatrixKernels<C>;
  using T = Tile<C>;
  Group<C, Set> group(registry, "matrix/", dtype, set.matrix);
  group.add("dot", &Set::dot, {1}, [](auto f, T& t) { f(t.x, t.rows, t.cols, t.c, t.sum(0)); });
  group.add("accumulate", &Set::accumulate, {1},
            [](auto f, T& t) { f(t.x, t.rows, t.cols, t.c, t.buffer(0)); });
  group.add("narrow", &Set::narrow, {0, 1, 1},
            [](auto f, T& t) { f(t.sum(0), t.size(), t.buffer(0)); });
  group.add("drain", &Set::drain, {0, 2, 2},
            [](auto f, T& t) { f(t.buffer(0), t.size(), 0.5, t.sum(0)); });
  group.add("add_rank_one", &Set::add_rank_one, {2},
            [](auto f, T& t) { f(t.x, t.y, t.rows, t.cols, C(0.5), C(0.5), t.c, t.c); });
}

// Between a tile and a buffer of the compute type, whose rows are channels.
template <class C>
void add_pixels(KernelRegistry& registry, DType dtype, const cpu::KernelSet<C>& set) {
  using Set = cpu::PixelKernels<C>;
  using T = Tile<C>;
  Group<C, Set> group(registry, "pixels/", dtype, set.pixels);
  auto channels = [](const T& t) { return t.orientation == cpu::kRows ? t.rows : t.cols; };
  auto pixels = [](const T& t) { return t.orientation == cpu::kRows ? t.cols : t.rows; };
  // The last vectors are filled up: by less than 32.
  auto stride = [=](const T& t) { return pixels(t) + 32; };
  group.add("load", &Set::load, {1, 1}, [=](auto f, T& t) {
    f(t.x, channels(t), pixels(t), C(1), t.buffer(0), stride(t), t.buffer(1));
  });
  group.add("store", &Set::store, {1, 1}, [=](auto f, T& t) {
    f(t.buffer(0), stride(t), t.y, channels(t), pixels(t), t.buffer(1));
  });
  add_mix<C>(registry, dtype, set.pixels);
}

template <class C>
void add_windows(KernelRegistry& registry, DType dtype, const cpu::KernelSet<C>& set) {
  using Set = cpu::WindowKernels<C>;
  using T = Tile<C>;
  Group<C, Set> group(registry, "windows/", dtype, set.windows);
  // Five rows together, as across five channels; and what Krizhevsky's network takes of them.
  auto five = [](const T& t) { return cpu::Window{t.cols, t.cols, 5}; };
  constexpr cpu::Response<C> kResponse{C(1), C(2e-5), C(0.75)};
  group.add("squares", &Set::squares, {1, 1},
            [](auto f, T& t) { f(t.x, t.rows, t.cols, t.buffer(0), t.cols); });
  group.add("sums/5", &Set::sums, {0, 2},
            [](auto f, T& t) { f(t.buffer(0), t.buffer(1), t.size(), 1, 5); });
  group.add("sums/16", &Set::sums, {0, 2},
            [](auto f, T& t) { f(t.buffer(0), t.buffer(1), t.size(), 1, 16); });
  group.add("response", &Set::response, {2, 1},
            [=](auto f, T& t) { f(t.x, t.y, t.rows, t.cols, t.buffer(0), five(t), kResponse); });
  group.add("response_terms", &Set::response_terms, {2, 3}, [=](auto f, T& t) {
    f(t.dy, t.x, t.rows, t.cols, t.buffer(0), five(t), kResponse, t.buffer(1), t.buffer(2));
  });
  group.add("response_grad", &Set::response_grad, {2, 2}, [=](auto f, T& t) {
    f(t.x, t.y, t.rows, t.cols, t.buffer(1), t.buffer(2), five(t), C(0.5));
  });
  auto divisor = [](const T& t) { return cpu::Divisor<C>{t.c, t.c, t.c, t.c, t.c, t.c}; };
  group.add("divide", &Set::divide, {2},
            [=](auto f, T& t) { f(t.x, t.y, t.rows, t.cols, divisor(t), t.c); });
  group.add("divided_sums", &Set::divided_sums, {2}, [=](auto f, T& t) {
    f(t.dy, t.x, t.rows, t.cols, divisor(t), t.sum(0), t.sum(1), {t.sum(2), t.sum(3), t.sum(4)});
  });
  group.add("divided_grad", &Set::divided_grad, {3},
            [=](auto f, T& t) { f(t.dy, t.x, t.y, t.rows, t.cols, divisor(t), t.c, t.c); });
}

// The probes are in no table of the library: these call them by name.
template <class C, class F>
void add_elementary(const KernelRegistry& registry, const char* name, F call) {
  registry.add(std::string("elementary/") + name + "/" + short_name(DTypeOf<C>::value),
               [=](benchmark::State& state) {
                 Tile<C> t(DTypeOf<C>::value, cpu::kRows);
                 const C* x = static_cast<const C*>(t.x.data);
                 const double bytes = 2.0 * sizeof(C) * double(t.size());
                 run_kernel(state, bytes, 0, [&] { call(x, t.buffer(0), t.size()); });
               });
}
template <class C>
void add_probes(const KernelRegistry& registry, probes::Elementary<C> probes::ProbeTable::* of) {
  const auto& dtypes = registry.options().dtypes;
  if (std::find(dtypes.begin(), dtypes.end(), DTypeOf<C>::value) == dtypes.end()) return;
  auto all = [=]() -> const auto& { return probes::probes().*of; };
  add_elementary<C>(registry, "exp", [=](const C* x, C* y, Index n) { all().exp(x, y, n); });
  add_elementary<C>(registry, "log", [=](const C* x, C* y, Index n) { all().log(x, y, n); });
  add_elementary<C>(registry, "pow",
                    [=](const C* x, C* y, Index n) { all().pow(x, C(1.3), y, n); });
}
void add_multiply_adds(const KernelRegistry& registry) {
  registry.add("multiply_adds", [](benchmark::State& state) {
    double flops = 0;
    float sink = 0.5f;
    for (auto _ : state) flops += probes::probes().multiply_adds(1 << 12, &sink);
    benchmark::DoNotOptimize(sink);
    state.counters["flops"] = benchmark::Counter(flops, benchmark::Counter::kIsRate);
  });
}

// What computes in the dtype of no tensor.
void add_table(KernelRegistry& registry, const cpu::KernelTable& table) {
  using Table = cpu::KernelTable;
  using T = Tile<float>;
  registry.cover(table.isa);
  registry.cover(table.vector_bytes);
  Group<float, Table> group(registry, "", DType::kFloat32, table);
  group.add("merge", &Table::merge, {0, 0, 6},
            [](auto f, T& t) { f(t.size(), 1, t.sum(0), t.sum(1), 1, t.sum(2), t.sum(3)); });
  // Of cells of 16 columns.
  group.add("join_moments", &Table::join_moments, {0, 0, 2},
            [](auto f, T& t) { f(t.size() / 16, 16, 8, t.sum(0), t.sum(1), t.sum(2), t.sum(3)); });
  group.add("join_sums", &Table::join_sums, {0, 0, 1},
            [](auto f, T& t) { f(t.size() / 16, 16, t.sum(0), t.sum(1)); });
  group.add("copy", &Table::copy, {2}, [](auto f, T& t) {
    f(t.x.data, t.y.data, std::size_t(t.size()) * sizeof(float), false);
  });
}

}  // namespace

void register_kernels(const Options& options) {
  KernelRegistry registry(options);
  const cpu::KernelTable& table = cpu::kernels();
  auto add_all = [&]<class C>(DType dtype, const cpu::KernelSet<C>& set) {
    add_set(registry, dtype, set);
    add_matrix(registry, dtype, set);
    add_pixels(registry, dtype, set);
    add_windows(registry, dtype, set);
  };
  add_all(DType::kFloat32, table.f32);
  add_all(DType::kBFloat16, table.bf16);
  add_all(DType::kFloat16, table.f16);
  add_all(DType::kFloat64, table.f64);
  add_mixing(registry, table.mixing32);
  add_mixing(registry, table.mixing64);
  add_table(registry, table);
  add_probes(registry, &probes::ProbeTable::f32);
  add_probes(registry, &probes::ProbeTable::f64);
  add_multiply_adds(registry);
  registry.check();
}

}  // namespace normcore::bench
