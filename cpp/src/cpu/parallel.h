// Threads: of the process's OpenMP runtime, or our own (openmp.h, crew.h). Work comes as a fixed
// number of tasks that does not depend on the number of threads, so neither do the results.
#pragma once

#include <memory>
#include <type_traits>

#include "cpu/running_call.h"
#include "cpu/workspace.h"
#include "normcore/dtype.h"

namespace normcore::cpu {

// Threads that a call over `bytes` of data should use: `wanted` (0: the process setting), and one
// where starting threads costs more than they save.
int threads_for(Index bytes, int wanted);

struct Tasks {
  Index count;
  void (*run)(void* f, Index task);
  void* f;
};
void run_in_team(const Tasks& tasks, int threads, bool sticky);

// Calls f(task) for task in [0, tasks), unless one of them fails: then what it threw comes back,
// and others may not have run. `sticky` gives every thread the same tasks on every call, so that it
// finds its data in its own cache; otherwise whoever is free takes the next ones.
template <class F>
void parallel_for(Index tasks, int threads, bool sticky, F&& f) {
  if (threads > 1 && tasks > 1) {
    using Function = std::remove_reference_t<F>;
    auto run = [](void* g, Index task) { (*static_cast<Function*>(g))(task); };
    return run_in_team({tasks, run, const_cast<std::remove_const_t<Function>*>(std::addressof(f))},
                       threads, sticky);
  }
  for (Index task = 0; task < tasks; ++task) {
    if (task > 0) RunningCall::check();
    f(task);
  }
}

}  // namespace normcore::cpu
