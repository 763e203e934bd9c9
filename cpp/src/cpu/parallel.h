// Threads: OpenMP where the build has it. Work comes as a fixed number of tasks that does not
// depend on the number of threads, so neither do the results.
#pragma once

#include <exception>
#include <utility>

#include "cpu/workspace.h"
#include "normcore/dtype.h"
#ifdef _OPENMP
#include <omp.h>
#endif

namespace normcore::cpu {

// Threads that a call over `bytes` of data should use: `wanted` (0: the process setting), one where
// starting threads costs more than they save, and one in a child forked after threads had started,
// where OpenMP runtimes may hang.
int threads_for(Index bytes, int wanted);
void note_threads_started();

// Calls f(task) for task in [0, tasks). `sticky` gives every thread the same tasks on every call,
// so that it finds its data in its own cache; otherwise whoever is free takes the next ones.
template <class F>
void parallel_for(Index tasks, [[maybe_unused]] int threads, [[maybe_unused]] bool sticky, F&& f) {
#ifdef _OPENMP
  if (threads > 1 && tasks > 1) {
    note_threads_started();
    std::exception_ptr error;
    auto guarded = [&](Index task) {
      try {
        f(task);
      } catch (...) {
#pragma omp critical(normcore_parallel_error)
        error = std::current_exception();
      }
    };
    // Runs of neighbouring tasks, so that a thread finds its next task where prefetching went.
    const int team = threads < tasks ? threads : int(tasks);
    const Index even = (tasks + team - 1) / team;
    const Index run = sticky ? even : even / 8 > 1 ? even / 8 : 1;
    if (sticky) {
#pragma omp parallel for schedule(static, run) num_threads(team)
      for (Index task = 0; task < tasks; ++task) guarded(task);
    } else {
#pragma omp parallel num_threads(team)
      {
        // Also in threads that get no task this time: a later call must find it. Who lacks memory
        // and gets a task will tell.
        try {
          Workspace::local().warm();
        } catch (...) {
        }
#pragma omp for schedule(dynamic, run)
        for (Index task = 0; task < tasks; ++task) guarded(task);
      }
    }
    if (error) std::rethrow_exception(error);
    return;
  }
#endif
  for (Index task = 0; task < tasks; ++task) f(task);
}

}  // namespace normcore::cpu
