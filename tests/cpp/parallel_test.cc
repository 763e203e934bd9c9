// Threads: every task once, errors reach the caller, and a forked child neither hangs nor starts
// threads of a pool that it does not have.
#include "cpu/parallel.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "cpu/crew.h"
#include "cpu/dispatch.h"
#include "normcore/context.h"
#ifdef _OPENMP
#include <omp.h>
#endif
#if defined(__unix__)
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace normcore::cpu {
namespace {

constexpr Index kHuge = Index(1) << 40;  // bytes: worth any number of threads

TEST(ParallelFor, RunsEveryTaskExactlyOnce) {
  for (const Deal deal : {Deal{}, Deal{.sticky = true}, Deal{.backwards = true}}) {
    for (const int threads : {1, 2, 3, 8}) {
      for (const Index tasks : {0, 1, 2, 3, 7, 64, 1000}) {
        std::vector<std::atomic<int>> runs(std::size_t(tasks) + 1);
        parallel_for(tasks, threads, deal, [&](Index i) { ++runs.at(std::size_t(i)); });
        for (Index i = 0; i < tasks; ++i) ASSERT_EQ(runs[std::size_t(i)], 1) << i;
        ASSERT_EQ(runs[std::size_t(tasks)], 0);
      }
    }
  }
}

TEST(ParallelFor, OneThreadGoesForwardsOrBackwards) {
  for (const bool backwards : {false, true}) {
    std::vector<Index> order, want{0, 1, 2, 3, 4};
    if (backwards) std::reverse(want.begin(), want.end());
    parallel_for(5, 1, {.backwards = backwards}, [&](Index i) { order.push_back(i); });
    EXPECT_EQ(order, want);
  }
}

// How many threads take part: each waits in its task for the others.
int team_of(int threads) {
  std::mutex mutex;
  std::set<std::thread::id> seen;
  std::atomic<int> count{0};
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  parallel_for(threads, threads, {.sticky = true}, [&](Index) {
    {
      const std::lock_guard lock(mutex);
      seen.insert(std::this_thread::get_id());
      count = int(seen.size());
    }
    while (count < threads && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::yield();
    }
  });
  return count;
}

TEST(ParallelFor, UsesTheThreadsThatItIsGiven) {
  for (const int threads : {2, 3}) EXPECT_EQ(team_of(threads), threads);
}

TEST(ParallelFor, FindsTheRuntimeThatIsInTheProcess) {
#ifdef _OPENMP
  EXPECT_TRUE(has_openmp());
  // In a thread of its own, for which it is set.
  std::thread([] {
    omp_set_num_threads(3);
    EXPECT_EQ(get_num_threads(), 3);
    std::atomic<int> team{0};
    parallel_for(100, 3, {}, [&](Index) { team = omp_get_num_threads(); });
    EXPECT_EQ(team, 3);
  }).join();
#else
  GTEST_SKIP() << "this compiler has none";
#endif
}

// ---- threads of our own

TEST(Crew, ManyCallersShareIt) {
  Crew& crew = Crew::of_process();
  std::vector<std::thread> callers;
  std::atomic<int> wrong{0};
  for (int caller = 0; caller < 5; ++caller) {
    callers.emplace_back([&] {
      for (int round = 0; round < 500; ++round) {
        struct Job {
          std::atomic<int> own{0}, others{0};
        } job;
        crew.run(
            3,
            [](void* data, int index) {
              Job& j = *static_cast<Job*>(data);
              ++(index == 0 ? j.own : j.others);
            },
            &job);
        if (job.own != 1 || job.others > 3) ++wrong;
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(wrong, 0);
}

TEST(ParallelFor, AnErrorReachesTheCallerAndTheNextCallWorks) {
  for (const Deal deal : {Deal{}, Deal{.sticky = true}, Deal{.backwards = true}}) {
    for (const int threads : {1, 2, 4}) {
      EXPECT_THROW(parallel_for(100, threads, deal,
                                [](Index i) {
                                  if (i == 57) throw std::runtime_error("task 57");
                                }),
                   std::runtime_error);
      EXPECT_THROW(parallel_for(100, threads, deal, [](Index) { throw std::runtime_error("all"); }),
                   std::runtime_error);
      std::atomic<int> runs{0};
      parallel_for(100, threads, deal, [&](Index) { ++runs; });
      EXPECT_EQ(runs, 100);
    }
  }
}

TEST(ThreadsFor, LittleDataIsWorkedOnByOneThread) {
  EXPECT_EQ(threads_for(0, 8), 1);
  EXPECT_EQ(threads_for(1000, 8), 1);
}

TEST(ThreadsFor, TheCallGoesBeforeTheSetting) {
  const int before = get_num_threads();
  set_num_threads(3);
  EXPECT_EQ(threads_for(kHuge, 0), 3);
  EXPECT_EQ(threads_for(kHuge, 2), 2);
  set_num_threads(before);
}

TEST(ThreadSetting, RefusesLessThanOne) {
  const int before = get_num_threads();
  EXPECT_THROW(set_num_threads(0), std::invalid_argument);
  EXPECT_THROW(set_num_threads(-2), std::invalid_argument);
  EXPECT_EQ(get_num_threads(), before);
}

#if defined(__unix__)
// Runs f in a child that is killed where it hangs; what the child says by its exit status.
template <class F>
int in_child(F f) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(f());
  }
  int status = 0;
  if (waitpid(child, &status, 0) != child) return -1;
  return WIFEXITED(status) ? WEXITSTATUS(status) : -2;
}

int run_tasks() {
  std::atomic<int> runs{0};
  parallel_for(100, threads_for(kHuge, 2), {}, [&](Index) { ++runs; });
  return runs == 100 ? 0 : 1;
}

TEST(Fork, AChildRunsAfterTheParentHasStartedThreads) {
  ASSERT_EQ(run_tasks(), 0);
  EXPECT_EQ(in_child(run_tasks), 0) << "-2: the child hung";
  EXPECT_EQ(in_child([] { return in_child(run_tasks); }), 0) << "in a grandchild";
  EXPECT_EQ(run_tasks(), 0) << "in the parent, afterwards";
}

int team_of_three() { return team_of(3); }

TEST(Fork, AChildHasThreadsOfItsOwn) {
  ASSERT_EQ(run_tasks(), 0);
  EXPECT_EQ(in_child(team_of_three), 3);
  EXPECT_EQ(in_child([] { return in_child(team_of_three); }), 3) << "a grandchild";
  EXPECT_EQ(in_child([] { return team_of(3) == 3 ? in_child(team_of_three) : -3; }), 3)
      << "a grandchild whose parent has used its own";
  EXPECT_EQ(team_of(3), 3);
}

#ifdef _OPENMP
TEST(Fork, AnotherUserOfTheRuntimeHasStartedItsThreads) {
  // In a thread of its own, so that the library has run nothing in parallel in it.
  std::thread([] {
    int count = 0;
#pragma omp parallel num_threads(3) reduction(+ : count)
    ++count;
    ASSERT_EQ(count, 3);
    EXPECT_EQ(in_child(run_tasks), 0) << "-2: the child hung";
  }).join();
}
#endif

TEST(Fork, ErrorsReachTheCallerInAChild) {
  ASSERT_EQ(run_tasks(), 0);
  EXPECT_EQ(in_child([] {
              try {
                parallel_for(100, 3, {}, [](Index i) {
                  if (i == 57) throw std::runtime_error("task 57");
                });
              } catch (const std::runtime_error&) {
                return run_tasks();
              }
              return 1;
            }),
            0);
}

TEST(Fork, TheLibrarysOwnLoopsRunInAChild) {
  std::vector<char> from(8 << 20, 'x'), to(from.size());
  parallel_copy(from.data(), to.data(), Index(from.size()), false);
  EXPECT_EQ(in_child([&] {
              std::vector<char> again(from.size());
              parallel_copy(from.data(), again.data(), Index(from.size()), true);
              return again == from ? 0 : 1;
            }),
            0);
}
#endif

}  // namespace
}  // namespace normcore::cpu
