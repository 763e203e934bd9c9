// Every kernel of every instruction set that this CPU has, in every element type, against plain
// double arithmetic: hunts wrong tails, alignment, strides, streaming and prefetching, reads and
// writes outside the tile, and results that depend on which other cells share the tile.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "cpu/dispatch.h"
#include "support.h"

namespace normcore::cpu {
namespace {

using testing::Bytes;
using testing::Random;

// ---- what is computed on

// Vectors are 2 to 16 elements: every tail, and lengths around powers of two.
std::vector<Index> lengths() {
  std::vector<Index> n;
  for (Index i = 1; i <= 70; ++i) n.push_back(i);
  for (Index i : {127, 128, 129, 130, 511, 512, 513, 1000}) n.push_back(i);
  return n;
}

// An array [rows, cols] with `stride` elements from row to row, beginning `offset` elements into a
// cache line. What lies between the rows is poisoned.
class Tile {
 public:
  Tile(DType dtype, Index rows, Index cols, Index stride, Index offset)
      : dtype_(dtype),
        rows_(rows),
        cols_(cols),
        stride_(stride),
        offset_(offset),
        bytes_(std::size_t((offset + (rows - 1) * stride + cols) * Index(size_of(dtype)))) {}

  void fill(Random& random, double mean) {
    values_.resize(std::size_t(rows_ * cols_));
    for (Index r = 0; r < rows_; ++r) {
      for (Index c = 0; c < cols_; ++c) {
        set(r, c, testing::round_to(dtype_, mean + random.normal()));
      }
    }
  }
  void set(Index r, Index c, double v) {
    testing::put(dtype_, bytes_.data(), position(r, c), v);
    values_[std::size_t(r * cols_ + c)] = v;
  }
  // As it was filled, and as it is in memory.
  double at(Index r, Index c) const { return values_[std::size_t(r * cols_ + c)]; }
  double read(Index r, Index c) const {
    return testing::get(dtype_, bytes_.data(), position(r, c));
  }

  void* address(Index r, Index c) const {
    return bytes_.data() + position(r, c) * Index(size_of(dtype_));
  }
  In in(Index r, Index c, Index ahead) const { return {address(r, c), stride_, ahead}; }
  Out out(Index r, Index c, bool stream) const { return {address(r, c), stride_, stream}; }

  // Whether nothing but the tile was written.
  bool surroundings_untouched() const {
    const Index size = Index(size_of(dtype_));
    if (!bytes_.poisoned(0, std::size_t(offset_ * size))) return false;
    for (Index r = 0; r + 1 < rows_; ++r) {
      if (!bytes_.poisoned(std::size_t((position(r, 0) + cols_) * size),
                           std::size_t(position(r + 1, 0) * size))) {
        return false;
      }
    }
    return true;
  }

 private:
  Index position(Index r, Index c) const { return offset_ + r * stride_ + c; }

  DType dtype_;
  Index rows_, cols_, stride_, offset_;
  Bytes bytes_;
  std::vector<double> values_;
};

// Part of a tile that a kernel is called for, and how.
struct Part {
  Index r, c, rows, cols;
  Index ahead = 0;
};

// Operands and coefficients of every kernel.
template <class C>
struct Problem {
  DType dtype;
  Orientation orientation;
  Index rows, cols, padding, offset;
  Random random{7};
  Tile x, dy, dh;
  std::vector<C> a, b, center, unit, p, q, shift;  // per cell
  std::vector<C> weight, bias;                     // across the cells

  Problem(DType t, Orientation o, Index rows_in, Index cols_in, Index padding_in, Index offset_in)
      : dtype(t),
        orientation(o),
        rows(rows_in),
        cols(cols_in),
        padding(padding_in),
        offset(offset_in),
        x(make()),
        dy(make()),
        dh(make()) {
    x.fill(random, 3);
    dy.fill(random, 0.25);
    dh.fill(random, 0);
    for (auto* v : {&a, &b, &center, &unit, &p, &q, &shift}) numbers(v, cells());
    for (C& u : unit) u = C(std::ldexp(1, int(random.integer(-3, 3))));
    for (C& c : center) c += 3;
    for (auto* v : {&weight, &bias}) numbers(v, across());
  }

  Tile make() const { return Tile(dtype, rows, cols, cols + padding, offset); }
  Index cells() const { return orientation == kRows ? rows : cols; }
  Index across() const { return orientation == kRows ? cols : rows; }
  Part whole() const { return {0, 0, rows, cols}; }
  // Row or column k.
  Part line(Index k, bool row) const { return row ? Part{k, 0, 1, cols} : Part{0, k, rows, 1}; }

  In in(const Tile& t, const Part& part) const { return t.in(part.r, part.c, part.ahead); }
  const C* cell(const std::vector<C>& v, const Part& part) const {
    return v.data() + (orientation == kRows ? part.r : part.c);
  }
  const C* along(const std::vector<C>& v, const Part& part) const {
    return v.data() + (orientation == kRows ? part.c : part.r);
  }
  // The coefficient of element (r, c).
  double cell_at(const std::vector<C>& v, Index r, Index c) const {
    return double(v[std::size_t(orientation == kRows ? r : c)]);
  }
  double along_at(const std::vector<C>& v, Index r, Index c) const {
    return double(v[std::size_t(orientation == kRows ? c : r)]);
  }
  Affine<C> affine(const Part& t) const { return {cell(a, t), cell(center, t), cell(b, t)}; }
  Centering<C> centering(const Part& t) const { return {cell(center, t), cell(unit, t)}; }
  Gradient<C> gradient(const Part& t) const {
    return {cell(p, t), cell(q, t), cell(shift, t), centering(t)};
  }
  double u(Index r, Index c) const {
    return (x.at(r, c) - cell_at(center, r, c)) * cell_at(unit, r, c);
  }

 private:
  void numbers(std::vector<C>* v, Index n) {
    for (Index i = 0; i < n; ++i) v->push_back(C(random.normal()));
  }
};

// A number and the size of the terms that it is a sum of: rounding errors are relative to that.
struct Sum {
  double value = 0, size = 0;
  void add(double term) {
    value += term;
    size += std::abs(term);
  }
};

// ---- kernels that write a tile

template <class C>
struct Map {
  const char* name;
  void (*run)(const KernelSet<C>&, const Problem<C>&, const Part&, Out);
  Sum (*want)(const Problem<C>&, Index r, Index c);
};

template <class C>
Sum affine_sum(const Problem<C>& p, Index r, Index c) {
  Sum s;
  s.add(p.cell_at(p.a, r, c) * (p.x.at(r, c) - p.cell_at(p.center, r, c)));
  s.add(p.cell_at(p.b, r, c));
  return s;
}
template <class C>
Sum gradient_sum(const Problem<C>& p, Index r, Index c, double weight, double dh) {
  Sum s;
  s.add(p.cell_at(p.p, r, c) * weight * p.dy.at(r, c));
  s.add(p.cell_at(p.q, r, c) * p.u(r, c));
  s.add(p.cell_at(p.shift, r, c));
  s.add(dh);
  return s;
}

// The shift of a gradient with weights is that of weight * dy.
template <class C>
Sum weighted_sum(const Problem<C>& p, Index r, Index c, double dh) {
  Sum s;
  const double scale = p.cell_at(p.p, r, c);
  s.add(scale * p.along_at(p.weight, r, c) * p.dy.at(r, c));
  s.add(-scale * p.cell_at(p.shift, r, c));
  s.add(p.cell_at(p.q, r, c) * p.u(r, c));
  s.add(dh);
  return s;
}

template <class C>
std::vector<Map<C>> maps() {
  using K = const KernelSet<C>&;
  using P = const Problem<C>&;
  return {
      {"affine",
       [](K k, P p, const Part& t, Out y) {
         k.affine[p.orientation](p.in(p.x, t), y, t.rows, t.cols, p.affine(t));
       },
       affine_sum<C>},
      {"scale",
       [](K k, P p, const Part& t, Out y) {
         k.weighted_affine[p.orientation](p.in(p.x, t), y, t.rows, t.cols, p.affine(t),
                                          p.along(p.weight, t), p.along(p.bias, t));
       },
       [](P p, Index r, Index c) {
         const Sum inner = affine_sum(p, r, c);
         const double w = p.along_at(p.weight, r, c), b = p.along_at(p.bias, r, c);
         return Sum{w * inner.value + b, std::abs(w) * inner.size + std::abs(b)};
       }},
      {"grad",
       [](K k, P p, const Part& t, Out y) {
         k.grad[p.orientation](p.in(p.dy, t), p.in(p.x, t), y, t.rows, t.cols, p.gradient(t));
       },
       [](P p, Index r, Index c) { return gradient_sum(p, r, c, 1, 0); }},
      {"weighted_grad",
       [](K k, P p, const Part& t, Out y) {
         k.weighted_grad[p.orientation](p.in(p.dy, t), p.in(p.x, t), In{nullptr, 0}, y, t.rows,
                                        t.cols, p.gradient(t), p.along(p.weight, t));
       },
       [](P p, Index r, Index c) { return weighted_sum(p, r, c, 0); }},
      {"weighted_grad with dh",
       [](K k, P p, const Part& t, Out y) {
         k.weighted_grad[p.orientation](p.in(p.dy, t), p.in(p.x, t), p.in(p.dh, t), y, t.rows,
                                        t.cols, p.gradient(t), p.along(p.weight, t));
       },
       [](P p, Index r, Index c) { return weighted_sum(p, r, c, p.dh.at(r, c)); }},
      {"add",
       [](K k, P p, const Part& t, Out y) {
         k.add(p.in(p.x, t), p.in(p.dh, t), y, t.rows, t.cols);
       },
       [](P p, Index r, Index c) {
         Sum s;
         s.add(p.x.at(r, c));
         s.add(p.dh.at(r, c));
         return s;
       }},
  };
}

// ---- kernels that reduce a tile to two numbers per line: rows or columns

using Numbers = std::array<std::vector<double>, 2>;

template <class C>
struct Reduction {
  const char* name;
  bool across;  // lines run across the cells, not along them
  void (*run)(const KernelSet<C>&, const Problem<C>&, const Part&, Numbers&);
  // What element (r, c) adds to each; null for moments, which are not sums.
  void (*terms)(const Problem<C>&, Index r, Index c, Sum (&sums)[2]);

  bool by_row(const Problem<C>& p) const { return (p.orientation == kRows) != across; }
  Index lines(const Problem<C>& p) const { return across ? p.across() : p.cells(); }
};

// parameter_sums adds to what is there.
constexpr double kBefore = 0.5;

template <class C>
std::vector<Reduction<C>> reductions() {
  using K = const KernelSet<C>&;
  using P = const Problem<C>&;
  return {
      {"moments", false,
       [](K k, P p, const Part& t, Numbers& out) {
         k.moments[p.orientation](p.in(p.x, t), t.rows, t.cols, out[0].data(), out[1].data());
       },
       nullptr},
      {"squares", false,
       [](K k, P p, const Part& t, Numbers& out) {
         k.squares[p.orientation](p.in(p.x, t), t.rows, t.cols, out[0].data(), out[1].data());
       },
       [](P p, Index r, Index c, Sum(&s)[2]) { s[1].add(p.x.at(r, c) * p.x.at(r, c)); }},
      {"sums", false,
       [](K k, P p, const Part& t, Numbers& out) {
         k.sums[p.orientation](p.in(p.dy, t), p.in(p.x, t), t.rows, t.cols, p.centering(t),
                               out[0].data(), out[1].data());
       },
       [](P p, Index r, Index c, Sum(&s)[2]) {
         s[0].add(p.dy.at(r, c) * p.u(r, c));
         s[1].add(p.dy.at(r, c));
       }},
      {"weighted_sums", false,
       [](K k, P p, const Part& t, Numbers& out) {
         k.weighted_sums[p.orientation](p.in(p.dy, t), p.in(p.x, t), t.rows, t.cols, p.centering(t),
                                        p.along(p.weight, t), out[0].data(), out[1].data());
       },
       [](P p, Index r, Index c, Sum(&s)[2]) {
         const double g = p.along_at(p.weight, r, c) * p.dy.at(r, c);
         s[0].add(g * p.u(r, c));
         s[1].add(g);
       }},
      {"parameter_sums", true,
       [](K k, P p, const Part& t, Numbers& out) {
         const std::size_t n = out[0].size();
         std::vector<C> dweight(n, C(kBefore)), dbias(n, C(kBefore));
         k.parameter_sums[p.orientation](p.in(p.dy, t), p.in(p.x, t), t.rows, t.cols, p.affine(t),
                                         dweight.data(), dbias.data());
         std::copy(dweight.begin(), dweight.end(), out[0].begin());
         std::copy(dbias.begin(), dbias.end(), out[1].begin());
       },
       [](P p, Index r, Index c, Sum(&s)[2]) {
         const Sum xhat = affine_sum(p, r, c);
         s[0].value += p.dy.at(r, c) * xhat.value;
         s[0].size += std::abs(p.dy.at(r, c)) * xhat.size;
         s[1].add(p.dy.at(r, c));
       }},
  };
}

template <class C>
Numbers reduce(const Reduction<C>& kernel, const KernelSet<C>& set, const Problem<C>& problem,
               const Part& part, Index lines) {
  Numbers out;
  for (auto& v : out) v.assign(std::size_t(lines), NAN);
  kernel.run(set, problem, part, out);
  return out;
}

// ---- the tests

struct KernelCase {
  std::string isa;
  DType dtype;
};
void PrintTo(const KernelCase& c, std::ostream* out) { *out << c.isa << ' ' << name_of(c.dtype); }

class Kernels : public ::testing::TestWithParam<KernelCase> {
 protected:
  void SetUp() override {
    initial_ = get_isa();
    set_isa(GetParam().isa);
    ASSERT_EQ(kernels().isa, GetParam().isa);
  }
  void TearDown() override { set_isa(initial_); }

  DType dtype() const { return GetParam().dtype; }
  std::string initial_;

  // f.operator()<C>(kernels of this element type).
  template <class F>
  void with_set(F&& f) const {
    if (dtype() == DType::kFloat64) {
      f(kernel_set<double>(kernels(), dtype()));
    } else {
      f(kernel_set<float>(kernels(), dtype()));
    }
  }

  // Every length as the number of columns and as the number of rows, the other side, the padding
  // between rows and the place in the cache line varying alongside.
  template <class C, class F>
  void each_problem(F&& f) const {
    constexpr Index kOther[] = {1, 3, 4, 5, 8, 9, 17, 2};
    Index i = 0;
    for (Index n : lengths()) {
      for (const Orientation o : {kRows, kCols}) {
        for (int way = 0; way < 4; ++way, ++i) {
          const Index other = kOther[i % 8], padding = i % 3 == 0 ? 0 : i % 7 * 3;
          const Index offset = i / 2 % 3 == 0 ? 0 : i % 16;
          const bool long_rows = way % 2 == 0;
          if (way >= 2 && n > 130) continue;
          f(Problem<C>(dtype(), o, long_rows ? other : n, long_rows ? n : other, padding, offset));
          if (HasFatalFailure()) return;
        }
      }
    }
    // Many short rows without a gap, on the lines and off them.
    for (const Index cols : {16, 20, 32, 33, 64, 96, 128, 250}) {
      for (const Orientation o : {kRows, kCols}) {
        for (const Index offset : {0, 1, 4, 15}) {
          f(Problem<C>(dtype(), o, 70, cols, 0, offset));
          if (HasFatalFailure()) return;
        }
      }
    }
  }

  template <class C>
  static std::string describe(const char* kernel, const Problem<C>& p) {
    return std::string(kernel) + (p.orientation == kRows ? " rows " : " columns ") +
           std::to_string(p.rows) + "x" + std::to_string(p.cols) + " padding " +
           std::to_string(p.padding) + " offset " + std::to_string(p.offset);
  }
};

TEST_P(Kernels, TilesMatchDoubleArithmeticAndStayInside) {
  const double u = testing::compute_rounding(dtype()), storage = testing::rounding(dtype());
  with_set([&]<class C>(const KernelSet<C>& set) {
    each_problem<C>([&](const Problem<C>& p) {
      for (const Map<C>& kernel : maps<C>()) {
        for (const bool stream : {false, true}) {
          const Tile y = p.make();
          kernel.run(set, p, p.whole(), y.out(0, 0, stream));
          ASSERT_TRUE(y.surroundings_untouched()) << describe(kernel.name, p);
          for (Index r = 0; r < p.rows; ++r) {
            for (Index c = 0; c < p.cols; ++c) {
              const Sum want = kernel.want(p, r, c);
              // At most eight operations in the compute type, then one rounding to storage.
              const double tolerance = 8 * u * want.size + storage * std::abs(want.value) +
                                       testing::smallest_rounding(dtype());
              ASSERT_NEAR(y.read(r, c), want.value, tolerance)
                  << describe(kernel.name, p) << " at " << r << ", " << c << " stream " << stream;
            }
          }
        }
      }
    });
  });
}

TEST_P(Kernels, AnElementDoesNotDependOnItsTileStreamingOrPrefetching) {
  with_set([&]<class C>(const KernelSet<C>& set) {
    each_problem<C>([&](const Problem<C>& p) {
      Random random(unsigned(p.rows * 1009 + p.cols));
      for (const Map<C>& kernel : maps<C>()) {
        const Tile whole = p.make(), other = p.make();
        kernel.run(set, p, p.whole(), whole.out(0, 0, false));
        Part part = p.whole();
        part.ahead = random.integer(-5000, 5000);
        auto same = [&](const char* what, bool stream) {
          kernel.run(set, p, part, other.out(part.r, part.c, stream));
          for (Index r = part.r; r < part.r + part.rows; ++r) {
            ASSERT_EQ(std::memcmp(whole.address(r, part.c), other.address(r, part.c),
                                  std::size_t(part.cols) * size_of(p.dtype)),
                      0)
                << describe(kernel.name, p) << ' ' << what << " at row " << r;
          }
        };
        same("with prefetching", false);
        same("streamed", true);
        for (int i = 0; i < 2; ++i) {
          const Index r = random.integer(0, p.rows - 1), c = random.integer(0, p.cols - 1);
          part = {r, c, random.integer(1, p.rows - r), random.integer(1, p.cols - c)};
          same("alone", i == 1);
        }
      }
    });
  });
}

TEST_P(Kernels, TwoPhasesInOneLoopGiveTheBitsOfEach) {
  with_set([&]<class C>(const KernelSet<C>& set) {
    auto check = [&](const Problem<C>& p) {
      if (p.orientation != kRows) return;
      const std::size_t n = std::size_t(p.rows);
      const std::size_t bytes = std::size_t(p.cols) * size_of(p.dtype);
      Part part = p.whole();
      for (const bool weighted : {false, true}) {
        const C* weight = weighted ? p.along(p.weight, part) : nullptr;
        const C* bias = weighted ? p.along(p.bias, part) : nullptr;
        for (const bool raw : {false, true}) {
          const bool stream = raw != weighted;
          part.ahead = raw ? 0 : 100;
          const Tile want = p.make(), got = p.make();
          Numbers alone, beside;
          for (Numbers* m : {&alone, &beside}) m->fill(std::vector<double>(n, NAN));
          (raw ? set.squares : set.moments)[kRows](p.in(p.dy, part), p.rows, p.cols,
                                                   alone[0].data(), alone[1].data());
          if (weighted) {
            set.weighted_affine[kRows](p.in(p.x, part), want.out(0, 0, false), p.rows, p.cols,
                                       p.affine(part), weight, bias);
          } else {
            set.affine[kRows](p.in(p.x, part), want.out(0, 0, false), p.rows, p.cols,
                              p.affine(part));
          }
          set.affine_moments[weighted][raw](p.in(p.x, part), got.out(0, 0, stream), p.rows, p.cols,
                                            p.affine(part), weight, bias, p.in(p.dy, part),
                                            beside[0].data(), beside[1].data());
          const std::string what = describe("affine_moments", p) + (weighted ? " weighted" : "") +
                                   (raw ? " squares" : "");
          ASSERT_EQ(alone, beside) << what;
          ASSERT_TRUE(got.surroundings_untouched()) << what;
          for (Index r = 0; r < p.rows; ++r) {
            ASSERT_EQ(std::memcmp(want.address(r, 0), got.address(r, 0), bytes), 0)
                << what << " at row " << r;
          }
        }
      }
    };
    each_problem<C>(check);
    // Long enough for strips.
    for (const Index cols : {1536, 3072, 3101, 4133}) {
      for (const Index rows : {4, 9}) {
        for (const Index offset : {0, 3}) check(Problem<C>(dtype(), kRows, rows, cols, 0, offset));
        if (HasFatalFailure()) return;
      }
    }
  });
}

TEST_P(Kernels, SumsAndParametersInOneLoopGiveTheBitsOfEach) {
  with_set([&]<class C>(const KernelSet<C>& set) {
    each_problem<C>([&](const Problem<C>& p) {
      const Part t = p.whole();
      const std::size_t cells = std::size_t(p.cells()), across = std::size_t(p.across());
      Numbers alone, together;
      for (Numbers* sums : {&alone, &together}) sums->fill(std::vector<double>(cells, NAN));
      std::array<std::vector<C>, 2> apart, beside;
      for (auto* of : {&apart, &beside}) of->fill(std::vector<C>(across, C(kBefore)));
      set.weighted_sums[p.orientation](p.in(p.dy, t), p.in(p.x, t), t.rows, t.cols, p.centering(t),
                                       p.along(p.weight, t), alone[0].data(), alone[1].data());
      set.parameter_sums[p.orientation](p.in(p.dy, t), p.in(p.x, t), t.rows, t.cols, p.affine(t),
                                        apart[0].data(), apart[1].data());
      set.sums_and_parameters[p.orientation](
          p.in(p.dy, t), p.in(p.x, t), t.rows, t.cols, p.centering(t), p.along(p.weight, t),
          together[0].data(), together[1].data(), p.affine(t), beside[0].data(), beside[1].data());
      ASSERT_EQ(alone, together) << describe("sums_and_parameters", p);
      ASSERT_EQ(apart, beside) << describe("sums_and_parameters", p);
    });
  });
}

TEST_P(Kernels, ReductionsMatchDoubleArithmetic) {
  const double u = testing::compute_rounding(dtype());
  with_set([&]<class C>(const KernelSet<C>& set) {
    each_problem<C>([&](const Problem<C>& p) {
      for (const Reduction<C>& kernel : reductions<C>()) {
        const Index lines = kernel.lines(p);
        const bool by_row = kernel.by_row(p);
        const Index n = by_row ? p.cols : p.rows;
        const Numbers got = reduce(kernel, set, p, p.whole(), lines);
        // Each of n additions may round what has come together so far, by half in the mean.
        const double relative = u * (8 + 0.5 * double(n));
        for (Index k = 0; k < lines; ++k) {
          Sum want[2];
          auto each = [&](auto f) {
            for (Index i = 0; i < n; ++i) by_row ? f(k, i) : f(i, k);
          };
          if (kernel.terms) {
            each([&](Index r, Index c) { kernel.terms(p, r, c, want); });
            if (kernel.across) {
              for (Sum& s : want) s.add(kBefore);
            }
          } else {
            long double sum = 0;
            each([&](Index r, Index c) { sum += p.x.at(r, c); });
            const double mean = double(sum / n);
            double far = 0;
            each([&](Index r, Index c) {
              const double d = p.x.at(r, c) - mean;
              want[1].value += d * d;
              far = std::max(far, std::abs(d));
            });
            // Sums are taken around one of the elements' sample means, at most `far` away.
            want[0] = {mean, far + u * std::abs(mean)};
            want[1].size = 4 * want[1].value + u * mean * mean;
          }
          for (int i = 0; i < 2; ++i) {
            ASSERT_NEAR(got[std::size_t(i)][std::size_t(k)], want[i].value,
                        relative * want[i].size + 0x1p-52 * std::abs(want[i].value))
                << describe(kernel.name, p) << " result " << i << " of line " << k;
          }
        }
      }
    });
  });
}

TEST_P(Kernels, ALineReducesToTheSameBitsAloneAndWithPrefetching) {
  with_set([&]<class C>(const KernelSet<C>& set) {
    each_problem<C>([&](const Problem<C>& p) {
      for (const Reduction<C>& kernel : reductions<C>()) {
        const Index lines = kernel.lines(p);
        const Numbers whole = reduce(kernel, set, p, p.whole(), lines);
        Part ahead = p.whole();
        ahead.ahead = 777;
        const Numbers prefetched = reduce(kernel, set, p, ahead, lines);
        for (std::size_t i = 0; i < 2; ++i) {
          ASSERT_EQ(whole[i], prefetched[i]) << describe(kernel.name, p);
        }
        for (Index k = 0; k < lines; k += 1 + lines / 8) {
          const Numbers alone = reduce(kernel, set, p, p.line(k, kernel.by_row(p)), 1);
          for (std::size_t i = 0; i < 2; ++i) {
            ASSERT_EQ(whole[i][std::size_t(k)], alone[i][0])
                << describe(kernel.name, p) << " line " << k;
          }
        }
      }
    });
  });
}

TEST_P(Kernels, MomentsSurviveAnyMagnitude) {
  const testing::Format format = testing::format_of(dtype());
  with_set([&]<class C>(const KernelSet<C>& set) {
    for (const Orientation o : {kRows, kCols}) {
      for (const Index n : {5, 100}) {
        for (const double share : {-0.9, -0.6, 0.6, 0.9}) {
          // A power of two, so that the scaled numbers are as exact as the plain ones. Squares must
          // be a double: float's range is promised to float64 too.
          const int low = std::min(126, -format.min_exponent);
          const int high = std::min(126, std::ilogb(format.max));
          const int e = int(share * (share < 0 ? low : high));
          Problem<C> p(dtype(), o, o == kRows ? 3 : n, o == kRows ? n : 3, 0, 0);
          for (Index r = 0; r < p.rows; ++r) {
            for (Index c = 0; c < p.cols; ++c) {
              p.x.set(r, c, testing::round_to(dtype(), std::ldexp(p.x.at(r, c), e)));
            }
          }
          for (const bool raw : {false, true}) {
            double mean[3], m2[3];
            (raw ? set.squares : set.moments)[o](p.x.in(0, 0, 0), p.rows, p.cols, mean, m2);
            for (Index k = 0; k < 3; ++k) {
              auto x = [&](Index i) {
                return std::ldexp(p.line(k, o == kRows).rows == 1 ? p.x.at(k, i) : p.x.at(i, k),
                                  -e);
              };
              double want_mean = 0, want_m2 = 0;
              for (Index i = 0; !raw && i < n; ++i) want_mean += x(i) / double(n);
              for (Index i = 0; i < n; ++i) want_m2 += (x(i) - want_mean) * (x(i) - want_mean);
              // Subnormal halves keep few digits, but these were rounded before.
              const double u = testing::compute_rounding(dtype()) * (8 + double(n));
              EXPECT_NEAR(std::ldexp(mean[k], -e), want_mean, 4 * u) << n << " 2^" << e;
              EXPECT_NEAR(std::ldexp(m2[k], -2 * e) / want_m2, 1, 4 * u)
                  << n << " elements at 2^" << e << " raw " << raw;
            }
          }
        }
      }
    }
  });
}

TEST_P(Kernels, ConstantCellsHaveNoDeviationAndZeroNoSquare) {
  with_set([&]<class C>(const KernelSet<C>& set) {
    for (const Orientation o : {kRows, kCols}) {
      for (const Index n : {1, 2, 4, 64, 256}) {  // means of powers of two are exact
        Problem<C> p(dtype(), o, o == kRows ? 2 : n, o == kRows ? n : 2, 0, 0);
        for (Index r = 0; r < p.rows; ++r) {
          for (Index c = 0; c < p.cols; ++c) p.x.set(r, c, (o == kRows ? r : c) == 0 ? 0 : 1.25);
        }
        double mean[2], m2[2];
        set.moments[o](p.x.in(0, 0, 0), p.rows, p.cols, mean, m2);
        EXPECT_EQ(mean[0], 0);
        EXPECT_EQ(mean[1], 1.25);
        EXPECT_EQ(m2[0], 0);
        EXPECT_EQ(m2[1], 0);
        set.squares[o](p.x.in(0, 0, 0), p.rows, p.cols, mean, m2);
        EXPECT_EQ(m2[0], 0);
        EXPECT_EQ(m2[1], double(n) * 1.5625);
      }
    }
  });
}

TEST_P(Kernels, NaNAndInfinityStayInTheirCell) {
  with_set([&]<class C>(const KernelSet<C>& set) {
    for (const Orientation o : {kRows, kCols}) {
      for (const Index n : {1, 3, 40, 200}) {
        Problem<C> p(dtype(), o, o == kRows ? 5 : n, o == kRows ? n : 5, 0, 0);
        Numbers before, after;
        for (auto* v : {&before, &after}) {
          for (auto& numbers : *v) numbers.resize(5);
        }
        set.moments[o](p.x.in(0, 0, 0), p.rows, p.cols, before[0].data(), before[1].data());
        auto spoil = [&](Index cell, double v) {
          o == kRows ? p.x.set(cell, n - 1, v) : p.x.set(n - 1, cell, v);
        };
        spoil(1, NAN);
        spoil(3, INFINITY);
        set.moments[o](p.x.in(0, 0, 0), p.rows, p.cols, after[0].data(), after[1].data());
        for (std::size_t k = 0; k < 5; ++k) {
          if (k == 1 || k == 3) {
            EXPECT_TRUE(std::isnan(after[1][k])) << n << " cell " << k << " is " << after[1][k];
            EXPECT_FALSE(std::isfinite(after[0][k])) << n << " cell " << k;
          } else {
            EXPECT_EQ(before[0][k], after[0][k]);
            EXPECT_EQ(before[1][k], after[1][k]);
          }
        }
      }
    }
  });
}

// ---- conversions

// Converts through the kernel in runs of `run` elements, so that tails convert like the middle.
template <class C>
void check_load(const KernelSet<C>& set, DType dtype, const std::vector<double>& values,
                Index run) {
  const std::size_t size = size_of(dtype);
  for (std::size_t first = 0; first < values.size(); first += std::size_t(run)) {
    const std::size_t n = std::min(std::size_t(run), values.size() - first);
    const Bytes source(n * size);
    std::vector<C> got(n + 1, C(-77));
    for (std::size_t i = 0; i < n; ++i) {
      testing::put(dtype, source.data(), Index(i), values[first + i]);
    }
    set.load(source.data(), got.data(), Index(n));
    for (std::size_t i = 0; i < n; ++i) {
      const C want = C(values[first + i]);
      ASSERT_EQ(std::memcmp(&got[i], &want, sizeof(C)), 0)
          << values[first + i] << " loaded as " << got[i];
    }
    ASSERT_EQ(got[n], C(-77));
  }
}
template <class C>
void check_store(const KernelSet<C>& set, DType dtype, const std::vector<C>& values, Index run) {
  const std::size_t size = size_of(dtype);
  for (std::size_t first = 0; first < values.size(); first += std::size_t(run)) {
    const std::size_t n = std::min(std::size_t(run), values.size() - first);
    const std::vector<C> source(values.begin() + Index(first), values.begin() + Index(first + n));
    const Bytes got((n + 1) * size), want(n * size);
    set.store(source.data(), got.data(), Index(n));
    for (std::size_t i = 0; i < n; ++i) {
      testing::put(dtype, want.data(), Index(i), double(source[i]));
      ASSERT_EQ(std::memcmp(got.data() + i * size, want.data() + i * size, size), 0)
          << source[i] << " stored as " << testing::get(dtype, got.data(), Index(i));
    }
    ASSERT_TRUE(got.poisoned(n * size, (n + 1) * size));
  }
}

TEST_P(Kernels, ConversionsAreExactOrRoundedOnceToNearestEven) {
  with_set([&]<class C>(const KernelSet<C>& set) {
    // Every number of a 16-bit type, as many of the others.
    std::vector<double> numbers;
    Random random(3);
    for (int bits = 0; bits < 0x10000; ++bits) {
      const double v = size_of(dtype()) == 2
                           ? testing::value_of(dtype(), std::uint16_t(bits))
                           : testing::round_to(dtype(), std::ldexp(random.normal(),
                                                                   int(random.integer(-149, 127))));
      if (!std::isnan(v)) numbers.push_back(v);
    }
    // Between neighbours: the middle, and one step of the compute type to either side of it.
    std::vector<C> between;
    for (const double v : numbers) {
      const C exact = C(v);
      C middle = exact;
      if (size_of(dtype()) == 2 && std::isfinite(exact)) {
        middle = C(v * (1 + testing::rounding(dtype())));
        if (std::abs(v) < std::ldexp(1, testing::format_of(dtype()).min_exponent)) {
          middle = C(v + testing::smallest_rounding(dtype()));
        }
      }
      for (const C c : {exact, middle, std::nextafter(middle, C(INFINITY)),
                        std::nextafter(middle, C(-INFINITY))}) {
        between.push_back(c);
      }
    }
    for (const Index run : {4096, 37}) {
      check_load(set, dtype(), numbers, run);
      check_store(set, dtype(), between, run);
    }
  });
}

TEST_P(Kernels, NaNStaysNaNThroughConversions) {
  with_set([&]<class C>(const KernelSet<C>& set) {
    // Payloads at both ends: a careless rounding turns the one into infinity, the other into zero.
    for (const std::uint64_t payload : {0x1ull, 0x7fffffull, 0x400000ull, 0x1000ull}) {
      constexpr Index n = 63;  // of vectors of 4, 8 or 16: pairs, one alone, and a part
      C nan[n];
      for (C& v : nan) {
        const std::uint64_t wide = 0x7ff0000000000000ull | payload << 29 | 1;
        const std::uint32_t narrow = std::uint32_t(0x7f800000u | payload);
        std::memcpy(&v, sizeof(C) == 8 ? static_cast<const void*>(&wide) : &narrow, sizeof(C));
      }
      alignas(8) unsigned char stored[n * 8];
      C loaded[n] = {};
      set.store(nan, stored, n);
      set.load(stored, loaded, n);
      for (const C v : loaded) EXPECT_TRUE(std::isnan(v)) << payload;
    }
  });
}

std::vector<KernelCase> kernel_cases() {
  std::vector<KernelCase> cases;
  for (const std::string& isa : testing::every_isa()) {
    for (const DType t : testing::kDTypes) cases.push_back({isa, t});
  }
  return cases;
}
INSTANTIATE_TEST_SUITE_P(All, Kernels, ::testing::ValuesIn(kernel_cases()), [](const auto& info) {
  return testing::test_name(info.param.isa) + "_" + testing::test_name(info.param.dtype);
});

// ---- kernels without an element type

class Tables : public ::testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    initial_ = get_isa();
    set_isa(GetParam());
  }
  void TearDown() override { set_isa(initial_); }
  std::string initial_;
};

TEST_P(Tables, MergeIsThatOfMeansAndSquaresAtAnyLengthAndPlace) {
  Random random(11);
  for (const Index n : lengths()) {
    const std::size_t size = std::size_t(n) + 2, first = std::size_t(n % 2);
    std::vector<double> mean_a(size, -5), m2_a(size, -5), mean_b(size), m2_b(size);
    for (std::size_t i = first; i < first + std::size_t(n); ++i) {
      mean_a[i] = random.normal(), m2_a[i] = random.uniform();
      mean_b[i] = random.normal(), m2_b[i] = random.uniform();
    }
    const std::vector<double> mean = mean_a, m2 = m2_a;
    const double na = double(random.integer(1, 100)), nb = double(random.integer(1, 100));
    kernels().merge(n, na, mean_a.data() + first, m2_a.data() + first, nb, mean_b.data() + first,
                    m2_b.data() + first);
    for (std::size_t i = 0; i < size; ++i) {
      if (i < first || i >= first + std::size_t(n)) {
        ASSERT_EQ(mean_a[i], -5);
        ASSERT_EQ(m2_a[i], -5);
        continue;
      }
      const double want = (na * mean[i] + nb * mean_b[i]) / (na + nb);
      const double da = mean[i] - want, db = mean_b[i] - want;
      ASSERT_NEAR(mean_a[i], want, 1e-14);
      ASSERT_NEAR(m2_a[i], m2[i] + m2_b[i] + na * da * da + nb * db * db, 1e-12);
    }
  }
}

TEST_P(Tables, CellsOfSeveralColumnsHaveTheMomentsAndSumsOfThem) {
  Random random(12);
  for (const Index cells : {1, 3, 4, 9}) {
    for (Index columns = 2; columns <= 130; columns += columns < 40 ? 1 : 15) {
      const std::size_t n = std::size_t(cells * columns), size = std::size_t(cells) + 1;
      // Far from 0, and the first cell of equal means, which it has for a mean to the bit.
      std::vector<double> mean(n), m2(n), of_cells(size, -5), squares(size, -5), sums(size, -5);
      for (std::size_t i = 0; i < n; ++i) {
        mean[i] = i < std::size_t(columns) ? 1e6 / 3 : 1e6 + random.normal();
        m2[i] = random.uniform();
      }
      const double count = double(random.integer(1, 100));
      kernels().join_moments(cells, columns, count, mean.data(), m2.data(), of_cells.data(),
                             squares.data());
      kernels().join_sums(cells, columns, m2.data(), sums.data());
      for (std::size_t k = 0; k < std::size_t(cells); ++k) {
        const double* const means = mean.data() + k * std::size_t(columns);
        const double* const parts = m2.data() + k * std::size_t(columns);
        double shift = 0, within = 0, between = 0;
        for (Index i = 0; i < columns; ++i) shift += (means[i] - means[0]) / double(columns);
        for (Index i = 0; i < columns; ++i) {
          within += parts[i];
          between += count * std::pow(means[i] - means[0] - shift, 2);
        }
        ASSERT_NEAR(of_cells[k], means[0] + shift, k == 0 ? 0 : 1e-9) << columns;
        // Differences of numbers near 1e6 have ten digits left.
        ASSERT_NEAR(squares[k], within + between, 1e-8 * (within + between)) << columns;
        ASSERT_NEAR(sums[k], within, 1e-14 * within * double(columns)) << columns;
      }
      ASSERT_EQ(of_cells.back(), -5);
      ASSERT_EQ(squares.back(), -5);
      ASSERT_EQ(sums.back(), -5);
    }
  }
  // An infinite mean is that of its cell, as of a cell of one column.
  const double inf = INFINITY, means[] = {inf, 1, inf, inf}, none[] = {0, 0, 0, 0};
  double mean[2], m2[2];
  kernels().join_moments(2, 2, 3, means, none, mean, m2);
  EXPECT_EQ(mean[0], inf);
  EXPECT_EQ(mean[1], inf);
  EXPECT_TRUE(std::isnan(m2[0]) && std::isnan(m2[1]));
}

TEST_P(Tables, RepeatGivesEveryColumnTheValueOfItsCell) {
  auto check = [](auto repeat, auto zero) {
    using C = decltype(zero);
    constexpr std::size_t kRoom = 64 / sizeof(C);  // a vector at most beyond the end
    for (const Index cells : {1, 2, 7}) {
      for (Index columns = 2; columns <= 130; ++columns) {
        const std::size_t n = std::size_t(cells * columns);
        std::vector<C> values(std::size_t(cells), C(0)), to(n + kRoom + 1, C(-1));
        std::iota(values.begin(), values.end(), C(1));
        repeat(values.data(), cells, columns, to.data());
        for (std::size_t i = 0; i < n; ++i) {
          ASSERT_EQ(to[i], values[i / std::size_t(columns)]) << columns;
        }
        ASSERT_EQ(to.back(), C(-1)) << columns;
      }
    }
  };
  check(kernels().f32.repeat, 0.f);
  check(kernels().f64.repeat, 0.0);
}

TEST_P(Tables, CopyMovesEveryByteAndNoOther) {
  for (std::size_t bytes = 0; bytes < 600; bytes += bytes < 80 ? 1 : 37) {
    for (const std::size_t offset : {0, 4, 60}) {
      for (const bool stream : {false, true}) {
        const Bytes from(offset + bytes), to(offset + bytes + 64);
        for (std::size_t i = 0; i < from.size(); ++i) from.data()[i] = (unsigned char)(i * 7);
        kernels().copy(from.data() + offset, to.data() + offset, bytes, stream);
        ASSERT_EQ(std::memcmp(from.data() + offset, to.data() + offset, bytes), 0);
        ASSERT_TRUE(to.poisoned(0, offset) && to.poisoned(offset + bytes, to.size()))
            << bytes << " bytes at " << offset;
      }
    }
  }
}

TEST_P(Tables, ParallelCopyMovesEveryByte) {
  const Bytes from(5'000'003), to(from.size() + 8);
  for (std::size_t i = 0; i < from.size(); ++i) from.data()[i] = (unsigned char)(i * i >> 8);
  for (const bool stream : {false, true}) {
    std::memset(to.data(), Bytes::kPoison, to.size());
    parallel_copy(from.data(), to.data(), Index(from.size()), stream);
    EXPECT_EQ(std::memcmp(from.data(), to.data(), from.size()), 0);
    EXPECT_TRUE(to.poisoned(from.size(), to.size()));
  }
}

INSTANTIATE_TEST_SUITE_P(All, Tables, ::testing::ValuesIn(testing::every_isa()),
                         [](const auto& info) { return testing::test_name(info.param); });

}  // namespace
}  // namespace normcore::cpu
