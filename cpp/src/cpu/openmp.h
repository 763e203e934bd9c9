// The OpenMP runtime that something else has brought into the process: GNU's, LLVM's or Intel's.
// We bring none. PyTorch and scikit-learn ship their own, under names of their own, and threads of
// two runtimes that wait for work take the cores from each other.
#pragma once

namespace normcore::cpu {

struct OpenMP {
  // Entry points that all three have: what `#pragma omp parallel num_threads(threads)` becomes, and
  // two functions of the standard.
  void (*parallel)(void (*work)(void*), void* data, unsigned threads, unsigned flags);
  int (*thread_num)();
  int (*max_threads)();

  // The one that was loaded first; null where there is none. It is looked for again when libraries
  // have been loaded since.
  static const OpenMP* find();
};

}  // namespace normcore::cpu
