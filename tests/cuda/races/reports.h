// What ThreadSanitizer has found in this process so far.
#pragma once

namespace races {

int reports();

}  // namespace races
