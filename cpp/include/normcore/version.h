// The version of normcore, in its one place: CMake and the Python build read it from this line.
#pragma once

#define NORMCORE_VERSION "0.1.0"
