#include <cuda_runtime.h>
#include <ucontext.h>

#include <csetjmp>
#include <exception>
#include <limits>
#include <memory>
#include <stdexcept>
#include <utility>
#include <vector>

dim3 blockDim, gridDim;

namespace emulation {

Fiber* here = nullptr;

namespace {

// Who waits together. A barrier opens when all living members have arrived.
struct Group {
  int members = 0, arrived = 0;
  unsigned generation = 0;
};

struct Worker {
  Fiber fiber;
  ucontext_t context;  // to begin in; from then on
  jmp_buf place;       // where it waits: switching contexts would ask the system twice
  bool started = false;
  std::unique_ptr<char[]> stack;
  Group* warp = nullptr;
  Group* block = nullptr;
  char* slots = nullptr;  // of the warp
  int* flag = nullptr;    // of the block
  bool done = false;
};

constexpr std::size_t kStack = std::size_t(1) << 16;

std::vector<Worker> workers;
jmp_buf scheduler;
Worker* current = nullptr;
Group cluster_group;
std::vector<double*> cluster_shared;
const std::function<void()>* body = nullptr;
std::exception_ptr failure;
bool progress = false;

// Lets others run.
void give_way() {
  if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
}
// Runs a worker until it gives way or ends.
[[gnu::noinline]] void resume(Worker& w) {
  if (_setjmp(scheduler) != 0) return;
  if (w.started) _longjmp(w.place, 1);
  w.started = true;
  setcontext(&w.context);
}

void open_if_complete(Group& g) {
  if (g.members > 0 && g.arrived == g.members) {
    g.arrived = 0;
    ++g.generation;
  }
}

void wait(Group& g) {
  const unsigned generation = g.generation;
  ++g.arrived;
  progress = true;
  open_if_complete(g);
  while (g.generation == generation) give_way();
}

void leave(Group& g) {
  --g.members;
  open_if_complete(g);
}

void enter() {
  try {
    (*body)();
  } catch (...) {
    failure = std::current_exception();
  }
  current->done = true;
  progress = true;
  leave(*current->warp);
  leave(*current->block);
  leave(cluster_group);
  _longjmp(scheduler, 1);
}

void prepare(Worker& w) {
  if (!w.stack) w.stack = std::make_unique_for_overwrite<char[]>(kStack);
  getcontext(&w.context);
  w.context.uc_stack.ss_sp = w.stack.get();
  w.context.uc_stack.ss_size = kStack;
  w.context.uc_link = nullptr;
  makecontext(&w.context, enter, 0);
}

void run_cluster(const Shape& shape, dim3 first_block) {
  const unsigned threads = shape.block.x, warps = (threads + 31) / 32;
  const std::size_t shared = shape.shared_bytes / sizeof(double) + 1;
  std::vector<double> memory(shape.cluster * shared, std::numeric_limits<double>::quiet_NaN());
  std::vector<Group> blocks(shape.cluster), warp_groups(shape.cluster * warps);
  std::vector<char> slots(std::size_t(shape.cluster) * warps * 32 * 16);
  std::vector<int> flags(shape.cluster, 0);
  cluster_group = {int(shape.cluster * threads), 0, 0};
  cluster_shared.clear();
  for (unsigned b = 0; b < shape.cluster; ++b) cluster_shared.push_back(&memory[b * shared]);

  const std::size_t count = std::size_t(shape.cluster) * threads;
  if (workers.size() < count) workers.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    Worker& w = workers[i];
    const unsigned b = unsigned(i) / threads, t = unsigned(i) % threads;
    w.fiber.thread = dim3(t, 0, 0);
    w.fiber.block = dim3(first_block.x + b, first_block.y, 0);
    w.fiber.rank = b;
    w.fiber.shared = cluster_shared[b];
    w.warp = &warp_groups[b * warps + t / 32];
    w.block = &blocks[b];
    w.slots = &slots[(std::size_t(b) * warps + t / 32) * 32 * 16];
    w.flag = &flags[b];
    w.done = w.started = false;
    ++w.warp->members;
    ++w.block->members;
    prepare(w);
  }
  std::size_t alive = count;
  while (alive > 0) {
    progress = false;
    for (std::size_t i = 0; i < count; ++i) {
      if (workers[i].done) continue;
      current = &workers[i];
      here = &current->fiber;
      resume(workers[i]);
      if (failure) std::rethrow_exception(std::exchange(failure, nullptr));
      if (current->done) --alive;
    }
    if (!progress && alive > 0) {
      throw std::logic_error("threads wait at a barrier that others never reach");
    }
  }
}

}  // namespace

void warp_barrier() { wait(*current->warp); }
void block_barrier() { wait(*current->block); }
void cluster_barrier() { wait(cluster_group); }
double* shared_of(unsigned rank) { return cluster_shared.at(rank); }
void* lane_slot(unsigned lane) { return current->slots + lane * 16; }

bool any_of_block(bool flag) {
  int& shared = *current->flag;
  if (flag) shared = 1;
  block_barrier();
  const bool any = shared != 0;
  block_barrier();
  shared = 0;
  block_barrier();
  return any;
}

void run(const Shape& shape, const std::function<void()>& thread) {
  body = &thread;
  blockDim = shape.block;
  gridDim = shape.grid;
  for (unsigned y = 0; y < shape.grid.y; ++y) {
    for (unsigned x = 0; x < shape.grid.x; x += shape.cluster) run_cluster(shape, dim3(x, y, 0));
  }
  body = nullptr;
}

}  // namespace emulation
