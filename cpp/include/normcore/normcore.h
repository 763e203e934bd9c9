// normcore: normalization layers of deep learning, forward and backward. This header is the
// library.
#pragma once

#include "normcore/context.h"
#include "normcore/divisive.h"
#include "normcore/dtype.h"
#include "normcore/errors.h"
#include "normcore/local.h"
#include "normcore/method.h"
#include "normcore/ops.h"
#include "normcore/spectral.h"
#include "normcore/tensor.h"
#include "normcore/version.h"
