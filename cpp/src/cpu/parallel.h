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
// How threads share the tasks of a call: each begins with neighbours that are its own, the same on
// every call.
struct Deal {
  // Of which others take a part only if the thread does not come: it finds its data in its own
  // cache. Otherwise whoever is free helps those who are behind.
  bool sticky = false;
  // From the last task to the first: a second sweep begins where the first one ended.
  bool backwards = false;
};
void run_in_team(const Tasks& tasks, int threads, Deal deal);

// Calls f(task) for task in [0, tasks), unless one of them fails: then what it threw comes back,
// and others may not have run.
template <class F>
void parallel_for(Index tasks, int threads, Deal deal, F&& f) {
  if (threads > 1 && tasks > 1) {
    using Function = std::remove_reference_t<F>;
    auto run = [](void* g, Index task) { (*static_cast<Function*>(g))(task); };
    return run_in_team({tasks, run, const_cast<std::remove_const_t<Function>*>(std::addressof(f))},
                       threads, deal);
  }
  for (Index i = 0; i < tasks; ++i) {
    if (i > 0) RunningCall::check();
    f(deal.backwards ? tasks - 1 - i : i);
  }
}

}  // namespace normcore::cpu
