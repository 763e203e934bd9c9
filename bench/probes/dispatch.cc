// Finds the probes beside the table of kernels that is in use.
#include "cpu/dispatch.h"

#include <string>
#include <string_view>

#include "normcore/errors.h"
#include "probes.h"

namespace normcore::probes {

#if defined(NORMCORE_X86_KERNELS)
namespace v2 {
extern const ProbeTable kTable;
}
namespace v3 {
extern const ProbeTable kTable;
}
namespace v4 {
extern const ProbeTable kTable;
}
constexpr const ProbeTable* kTables[] = {
#if defined(NORMCORE_X86_V2)
    &v2::kTable,
#endif
#if defined(NORMCORE_X86_V3)
    &v3::kTable,
#endif
#if defined(NORMCORE_X86_V4)
    &v4::kTable,
#endif
};
#elif defined(NORMCORE_NEON_KERNELS)
namespace neon {
extern const ProbeTable kTable;
}
constexpr const ProbeTable* kTables[] = {&neon::kTable};
#else
namespace generic {
extern const ProbeTable kTable;
}
constexpr const ProbeTable* kTables[] = {&generic::kTable};
#endif

const ProbeTable& probes() {
  const std::string_view isa = cpu::kernels().isa;
  for (const ProbeTable* table : kTables) {
    // A level alone, without what the CPU has beyond it, is another table of kernels.
    if (isa.starts_with(table->isa)) return *table;
  }
  throw value_error("no probes of " + std::string(isa));
}

}  // namespace normcore::probes
