#!/usr/bin/env bash
# On a machine with a CUDA device: builds, tests, measures and sanitizes the CUDA backend, most
# valuable first, within a budget of seconds. What a step has found is on disk as soon as it ends,
# so that a run that is cut off still tells. No network, no git; the sources may be read-only.
#
#   bash tests/run_cuda.sh [--budget SECONDS] [--out FOLDER] [STEP ...]
#
# Steps, in this order whatever that of the names: facts build available smoke quick tests arrays
# memcheck racecheck synccheck initcheck benchmark; all of them where none is named, and `build`
# wherever it has not been done. By name alone: profile (Nsight Compute on a few kernels).
# Results in FOLDER, by default $OUT, else build/cuda-run: run.log, summary.txt, quick.jsonl,
# benchmark.jsonl, tests.xml, arrays.xml. The status is 1 where a step failed.
#
# tests/prebuild_cuda.sh, on a machine with nvcc, shortens the build.
# NORMCORE_TEST_DEVICE=cpu puts torch's CPU in the device's place, for a trial of this script.
set -uo pipefail
SECONDS=0
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

steps=(facts build available smoke quick tests arrays)
steps+=(memcheck racecheck synccheck initcheck benchmark)
budget=${BUDGET:-560}
out=${OUT:-}
wanted=()
while (($#)); do
  case $1 in
    --budget) budget=$2 && shift ;;
    --out) out=$2 && shift ;;
    -*) sed -n '2,/^set/s/^# \{0,1\}//p' "tests/run_cuda.sh" && exit 2 ;;
    *)
      if [[ " ${steps[*]} profile " != *" $1 "* ]]; then
        echo "no step $1, expected some of: ${steps[*]} profile"
        exit 2
      fi
      wanted+=("$1")
      ;;
  esac
  shift
done
if ! ((${#wanted[@]})); then wanted=("${steps[@]}"); fi
if ! [[ $budget =~ ^[0-9]+$ ]]; then echo "the budget is $budget, expected seconds" && exit 2; fi

work=$PWD/build
if ! mkdir -p "$work" 2>/dev/null || ! [ -w "$work" ]; then
  work=${TMPDIR:-/tmp}/normcore-cuda-$UID
fi
out=${out:-$work/cuda-run}
site=$work/cuda-site
mkdir -p "$out" "$work" || exit
out=$(cd "$out" && pwd) || exit
log=$out/run.log summary=$out/summary.txt
. tests/cuda/build.sh
find_tools

export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export NORMCORE_TEST_DEVICE=$device
export XLA_PYTHON_CLIENT_PREALLOCATE=false # JAX would take three quarters of the memory
export TRITON_CACHE_DIR=$work/cuda-triton TORCHINDUCTOR_CACHE_DIR=$work/cuda-inductor
export TORCHINDUCTOR_COMPILE_THREADS=1 # workers would outlive the step
export HYPOTHESIS_STORAGE_DIRECTORY=$work/cuda-hypothesis
rm -f "$out"/{quick,benchmark}.jsonl "$out"/{tests,arrays}.xml
: >"$log"
: >"$summary"

refused=77 # the status of a step that the machine cannot do
failed=0
child=
running=
from=0
began=0

note() { # note STEP RESULT SECONDS TEXT: a line of the summary
  printf '%-10s %-11s %4d s  %s\n' "$@" | tee -a "$summary"
}

stop() { # end what still runs, with what it has started: a process group
  if [[ -z $child ]]; then return; fi
  local group=$child
  child=
  kill -TERM "$group" 2>/dev/null
  kill -TERM -- "-$group" 2>/dev/null
  local i
  for ((i = 0; i < 20; i++)); do
    kill -0 -- "-$group" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -KILL -- "-$group" 2>/dev/null
}

finish() {
  stop
  if [[ $running ]]; then note "$running" interrupted $((SECONDS - began)) "$(last_line)"; fi
  printf '\n==== summary, %d s\n' "$SECONDS"
  cat "$summary"
}
trap finish EXIT
trap 'exit 143' TERM
trap 'exit 130' INT HUP

last_line() { # what the running step printed last
  tail -c "+$((from + 1))" "$log" | tail -c 4000 | tr -d '\000' | grep -v '^[[:space:]]*$' |
    tail -n 1 | cut -c 1-120
}

step() { # step NAME SECONDS COMMAND...: prints the last $show lines, the summary has the last one
  local name=$1 limit=$2 result shown=0 status=0
  shift 2
  # What is left, less the time in which a step that does not end by itself is killed.
  ((limit = limit < budget - SECONDS - 8 ? limit : budget - SECONDS - 8))
  if ((limit < 3)); then
    note "$name" skipped 0 "no time left"
    return 0
  fi
  printf '\n==== %s, at %d s, up to %d s\n' "$name" "$SECONDS" "$limit" | tee -a "$log"
  from=$(wc -c <"$log") began=$SECONDS running=$name
  export step_seconds=$limit
  # In the background, so that a signal to this script is heard soon; `timeout` leads a group.
  timeout -k 5 "$limit" "$@" >>"$log" 2>&1 </dev/null &
  child=$!
  # What waits for the device may not be killed at all: then the script goes on without it.
  while kill -0 "$child" 2>/dev/null && ((SECONDS <= began + limit + 6)); do sleep 0.1; done
  if kill -0 "$child" 2>/dev/null; then
    status=124
  else
    wait "$child" || status=$?
  fi
  kill -KILL -- "-$child" 2>/dev/null # what a step may have left behind
  child=
  case $status in
    0) result=passed shown=${show:-0} ;;
    "$refused") result=n/a ;;
    124 | 137) result='TIMED OUT' shown=${show:-15} failed=1 ;;
    *) result=FAILED shown=${show:-25} failed=1 ;;
  esac
  if ((shown)); then
    tail -c "+$((from + 1))" "$log" | tail -n "$shown" | cut -c 1-200
  fi
  note "$name" "$result" $((SECONDS - began)) "$(last_line)"
  running=
  [[ $result == passed ]]
}

# ---- the steps that are more than a command

facts() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader
  local tool
  for tool in nvcc "${CXX:-g++}" cmake ninja ncu compute-sanitizer "$python"; do
    printf '%s: %s\n' "$tool" \
      "$(command -v "$tool" || echo missing) $("$tool" --version 2>&1 | grep -m 1 '[0-9]\.[0-9]')"
  done
  df -h . "$work" "$out" 2>/dev/null
  grep -m 2 Mem /proc/meminfo
  "$python" tests/cuda/facts.py packages
  nvidia-smi --query-gpu=name,driver_version,compute_cap --format=csv,noheader | head -n 1
}

build() {
  local arch
  arch=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1)
  arch=${arch//[^0-9]/}
  arch=${arch:-90}
  if build_from_prebuilt "$site" "$work/cuda-bindings" "$arch"; then
    echo "from build/cuda-prebuilt, sm_$arch"
  else
    build_all "$site" "$work/cuda-build" "$arch" && echo "all compiled, sm_$arch"
  fi
}

# By workers, each of which is replaced where a fault of the device spoils it or a test hangs.
run_pytest() { # run_pytest XML OPTION-OR-FILE...
  local options=(-v -W default -p no:cacheprovider -m cuda --tb short --no-showlocals)
  options+=(-o console_output_style=classic --junitxml "$1")
  shift
  if "$python" -c 'import xdist' 2>/dev/null; then
    local workers
    workers=$(processors)
    options+=(-n "$((workers < 6 ? workers : 6))")
  fi
  if "$python" -c 'import pytest_timeout' 2>/dev/null; then
    options+=(--timeout 40 --timeout-method thread)
  else
    options+=(-o addopts=) # which are strict about `timeout` in pyproject.toml
  fi
  # What `timeout` sends is taken as an interrupt, after which pytest still reports.
  exec "$python" -c 'import signal, sys, pytest
signal.signal(signal.SIGTERM, signal.default_int_handler)
sys.exit(pytest.main(sys.argv[1:]))' "${options[@]}" "$@"
}

sanitize() { # sanitize TOOL OPTION...: whether it runs here at all is seen on one call
  command -v compute-sanitizer >/dev/null || { echo "no compute-sanitizer" && return "$refused"; }
  local of=(compute-sanitizer --tool "$@")
  # Without the options, where this version does not have them.
  try "${of[@]}" || { (($# > 1)) && of=(compute-sanitizer --tool "$1") && try "${of[@]}"; } || {
    echo "compute-sanitizer does not run here"
    return "$refused"
  }
  exec "${of[@]}" --error-exitcode 9 --print-limit 20 "$python" tests/cuda/sanitize.py
}
try() {
  local said status=0
  said=$("$@" "$python" -c 'import torch; torch.ones(8, device="cuda").sum().item()' 2>&1) ||
    status=$?
  if ((status == 0)) && ! grep -qi 'not supported' <<<"$said"; then return 0; fi
  printf '%s\n' "$said" | tail -n 20
  return 1
}

profile() { # time, traffic and stalls of a few kernels, whose clocks are left alone
  command -v ncu >/dev/null || { echo "no ncu" && return "$refused"; }
  local status=0
  local of=(--clock-control none --launch-skip 6 --launch-count 12)
  of+=(--kernel-name regex:'rows_|cell_|pool_' --section SpeedOfLight --section WarpStateStats)
  of+=(--section Occupancy --section LaunchStats)
  ncu "${of[@]}" "$python" bench/gpu.py --quick --op layer_norm --op batch_norm --rounds 1 \
    --dtype bf16 || status=$?
  if grep -q 'LibraryNotLoaded\|ERR_NVGPUCTRPERM' "$log"; then return "$refused"; fi
  return "$status"
}

timed() { # timed NAME SECONDS SCRIPT ARGUMENT...: which ends before its limit with what it has
  local name=$1 limit=$2
  shift 2
  step "$name" "$limit" bash -c '
    exec "$python" "$@" --device "$device" --seconds $((step_seconds * 9 / 10 - 3))' _ "$@"
}

has() { [[ " ${wanted[*]} " == *" $1 "* ]]; }
functions=(facts build run_pytest sanitize try profile processors find_tools digest)
functions+=(library_digest module_digest configure install_package build_from_prebuilt build_all)
export -f "${functions[@]}"
export python prebuilt device work out log site refused

# ---- all of them

if has facts; then step facts 40 bash -c facts; fi
if [ "$(cat "$site/digest" 2>/dev/null)" != "$(module_digest)" ]; then
  if ! step build 420 bash -c build; then
    note all FAILED "$SECONDS" "no build, nothing to run"
    exit 1
  fi
elif has build; then
  note build passed 0 "of these sources already"
fi
if has available; then
  if ! step available 60 "$python" tests/cuda/facts.py device "$device"; then
    note all FAILED "$SECONDS" "no device, nothing to run"
    exit 1
  fi
fi
if has smoke; then
  show=45 timed smoke 120 tests/cuda/smoke.py
fi
trial=()
if [[ $device != cuda ]]; then trial=(--elements 20000 --rounds 2); fi
if has quick; then
  show=40 timed quick 90 bench/gpu.py --quick "${trial[@]}" --json "$out/quick.jsonl"
fi
if has tests; then
  # Every launch waits, so that a fault is that of the call that made it.
  step tests 240 env CUDA_LAUNCH_BLOCKING=1 bash -c 'run_pytest "$@"' _ "$out/tests.xml" \
    tests/test_cuda.py
fi
if has arrays; then
  # Here nothing waits: streams and graphs are what these are about.
  others=()
  for file in tests/test_cuda_*.py; do others+=("$file"); done
  step arrays 120 bash -c 'run_pytest "$@"' _ "$out/arrays.xml" "${others[@]}"
fi
# Without the cache of torch each array is an allocation of its own, whose bounds are watched.
for tool in "memcheck --track-stream-ordered-races all" racecheck synccheck initcheck; do
  if has "${tool%% *}"; then
    # shellcheck disable=SC2086
    step "${tool%% *}" 110 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 bash -c 'sanitize "$@"' _ $tool
  fi
done
if has benchmark; then
  timed benchmark 500 bench/gpu.py "${trial[@]}" --json "$out/benchmark.jsonl"
fi
if has profile; then step profile 120 bash -c profile; fi
exit "$failed"
