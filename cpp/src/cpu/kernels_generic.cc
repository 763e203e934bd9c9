#define NORMCORE_ISA generic
#define NORMCORE_ISA_NAME "generic"
#define NORMCORE_KERNELS_GENERIC
#include "kernels.inl"
