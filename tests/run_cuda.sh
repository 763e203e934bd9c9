#!/usr/bin/env bash
# On a machine with a CUDA device: builds, runs the CUDA tests, compute-sanitizer and the benchmark of
# the CUDA backend, and prints a short table last. Needs no network; builds on the packages that are
# installed: CMake, Ninja, pybind11, scikit-build-core, pytest, hypothesis, ml_dtypes, torch, Triton.
#   bash tests/run_cuda.sh [folder for logs and results]
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
out=${1:-build/cuda-run}
mkdir -p "$out"
out=$(cd "$out" && pwd)
site=$PWD/build/cuda-site
export PATH=/usr/local/cuda/bin:$PATH
failed=0
summary=()

step() { # step NAME SECONDS COMMAND...: keep its output and whether it passed
  local name=$1 limit=$2 start=$SECONDS result=passed
  shift 2
  printf '\n==== %s\n' "$name"
  if ! timeout "$limit" "$@" >"$out/$name.log" 2>&1; then
    result=FAILED
    failed=1
    tail -n 25 "$out/$name.log"
  fi
  summary+=("$(printf '%-12s %-7s %4d s' "$name" "$result" $((SECONDS - start)))")
}

# The architecture of this device alone: half the time.
arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
step build 300 python3 -m pip install . --no-build-isolation --no-deps --target "$site" --upgrade \
  -C cmake.define.NORMCORE_CUDA=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES="$arch-real" \
  -C build-dir=build/cuda-wheel
export PYTHONPATH=$site
step available 60 python3 -c 'import normcore as nc; nc.show_config(); assert nc.cuda.is_available()'
# `-W default`: newer versions of other packages may warn.
step tests 240 python3 -m pytest -q -W default -p no:cacheprovider -m cuda tests
tail -n 1 "$out/tests.log"
for tool in memcheck racecheck; do
  step "$tool" 90 compute-sanitizer --tool "$tool" --error-exitcode 9 \
    python3 tests/cuda/sanitize.py
done
step benchmark 120 python3 bench/gpu.py --json "$out/benchmark.json"
tail -n 40 "$out/benchmark.log"

printf '\n==== %s\n' "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | head -n 1)"
printf '%s\n' "${summary[@]}"
exit "$failed"
