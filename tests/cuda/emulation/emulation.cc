// The threads of a device as fibers of one thread of the host. With NORMCORE_RACES the kernels are
// compiled by ThreadSanitizer and this file is not: every thread of the device is a fiber of the
// sanitizer, and only what orders memory on a device orders it there. Those are the barriers of a
// warp, a block and a cluster, and the start and the end of a launch. Blocks are not ordered with
// each other.
#include <cuda_runtime.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <exception>
#include <limits>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if defined(NORMCORE_RACES)
extern "C" {
void* __tsan_get_current_fiber(void);
void* __tsan_create_fiber(unsigned flags);
void __tsan_switch_to_fiber(void* fiber, unsigned flags);
void __tsan_acquire(void* address);
void __tsan_release(void* address);
void __tsan_write_range(void* address, unsigned long size);
}
#endif

dim3 blockDim, gridDim;

namespace emulation {

Fiber* here = nullptr;

namespace {

// ---- what the sanitizer is told

#if defined(NORMCORE_RACES)
void* new_fiber() { return __tsan_create_fiber(0); }
void* current_fiber() { return __tsan_get_current_fiber(); }
void switch_to(void* fiber) { __tsan_switch_to_fiber(fiber, /*no order between them*/ 1); }
void acquire(void* p) { __tsan_acquire(p); }
void release(void* p) { __tsan_release(p); }
void written(void* p, std::size_t bytes) { __tsan_write_range(p, bytes); }
#else
void* new_fiber() { return nullptr; }
void* current_fiber() { return nullptr; }
void switch_to(void*) {}
void acquire(void*) {}
void release(void*) {}
void written(void*, std::size_t) {}
#endif

// ---- the order of turns

enum class Order { ascending, descending, random };

Order order_of_environment() {
  const char* value = std::getenv("NORMCORE_EMULATED_ORDER");
  const std::string name = value ? value : "ascending";
  if (name == "ascending") return Order::ascending;
  if (name == "descending") return Order::descending;
  if (name == "random") return Order::random;
  throw std::invalid_argument("NORMCORE_EMULATED_ORDER is " + name +
                              ", expected ascending, descending or random");
}
Order order() {
  static const Order of_process = order_of_environment();
  return of_process;
}
std::mt19937_64 random_numbers;  // the same ones in every run

void shuffle_if_random(std::vector<std::size_t>& turns) {
  if (order() == Order::random) std::shuffle(turns.begin(), turns.end(), random_numbers);
}
std::vector<std::size_t> turns_of(std::size_t count) {
  std::vector<std::size_t> turns(count);
  std::iota(turns.begin(), turns.end(), std::size_t(0));
  if (order() == Order::descending) std::reverse(turns.begin(), turns.end());
  shuffle_if_random(turns);
  return turns;
}

// ---- barriers

// Who waits together. A barrier opens when all living members have arrived.
struct Group {
  int members = 0, arrived = 0;
  unsigned generation = 0;
  char sync[2] = {};  // for the sanitizer: of even and of odd generations
};

// A block's shared memory is gone when its last thread returns: others may not read it then.
struct Block {
  Group group;
  double* memory = nullptr;
  std::size_t doubles = 0;
  int flag = 0;
};

struct Worker {
  Fiber fiber;
  ucontext_t context;  // to begin in; from then on
  void* place[5];      // where it waits: switching contexts would ask the system twice
  bool started = false;
  std::unique_ptr<char[]> stack;
  void* sanitizer_fiber = nullptr;
  Group* warp = nullptr;
  Block* block = nullptr;
  char* slots = nullptr;  // of the warp
  bool done = false;
};

constexpr std::size_t kStack = std::size_t(1) << 17;

// A fiber is ordered with itself. Blocks that follow each other have different ones, so that they
// are not.
std::vector<Worker> crews[2];
unsigned clusters_run = 0;

void* scheduler_place[5];
void* scheduler_fiber = nullptr;
char launched, finished;  // for the sanitizer
Worker* current = nullptr;
Group* cluster_group = nullptr;
std::vector<double*> cluster_shared;
const std::function<void()>* body = nullptr;
std::exception_ptr failure;
bool progress = false;

// The compiler's own jumps: the library's longjmp is checked, by itself and by sanitizers, against
// the one stack that they know.
[[gnu::noinline, noreturn]] void jump(void** to) { __builtin_longjmp(to, 1); }

// Others run within a function that changes fibers: its callers may assume nothing of what it
// reads, writes and leaves in registers, whatever its body shows. Clang that optimizes such a
// function keeps values in registers over the change.
#if __has_cpp_attribute(gnu::noipa)
#define NORMCORE_CHANGES_FIBERS [[gnu::noipa]]
#else
#define NORMCORE_CHANGES_FIBERS [[clang::optnone, gnu::noinline]]
#endif

// Lets others run.
NORMCORE_CHANGES_FIBERS void give_way() {
  if (__builtin_setjmp(current->place) == 0) {
    switch_to(scheduler_fiber);
    jump(scheduler_place);
  }
}
// Runs a worker until it gives way or ends.
NORMCORE_CHANGES_FIBERS void resume(Worker& w) {
  if (__builtin_setjmp(scheduler_place) == 0) {
    switch_to(w.sanitizer_fiber);
    if (w.started) jump(w.place);
    w.started = true;
    setcontext(&w.context);
  }
}

void open_if_complete(Group& g) {
  if (g.members > 0 && g.arrived == g.members) {
    g.arrived = 0;
    ++g.generation;
  }
}

void wait(Group& g, bool orders_memory = true) {
  const unsigned generation = g.generation;
  if (orders_memory) release(&g.sync[generation % 2]);
  ++g.arrived;
  progress = true;
  open_if_complete(g);
  while (g.generation == generation) give_way();
  if (orders_memory) acquire(&g.sync[generation % 2]);
}

void leave(Group& g) {
  --g.members;
  open_if_complete(g);
}

// After the last thread of the block: whoever reads its memory later is not ordered with this, and
// reads NaN.
void end_of_block(Block& block) {
  acquire(&block);
  written(block.memory, block.doubles * sizeof(double));
  std::fill_n(block.memory, block.doubles, std::numeric_limits<double>::quiet_NaN());
}

void enter() {
  acquire(&launched);
  try {
    (*body)();
  } catch (...) {
    failure = std::current_exception();
  }
  current->done = true;
  progress = true;
  leave(*current->warp);
  Block& block = *current->block;
  leave(block.group);
  release(&block);
  if (block.group.members == 0) end_of_block(block);
  leave(*cluster_group);
  release(&finished);
  switch_to(scheduler_fiber);
  jump(scheduler_place);
}

void prepare(Worker& w) {
  if (!w.stack) w.stack = std::make_unique_for_overwrite<char[]>(kStack);
  if (!w.sanitizer_fiber) w.sanitizer_fiber = new_fiber();
  getcontext(&w.context);
  w.context.uc_stack.ss_sp = w.stack.get();
  w.context.uc_stack.ss_size = kStack;
  w.context.uc_link = nullptr;
  makecontext(&w.context, enter, 0);
}

// From the system, so that the sanitizer keeps no trace of the block that was there before.
class SharedMemory {
 public:
  explicit SharedMemory(std::size_t doubles) : bytes_(doubles * sizeof(double)) {
    void* p = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    memory_ = static_cast<double*>(p);
    std::fill_n(memory_, doubles, std::numeric_limits<double>::quiet_NaN());
  }
  ~SharedMemory() { munmap(memory_, bytes_); }
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;
  double* at(std::size_t i) const { return memory_ + i; }

 private:
  double* memory_;
  std::size_t bytes_;
};

void run_cluster(const Shape& shape, dim3 first_block) {
  const unsigned threads = shape.block.x, warps = (threads + 31) / 32;
  const std::size_t doubles = (shape.shared_bytes / 16 + 1) * 2;  // whole units of 16 bytes
  const SharedMemory memory(shape.cluster * doubles);
  std::vector<Block> blocks(shape.cluster);
  std::vector<Group> warp_groups(shape.cluster * warps);
  std::vector<char> slots(std::size_t(shape.cluster) * warps * 32 * kSlotBytes);
  // From the heap, where the sanitizer forgets what is freed.
  const auto whole = std::make_unique<Group>();
  whole->members = int(shape.cluster * threads);
  cluster_group = whole.get();
  cluster_shared.clear();
  for (unsigned b = 0; b < shape.cluster; ++b) {
    blocks[b].memory = memory.at(b * doubles);
    blocks[b].doubles = doubles;
    cluster_shared.push_back(blocks[b].memory);
  }

  const std::size_t count = std::size_t(shape.cluster) * threads;
  std::vector<Worker>& workers = crews[clusters_run++ % 2];
  if (workers.size() < count) workers.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    Worker& w = workers[i];
    const unsigned b = unsigned(i) / threads, t = unsigned(i) % threads;
    w.fiber.thread = dim3(t, 0, 0);
    w.fiber.block = dim3(first_block.x + b, first_block.y, first_block.z);
    w.fiber.rank = b;
    w.fiber.shared = cluster_shared[b];
    w.warp = &warp_groups[b * warps + t / 32];
    w.block = &blocks[b];
    w.slots = &slots[(std::size_t(b) * warps + t / 32) * 32 * kSlotBytes];
    w.done = w.started = false;
    ++w.warp->members;
    ++w.block->group.members;
    prepare(w);
  }
  release(&launched);
  std::size_t alive = count;
  std::vector<std::size_t> turns = turns_of(count);
  while (alive > 0) {
    progress = false;
    for (const std::size_t i : turns) {
      if (workers[i].done) continue;
      current = &workers[i];
      here = &current->fiber;
      resume(workers[i]);
      if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
      if (current->done) --alive;
    }
    shuffle_if_random(turns);
    if (!progress && alive > 0) {
      throw std::logic_error("threads wait at a barrier that others never reach");
    }
  }
}

}  // namespace

void exchange_barrier() { wait(*current->warp, /*orders_memory=*/false); }
void warp_barrier() { wait(*current->warp); }
void block_barrier() { wait(current->block->group); }
void cluster_barrier() { wait(*cluster_group); }
double* shared_of(unsigned rank) { return cluster_shared.at(rank); }
void* lane_slot(unsigned lane) { return current->slots + lane * kSlotBytes; }

bool any_of_block(bool flag) {
  int& shared = current->block->flag;
  if (flag) shared = 1;
  block_barrier();
  const bool any = shared != 0;
  block_barrier();
  shared = 0;
  block_barrier();
  return any;
}

void run(const Shape& shape, const std::function<void()>& thread) {
  ++launches;
  body = &thread;
  blockDim = shape.block;
  gridDim = shape.grid;
  scheduler_fiber = current_fiber();
  const std::size_t columns = shape.grid.x / shape.cluster, rows = shape.grid.y;
  for (const std::size_t i : turns_of(columns * rows * shape.grid.z)) {
    run_cluster(shape, dim3(unsigned(i % columns) * shape.cluster, unsigned(i / columns % rows),
                            unsigned(i / columns / rows)));
  }
  acquire(&finished);
  body = nullptr;
}

}  // namespace emulation
