#include "cpu/openmp.h"

#if defined(__linux__) || defined(__FreeBSD__)

#include <dlfcn.h>
#include <link.h>

#include <atomic>
#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace normcore::cpu {
namespace {

// How many libraries have ever been loaded.
unsigned long long count_loads() {
  unsigned long long loads = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* result) {
        *static_cast<unsigned long long*>(result) = info->dlpi_adds;
        return 1;  // all entries say the same
      },
      &loads);
  return loads;
}

// Paths of what is loaded, in that order, by its name an OpenMP runtime.
std::vector<std::string> runtimes() {
  std::vector<std::string> found;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* result) noexcept {
        const std::string_view path = info->dlpi_name ? info->dlpi_name : "";
        const std::string_view file = path.substr(path.rfind('/') + 1);
        for (const char* name : {"libgomp", "libomp", "libiomp5"}) {
          if (file.starts_with(name)) {
            static_cast<std::vector<std::string>*>(result)->emplace_back(path);
          }
        }
        return 0;
      },
      &found);
  return found;
}

template <class F>
bool load(void* library, const char* name, F*& function) {
  function = reinterpret_cast<F*>(dlsym(library, name));
  return function != nullptr;
}

std::unique_ptr<const OpenMP> look() {
  for (const std::string& path : runtimes()) {
    // Kept open, so that the runtime stays whoever else lets go of it.
    void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_NOLOAD);
    OpenMP omp{};
    if (library && load(library, "GOMP_parallel", omp.parallel) &&
        load(library, "omp_get_thread_num", omp.thread_num) &&
        load(library, "omp_get_max_threads", omp.max_threads)) {
      return std::make_unique<const OpenMP>(omp);
    }
    if (library) dlclose(library);
  }
  return nullptr;
}

}  // namespace

const OpenMP* OpenMP::find() {
  // No lock, which a forked child might find taken: threads that look at the same time find the
  // same.
  static std::atomic<const OpenMP*> known{nullptr};
  static std::atomic<unsigned long long> loads_then{0};
  if (const OpenMP* omp = known.load(std::memory_order_acquire)) return omp;
  const unsigned long long loads = count_loads();
  if (loads == loads_then.load(std::memory_order_relaxed)) return nullptr;
  std::unique_ptr<const OpenMP> found = look();
  loads_then.store(loads, std::memory_order_relaxed);
  const OpenMP* expected = nullptr;
  if (found && known.compare_exchange_strong(expected, found.get(), std::memory_order_acq_rel)) {
    return found.release();
  }
  return expected;
}

}  // namespace normcore::cpu

#else

namespace normcore::cpu {
const OpenMP* OpenMP::find() { return nullptr; }
}  // namespace normcore::cpu

#endif
