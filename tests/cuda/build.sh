# How tests/run_cuda.sh and tests/prebuild_cuda.sh build; both read this in the repository's root.
# shellcheck shell=bash

python=${PYTHON:-python3}
device=${NORMCORE_TEST_DEVICE:-cuda} # another one is a trial, which may lack nvcc
prebuilt=$PWD/build/cuda-prebuilt

processors() { # without what OMP_NUM_THREADS would make of it
  env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc
}

find_tools() { # add the folders of nvcc, ncu and compute-sanitizer to PATH, wherever they are
  local folder
  for folder in "${CUDA_HOME:-/}" "${CUDA_PATH:-/}" /usr/local/cuda /usr/local/cuda-* /opt/cuda; do
    if [ -x "$folder/bin/nvcc" ]; then PATH=$PATH:$folder/bin; fi
    if [ -d "$folder/compute-sanitizer" ]; then PATH=$PATH:$folder/compute-sanitizer; fi
  done
  for folder in /opt/nvidia/nsight-compute/*; do
    if [ -x "$folder/ncu" ]; then PATH=$PATH:$folder; fi
  done
  export PATH
}

digest() { # of the contents of files and folders
  find "$@" -type f ! -name '*.pyc' ! -name '*.so' -print0 | LC_ALL=C sort -z |
    xargs -0 sha256sum | sha256sum | cut -c 1-16
}
library_digest() { digest CMakeLists.txt cmake cpp/include cpp/src; }
module_digest() { digest CMakeLists.txt cmake cpp/include cpp/src cpp/python python/normcore; }

configure() { # configure FOLDER ARCHITECTURE, the latter as 90: with the Python module
  local options=() kit
  if command -v ninja >/dev/null; then options+=(-G Ninja); fi
  for kit in "$prebuilt/pybind11" "$("$python" -m pybind11 --cmakedir 2>/dev/null)"; do
    if [ -d "$kit/share/cmake/pybind11" ]; then kit=$kit/share/cmake/pybind11; fi
    if [ -f "$kit/pybind11Config.cmake" ]; then
      options+=(-Dpybind11_DIR="$kit")
      break
    fi
  done
  if command -v nvcc >/dev/null; then
    options+=(-DNORMCORE_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$2-real")
    options+=(-DCMAKE_CUDA_COMPILER="$(command -v nvcc)")
  elif [ "$device" != cuda ]; then
    options+=(-DNORMCORE_CUDA=OFF)
  else
    echo "no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda"
    return 1
  fi
  cmake -S . -B "$1" -DCMAKE_BUILD_TYPE=Release -DNORMCORE_BUILD_PYTHON=ON \
    -DNORMCORE_BUILD_TESTS=OFF -DNORMCORE_INSTALL=OFF \
    -DPython_EXECUTABLE="$("$python" -c 'import sys; print(sys.executable)')" "${options[@]}"
}

install_package() { # install_package SITE MODULE: the package with this module; it is imported once
  rm -rf "$1"
  mkdir -p "$1" &&
    cp -r python/normcore "$1/" &&
    rm -f "$1"/normcore/_core*.so &&
    cp "$2" "$1/normcore/" &&
    PYTHONPATH=$1${PYTHONPATH:+:$PYTHONPATH} "$python" -c '
import normcore
print("normcore", normcore.__version__)' &&
    module_digest >"$1/digest"
}

# The library was compiled elsewhere: only the sources of the Python module are compiled here.
build_from_prebuilt() { # build_from_prebuilt SITE FOLDER ARCHITECTURE
  local suffix flags=() include
  [ -f "$prebuilt/digest" ] || { echo "no prebuilt library" && return 1; }
  if [ "$(cat "$prebuilt/digest")" != "$(library_digest) sm_$3 $(uname -m)" ]; then
    echo "the prebuilt library is of other sources, another device or another processor:"
    echo "  $(cat "$prebuilt/digest"), here $(library_digest) sm_$3 $(uname -m)"
    return 1
  fi
  suffix=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("EXT_SUFFIX"))') || return
  include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))') || return
  flags=(-std=c++20 -O2 -DNDEBUG -fPIC -fvisibility=hidden -Icpp/include -Icpp/src)
  flags+=(-isystem "$prebuilt/pybind11/include" -isystem "$include")
  rm -rf "$2" && mkdir -p "$2" || return
  gzip -dc "$prebuilt/libnormcore.a.gz" >"$2/libnormcore.a" || return
  printf '%s\0' cpp/python/*.cc | xargs -0 -P "$(processors)" -I {} bash -c '
    source=$1 folder=$2
    shift 2
    exec "${CXX:-g++}" "$@" -c "$source" -o "$folder/$(basename "$source").o"' _ {} "$2" \
    "${flags[@]}" || return
  "${CXX:-g++}" -shared -Wl,--version-script=cpp/python/module.map "$2"/*.o \
    "$2/libnormcore.a" "$prebuilt/libcudart_static.a" -lpthread -ldl -lrt -o "$2/_core$suffix" ||
    return
  install_package "$1" "$2/_core$suffix"
}

build_all() { # build_all SITE FOLDER ARCHITECTURE
  local module
  configure "$2" "$3" && cmake --build "$2" --parallel "$(processors)" --target _core || return
  for module in "$2"/_core*.so; do install_package "$1" "$module" || return; done
}
