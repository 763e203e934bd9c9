#define NORMCORE_ISA neon
#define NORMCORE_ISA_NAME "neon"
#include "kernels.inl"
