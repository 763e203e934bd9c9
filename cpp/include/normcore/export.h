// Symbol visibility and the host/device marker of the formulas.
#pragma once

#if defined(_WIN32)
#define NORMCORE_API
#else
#define NORMCORE_API __attribute__((visibility("default")))
#endif

#if defined(__CUDACC__)
#define NORMCORE_HD __host__ __device__
#else
#define NORMCORE_HD
#endif
