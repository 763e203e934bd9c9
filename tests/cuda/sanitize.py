"""A short list of calls for compute-sanitizer: each function in two dtypes, each length of rows.

    compute-sanitizer --tool memcheck python3 tests/cuda/sanitize.py [FUNCTION ...]

Arrays end where their memory ends, so that memcheck sees a stray access; results are compared with
the CPU's all the same.
"""

import argparse
import sys

import smoke
from every_call import CASES

# Each step of the ladder of row kernels, at an odd length.
ROWS = [(5, 7), (9, 64), (3, 771), (2, 4097), (2, 40000), (1, 600001)]


def calls():
    rows = [c for c in CASES if smoke.stem(c) in ("layer_norm", "rms_norm")]
    rows = [c for c in rows if c.options["axis"] == -1]
    pooled = [c for c in CASES if smoke.stem(c) in smoke.POOLED]
    for dtype in ("float32", "bfloat16"):
        yield from (smoke.Call(case, shape, dtype) for shape in ROWS for case in rows)
    for dtype, layout in (("float32", "contiguous"), ("bfloat16", "channels_last")):
        yield from (smoke.Call(case, smoke.IMAGES, dtype, layout) for case in CASES)
        yield from (smoke.Call(case, (2, 6, 90, 101), dtype, layout) for case in pooled)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("function", nargs="*", help="only these, forward and backward")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    args = parser.parse_args()
    device = smoke.Device(args.device, margin=0)
    count = {"ok": 0, "refused": 0, "FAIL": 0}
    for call in calls():
        if args.function and smoke.stem(call.case) not in args.function:
            continue
        state, said = smoke.attempt(call, device)
        count[state] += 1
        if state == "FAIL":
            print(state, call, said, flush=True)
    print(", ".join(f"{n} {state}" for state, n in count.items()), flush=True)
    if args.device == "cuda":
        device.core.torch.cuda.synchronize()
    return int(count["FAIL"] > 0)


if __name__ == "__main__":
    sys.exit(main())
