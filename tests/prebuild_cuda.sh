#!/usr/bin/env bash
# Where there is nvcc but no device: compiles what would take longest where the device is.
# build/cuda-prebuilt then holds the library and pybind11, for tests/run_cuda.sh on a machine with the
# device and the same sources; only the sources of the Python module are compiled there. It falls back
# to compiling all where this folder is missing or of other sources.
#   bash tests/prebuild_cuda.sh [ARCHITECTURE, 90 by default]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
unset NORMCORE_TEST_DEVICE # no build without CUDA
. tests/cuda/build.sh
find_tools
architecture=${1:-90}
folder=build/cuda-prebuild
digest="$(library_digest) sm_$architecture $(uname -m)" # of the sources as they are now
configure "$folder" "$architecture"
cmake --build "$folder" --parallel "${CMAKE_BUILD_PARALLEL_LEVEL:-$(processors)}" --target normcore
rm -rf "$prebuilt"
mkdir -p "$prebuilt/pybind11"
strip -g -o "$prebuilt/libnormcore.a" "$folder/libnormcore.a"
gzip "$prebuilt/libnormcore.a"
cp "$(sed -n 's/^CUDA_cudart_static_LIBRARY:[A-Z]*=//p' "$folder/CMakeCache.txt")" "$prebuilt/"
pybind11=$("$python" -c 'import pathlib, pybind11; print(pathlib.Path(pybind11.__file__).parent)')
cp -r "$pybind11/include" "$pybind11/share" "$prebuilt/pybind11/"
# Last, so that what is not whole is not taken.
echo "$digest" >"$prebuilt/digest"
du -sh "$prebuilt"
