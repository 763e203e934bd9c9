// Power iteration and the passes of spectral norm, as launches.
#include <algorithm>
#include <type_traits>

#include "cuda/launch.h"
#include "cuda/spectral.cuh"
#include "cuda/summers.cuh"

namespace normcore::cuda {
namespace {

// Sums of a thread in the compute type go over so many rows at most.
constexpr Index kMostRowsOfBlock = 256;
constexpr Index kEntriesOfCrewThread = 16;       // beyond it, more blocks
constexpr Index kMostInnerBlocks = 1024;         // down the rows
constexpr Index kMostHeldByOneBlock = 32 << 10;  // bytes of a matrix; beyond it, more blocks
constexpr int kMostCrew = 8;  // blocks of a cluster, on every device that has clusters

// f(a value of the storage type of dtype), whose compute type is C.
template <class C, class F>
void on_elements(DType dtype, F&& f) {
  with_element_type(dtype, [&]<class T>(T v) {
    if constexpr (std::is_same_v<Compute<T>, C>) f(v);
  });
}

template <class T>
T* take(DeviceMemory& memory, Index n) {
  return memory.take<T>(std::max<Index>(1, n));
}

// An operand as rows of packs.
struct Rows {
  Index rows, cols;
  Index stride = 0;    // in packs
  bool whole = false;  // begin on packs and consist of them
};
template <class T>
Rows rows_of(const Plan& plan, int operand, const void* data) {
  const Access& a = plan.access[operand];
  const bool transposed = plan.layout == Layout::columns;
  Rows r{transposed ? plan.count : plan.cells, transposed ? plan.cells : plan.count};
  const int dims = plan.space_dims;
  const Index between = !transposed ? a.cell : dims > 0 ? a.space[dims - 1] : 0;
  r.stride = r.rows == 1 ? 0 : between / kPack<T>;
  r.whole = a.direct && reinterpret_cast<std::uintptr_t>(data) % 16 == 0 &&
            r.cols % kPack<T> == 0 && (r.rows == 1 || between % kPack<T> == 0);
  return r;
}

// Of n entries that follow each other, how many threads of a block take one each: 2^result.
int log_lanes(Index n) {
  int log = 0;
  while ((1 << log) < kCrewThreads && (Index(1) << log) < n) ++log;
  return log;
}

// Blocks over the elements of a matrix one by one, or over packs of rows.
template <class Pieces>
struct Cut {
  Pieces pieces;
  Launch launch;
};
Cut<Elements> by_element(Index rows, Index cols, Index most_blocks = 65535) {
  const int log = log_lanes(cols);
  Launch l{ceil_div(cols, Index(1) << log), kCrewThreads};
  l.blocks_y = std::min(most_blocks, ceil_div(rows, Index(kCrewThreads >> log)));
  return {{rows, cols, log}, l};
}
template <class T>
Cut<RowPieces> by_pieces(const Rows& x, const Rows& y) {
  const Index packs = x.cols / kPack<T>;
  const int log = log_lanes(packs);
  Launch l{ceil_div(x.rows, Index((kCrewThreads >> log) * RowPieces::kDeep)), kCrewThreads};
  l.blocks_y = ceil_div(packs, Index(1) << log);
  return {{x.rows, x.stride, y.stride, int(packs), log}, l};
}

template <class T>
void combine(const Plan& plan, int from, const void* x, int to, void* y,
             const PowerNumbers* numbers, const Compute<T>* left, const Compute<T>* right,
             cudaStream_t stream) {
  const Rows of_x = rows_of<T>(plan, from, x), of_y = rows_of<T>(plan, to, y);
  if (of_x.whole && of_y.whole) {
    const Cut<RowPieces> cut = by_pieces<T>(of_x, of_y);
    launch(cut.launch, stream, combine_rows<T>, static_cast<const uint4*>(x),
           static_cast<uint4*>(y), cut.pieces, numbers, left, right);
  } else {
    const Cut<Elements> cut = by_element(of_x.rows, of_x.cols);
    launch(cut.launch, stream, combine_any<T>, static_cast<const T*>(x), MatrixAccess(plan, from),
           static_cast<T*>(y), MatrixAccess(plan, to), cut.pieces, numbers, left, right);
  }
}

template <class T>
class PowerIteration {
 public:
  using C = Compute<T>;

  PowerIteration(const PowerCall<C>& call, DeviceMemory& memory)
      : call_(call),
        memory_(memory),
        stream_(memory.stream()),
        rows_(call.length(kRowSide)),
        cols_(call.length(kColSide)),
        a_(static_cast<const uint4*>(call.data)),
        numbers_(take<PowerNumbers>(memory, 1)) {
    Rows r = rows_of<T>(call.plan, kX, call.data);
    const Index packs = ceil_div(cols_, Index(kPack<T>));
    if (!r.whole) {
      uint4* copy = take<uint4>(memory, rows_ * packs);
      const Cut<Elements> cut = by_element(rows_, packs * kPack<T>);
      launch(cut.launch, stream_, pack_matrix<T>, static_cast<const T*>(call.data),
             MatrixAccess(call.plan, kX), cut.pieces, cols_, reinterpret_cast<T*>(copy));
      a_ = copy;
      r.stride = packs;
    }
    stride_ = r.stride;
    packs_ = packs;
    plan_sweeps();
    for (const Side s : {kRowSide, kColSide}) {
      product_[s] = take<double>(memory, call.length(s) * (s == kRowSide ? along_ : 1));
    }
    shares_ = take<C>(memory, blocks_ * packs_ * kPack<T>);
    if (along_ > 1) narrow_ = take<C>(memory, rows_);
    const Index n = std::max(rows_, cols_);
    const int most = std::min(kMostCrew, facts_of(memory.device()).most_cluster);
    crew_ = n > kCrewThreads * kEntriesOfCrewThread ? most : 1;
    while (!crew_has_room()) crew_ /= 2;
  }

  const PowerNumbers* run() {
    if (call_.iterations == 0) {
      const Side from = special::other(call_.u_side);
      sweep(from, false, call_.given[from], nullptr);
      launch(crew(), stream_, evaluate<C>, settling(from, false), call_.given[kRowSide],
             call_.given[kColSide]);
      return numbers_;
    }
    begin();
    if (!iterate_at_once()) iterate();
    return numbers_;
  }

 private:
  // How many packs of a row a thread holds, how many threads share a row, and how many rows are
  // worked on at once.
  void plan_sweeps() {
    held_ = packs_ <= kNarrowPacks ? 1 : kMostSweepPacks<T>;
    const Index threads = ceil_div(ceil_div(packs_, Index(held_)), Index(32)) * 32;
    threads_ = int(std::min<Index>(threads, kSweepThreads));
    along_ = ceil_div(packs_, Index(held_) * threads_);
    const Index resident = facts_of(memory_.device()).multiprocessors * (kSweepThreads / threads_);
    const Index wanted = std::max(resident / along_, ceil_div(rows_, kMostRowsOfBlock));
    blocks_ = std::clamp<Index>(wanted, 1, ceil_div(rows_, Index(kPacksInFlight / held_)));
  }

  template <bool kDots, bool kShares>
  void launch_sweep(const Sweep<C>& s) {
    Launch l{blocks_, threads_, kSweepSharedBytes<C>};
    l.blocks_y = along_;
    auto* kernel = held_ == 1 ? sweep_matrix<T, 1, kDots, kShares>
                              : sweep_matrix<T, kMostSweepPacks<T>, kDots, kShares>;
    launch(l, stream_, kernel, s);
  }

  // The product with a vector of the given side, and where `both` that of the product itself. The
  // first sweep, before there are numbers, leaves the largest elements in tops.
  void sweep(Side from, bool both, const C* vector, C* tops, bool first = true) {
    const PowerNumbers* numbers = first ? nullptr : numbers_;
    Sweep<C> s{
        a_,      rows_, cols_, stride_, int(packs_), numbers, vector, vector, product_[kRowSide],
        shares_, tops};
    if (from == kRowSide) {
      launch_sweep<false, true>(s);
    } else if (both && along_ == 1) {
      launch_sweep<true, true>(s);
    } else {
      launch_sweep<true, false>(s);
      if (along_ > 1) {
        launch(of_entries(rows_), stream_, collect_dots<C>, product_[kRowSide], along_, rows_,
               numbers, narrow_);
      }
      if (both) {
        s.y = narrow_;
        launch_sweep<false, true>(s);
      }
    }
    if (from == kRowSide || both) {
      launch({ceil_div(cols_, Index(32)), 32 * kCollectWarps,
              32 * kCollectWarps * int(sizeof(double))},
             stream_, collect_shares<C>, static_cast<const C*>(shares_), blocks_, packs_ * kPack<T>,
             cols_, numbers, product_[kColSide]);
    }
  }

  void begin() {
    const Side start = call_.start, aside = special::other(start);
    const Index top_count = blocks_ * along_;
    C* tops = take<C>(memory_, top_count);
    C* random = take<C>(memory_, call_.length(start));
    const C* vector = call_.given[start];
    if (!vector) {
      launch(crew(), stream_, random_vector<C>, random, call_.length(start), 0, crew_);
      vector = random;
    }
    sweep(start, false, vector, tops);
    const Begin<C> b{settling(start, false),
                     a_,
                     stride_ * kPack<T>,
                     tops,
                     top_count,
                     {call_.given[kRowSide], call_.given[kColSide]},
                     call_.keep,
                     call_.u_side,
                     call_.eps,
                     call_.iterations_of_zeros,
                     random,
                     product_[aside]};
    launch(crew(), stream_, begin_iterations<T>, b);
  }

  // As special::PowerIteration::run, where iterations that need not be done are passed over.
  void iterate() {
    Products products(call_.start, call_.iterations, call_.residual);
    do {
      if (call_.between) call_.between();
      const Side from = products.from;
      sweep(from, products.both, call_.vector[from], nullptr, false);
      launch(crew(), stream_, settle<C>, settling(from, products.both));
    } while (products.next());
  }
  // The same in one launch, where the shared memory of a cluster holds the matrix.
  bool iterate_at_once() {
    if (packs_ > kMostHeldPacks) return false;
    const int device = memory_.device();
    const DeviceFacts& facts = facts_of(device);
    const bool small = rows_ * packs_ * 16 <= kMostHeldByOneBlock;
    for (int blocks = small ? 1 : std::min(kMostCrew, facts.most_cluster); blocks > 0;
         blocks /= 2) {
      const HeldShape<C> shape(rows_, stride_, packs_, kPack<T>, blocks);
      if (shape.bytes() > facts.most_shared_bytes) return false;
      const Launch l{blocks, kCrewThreads, int(shape.bytes()), blocks};
      if (resident_clusters(iterate_held<T>, l, device) == 0) continue;
      Held<C> held{settling(call_.start, false), shape, a_,
                   take<double>(memory_, blocks * Index(shape.padded_cols()))};
      held.settle.blocks = blocks;
      launch(l, stream_, iterate_held<T>, held);
      return true;
    }
    return false;
  }

  Settle<C> settling(Side from, bool both) const {
    return {numbers_,
            {rows_, cols_},
            {product_[kRowSide], product_[kColSide]},
            {call_.vector[kRowSide], call_.vector[kColSide]},
            call_.start,
            from,
            both,
            call_.residual,
            call_.iterations,
            call_.tol,
            call_.exact ? -1 : call_.tol,
            call_.bound,
            crew_};
  }
  Launch crew() const { return {crew_, kCrewThreads, Crew::kDoubles * int(sizeof(double)), crew_}; }
  bool crew_has_room() const {
    const int device = memory_.device();
    return has_room(settle<C>, crew(), device) && has_room(random_vector<C>, crew(), device) &&
           has_room(begin_iterations<T>, crew(), device) && has_room(evaluate<C>, crew(), device);
  }
  static Launch of_entries(Index n) { return one_each(n, kCrewThreads); }

  const PowerCall<C>& call_;
  DeviceMemory& memory_;
  cudaStream_t stream_;
  Index rows_, cols_;
  const uint4* a_;
  PowerNumbers* numbers_;
  Index stride_, packs_;
  int held_, threads_, crew_;
  Index along_, blocks_;  // of a sweep: that share a row, and that share the rows
  double* product_[2];
  C* shares_;
  C* narrow_ = nullptr;  // [rows]: A x, of rows that several blocks share
};

}  // namespace

template <class C>
const PowerNumbers* power_iteration(const PowerCall<C>& call, Memory& memory) {
  const PowerNumbers* numbers = nullptr;
  on_elements<C>(call.dtype, [&]<class T>(T) {
    numbers = PowerIteration<T>(call, static_cast<DeviceMemory&>(memory)).run();
  });
  return numbers;
}

template <class C>
void divide(const Plan& plan, DType dtype, const void* w, void* out, const PowerNumbers* numbers,
            Memory& memory) {
  on_elements<C>(dtype, [&]<class T>(T) {
    const C* none = nullptr;
    combine<T>(plan, kX, w, kY, out, numbers, none, none,
               static_cast<DeviceMemory&>(memory).stream());
  });
}

template <class C>
void spectral_gradient(const Plan& plan, DType dtype, const void* w, const void* dw, void* dweight,
                       const double* sigma, const C* const (&vector)[2], double bound,
                       Memory& memory) {
  auto& device = static_cast<DeviceMemory&>(memory);
  const cudaStream_t stream = device.stream();
  on_elements<C>(dtype, [&]<class T>(T) {
    const Rows of_w = rows_of<T>(plan, kX, w), of_dw = rows_of<T>(plan, kDy, dw);
    const bool whole = of_w.whole && of_dw.whole;
    const Cut<RowPieces> packs = by_pieces<T>(of_w, of_dw);
    const Cut<Elements> elements = by_element(of_w.rows, of_w.cols, kMostInnerBlocks);
    Launch l = whole ? packs.launch : elements.launch;
    l.shared_bytes = Crew::kWarps * int(sizeof(double));
    const Index count = l.blocks * l.blocks_y;
    double* parts = take<double>(device, count);
    if (whole) {
      launch(l, stream, inner_rows<T>, static_cast<const uint4*>(w), static_cast<const uint4*>(dw),
             packs.pieces, parts);
    } else {
      launch(l, stream, inner_any<T>, static_cast<const T*>(w), MatrixAccess(plan, kX),
             static_cast<const T*>(dw), MatrixAccess(plan, kDy), elements.pieces, parts);
    }
    auto* numbers = take<PowerNumbers>(device, 1);
    C* left = take<C>(device, of_w.rows);
    launch({1, kCrewThreads, (Crew::kWarps + 1) * int(sizeof(double))}, stream, settle_gradient<C>,
           static_cast<const double*>(parts), count, sigma, bound, vector[kRowSide], of_w.rows,
           numbers, left);
    combine<T>(plan, kDy, dw, kDx, dweight, numbers, left, vector[kColSide], stream);
  });
}

NORMCORE_INSTANTIATE_SPECTRAL(float)
NORMCORE_INSTANTIATE_SPECTRAL(double)

}  // namespace normcore::cuda
