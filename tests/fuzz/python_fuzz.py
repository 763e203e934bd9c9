"""The fuzzer of the Python interface.

    python tests/fuzz/python_fuzz.py --seed 7 --seconds 60
    python tests/fuzz/python_fuzz.py --seed 7 --rounds 1     one round again

Hypothesis chooses a function or a layer and arguments that fit together; one or two are then spoilt
(`spoil.py`, `hostile.py`). A call may succeed, or raise TypeError or ValueError with a message that
names an argument: the spoilt one, where nothing can be said for it. After an error no array has
changed; after a success each element of ``out`` has been written and no input has changed.

Calls are made in a process of their own, which notes each one before it is made: after a crash the
seed and the call are known.
"""

import argparse
import collections
import faulthandler
import inspect
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from dataclasses import replace
from pathlib import Path

import hypothesis
import numpy as np
from arguments import arguments, constructor_arguments, functions, layers
from hostile import Capsule, HostileError
from hypothesis import strategies as st
from spoil import spoil

import normcore as nc

# Options that backward functions take and do not look at, so that both calls share a dict of them.
FORWARD_ALONE = ("momentum", "unbiased_running_var")
ROUND = 100  # examples between two looks at the clock
CALL_SECONDS = 100  # of one call, after which it hangs
ADDRESS_SPACE = 8 << 30  # so that a size that was believed is a MemoryError

POISON = {"float32": 0x7FA5A5A5, "float64": 0x7FF4A5A5A5A5A5A5, "float16": 0x7DA5}
POISON["bfloat16"] = 0x7FA5  # signalling NaNs, which no arithmetic returns


class Failure(AssertionError):
    """A rule was broken."""


# ---- what is remembered of a call


def text(value):
    if isinstance(value, np.ndarray) and value.dtype.kind != "O":
        steps = [s // max(1, value.itemsize) for s in value.strides]
        return f"{type(value).__name__}:{value.dtype}{value.shape}/{steps}"
    shown = (
        ascii(value) if not isinstance(value, tuple) else "(" + ", ".join(map(text, value)) + ")"
    )
    return shown if len(shown) < 200 else shown[:200] + " ..."


def memory(values):
    """The bytes of all arrays among the values, with what surrounds a view."""
    found = []
    for value in values:
        if isinstance(value, tuple):
            found.append(memory(value))
        value = value.a if isinstance(value, Capsule) else value
        if type(value) is not np.ndarray or value.dtype.kind == "O":
            continue
        while type(value.base) is np.ndarray:
            value = value.base
        found.append(value.tobytes())
    return found


def unsigned(a):
    return a.view(f"u{a.itemsize}")


def is_plain_out(value):
    return type(value) is np.ndarray and value.dtype.name in POISON and value.flags.writeable


class Log:
    """The last call, in a file that outlives this process."""

    def __init__(self, path):
        self.file = os.open(path, os.O_CREAT | os.O_WRONLY)
        self.round = None

    def __call__(self, line):
        line = f"--seed {self.round} --rounds 1\n{line}\n".encode()
        os.ftruncate(self.file, 0)
        os.pwrite(self.file, line, 0)


# ---- the rules


def check_error(error, spoilt, names, call):
    if isinstance(error, HostileError):  # of the argument's own making
        return
    message = str(error)
    if type(error) is RuntimeError and EXPECTED[0] in message:
        return
    if not isinstance(error, (TypeError, ValueError)):
        raise Failure(f"{type(error).__name__}: {message[:300]}\n{call}") from error
    if isinstance(error, ValueError) and any(words in message for words in EXPECTED):
        return
    words = set(re.findall(r"\w+", message))
    wanted = [s.name for s in spoilt if s.refused] if len(spoilt) == 1 else []
    if not words & set(wanted or names):
        raise Failure(f"names no {' or '.join(wanted) or 'argument'}: {message[:300]!r}\n{call}")


def is_error_of_hypothesis(error):
    return type(error).__module__.startswith("hypothesis")


def attempt(function, values, spoilt, names, call, kept):
    """Make the call; return (result, whether it succeeded). An error leaves `kept` as it was."""
    before = memory(kept)
    faulthandler.dump_traceback_later(CALL_SECONDS, exit=True)
    try:
        result = function(*values[0], **values[1])
    except Exception as error:
        if is_error_of_hypothesis(error):
            raise
        if not spoilt and not any(words in str(error) for words in EXPECTED):
            raise Failure(f"a valid call was refused: {error}\n{call}") from error
        check_error(error, spoilt, names, call)
        if memory(kept) != before:
            raise Failure(f"an error changed an array: {error}\n{call}") from error
        return None, False
    finally:
        faulthandler.cancel_dump_traceback_later()
    refused = [str(s) for s in spoilt if s.refused]
    if refused:
        raise Failure(f"must be refused: {'; '.join(refused)}\n{call}")
    return result, True


def fuzz_function(draw, log):
    name = draw(st.sampled_from(functions()))
    function = getattr(nc, name)
    given, _ = arguments(name, draw)
    spoilt = []
    for _ in range(draw(st.sampled_from((1, 0, 1, 2)))):
        key = draw(st.sampled_from(sorted(given)))
        if any(s.name == key for s in spoilt):
            continue
        one = spoil(draw, key, given[key], given)
        if name.endswith("_backward") and key in FORWARD_ALONE:
            one = replace(one, refused=False)
        spoilt.append(one)
        given[key] = one.value
    out = given.get("out")
    poisoned = is_plain_out(out) and not any(s.name == "out" for s in spoilt)
    if poisoned:
        unsigned(out)[...] = POISON[out.dtype.name]
    call = f"{name}({', '.join(f'{k}={text(v)}' for k, v in given.items())})"
    call += "".join(f"\n  {s}" for s in spoilt)
    log(call)
    written = ("out", "running_mean", "running_var", "running_std", "running_scale")
    inputs = [v for k, v in given.items() if k not in written]
    if any(s.what.endswith(("itself", "reversed", "shifted")) for s in spoilt):
        inputs = []  # what is written may lie there
    before = memory(inputs)
    names = (*given, *PARTS)
    _, ok = attempt(function, ((), given), spoilt, names, call, list(given.values()))
    if ok and memory(inputs) != before:
        raise Failure(f"an input was changed\n{call}")
    if ok and poisoned and (unsigned(out) == POISON[out.dtype.name]).any():
        raise Failure(f"an element of out was not written\n{call}")
    return ok


# What messages also call arguments: a part of one, or its size.
PARTS = (
    "axis",
    "channel_axis",
    "stats",
    "result",
    "mask",
    "channel",
    "spatial",
    "eps",
    "x",
    "dtype",
)
# What a call that looks valid may lack: a forward call, a second value per channel, its stats.
EXPECTED = ("before a forward call", "Expected more than 1 ", "stats is None, expected what")


def layer_state(layer):
    return [layer.training, memory(layer.state_dict().values()), memory(layer.grads.values())]


def fuzz_layer(draw, log):
    name = draw(st.sampled_from(layers()))
    given, g = constructor_arguments(name, draw)
    spoilt = []
    if draw(st.booleans()) and given:
        key = draw(st.sampled_from(sorted(given)))
        spoilt.append(spoil(draw, key, given[key], {}))
        given[key] = spoilt[-1].value
    call = f"{name}({', '.join(f'{k}={text(v)}' for k, v in given.items())})"
    log(call + "".join(f"\n  {s}" for s in spoilt))
    try:
        layer, ok = attempt(getattr(nc, name), ((), given), spoilt, tuple(given), call, [])
    except Failure as failure:  # a layer of 2**40 channels is only too large
        if isinstance(failure.__cause__, MemoryError):
            return False
        raise
    if not ok:
        return False
    if draw(st.booleans()):
        layer.eval()
    for _ in range(draw(st.integers(1, 3))):
        ok = fuzz_method(draw, log, layer, g, call, spoilt)
    return ok


def fuzz_method(draw, log, layer, g, call, spoilt_before):
    method = draw(st.sampled_from(("__call__", "__call__", "backward", "load_state_dict")))
    argument = next(iter(inspect.signature(getattr(layer, method)).parameters), None)
    if method == "load_state_dict":
        values = {k: np.array(v) for k, v in layer.state_dict().items()}
    else:  # some layers take no x
        values = {argument: g.like_x()} if argument else {}
        if method == "backward" and "v" in layer.parameters:  # of the weight itself
            values = {argument: g.array(g.shape, layer.parameters["v"].dtype)}
        if getattr(layer, "time_steps", None) is not None:
            values["step"] = 0
    spoilt = []
    if values and draw(st.booleans()):
        key = draw(st.sampled_from(sorted(values)))
        spoilt.append(spoil(draw, key, values[key], values))
        values[key] = spoilt[-1].value
    if method == "load_state_dict":
        for s in spoilt:  # converts whatever NumPy converts to real numbers
            s.refused = s.refused and not s.what.startswith(("DLPack", "long double"))
    call += f".{method}({', '.join(f'{k}={text(v)}' for k, v in values.items())})"
    call += "".join(f"\n  {s}" for s in spoilt)
    log(call)
    before = layer_state(layer)
    positional = (values,) if method == "load_state_dict" else tuple(values.values())
    names = (*values, *vars(layer), *PARTS, *layer.state_dict())
    own = list(spoilt)
    spoilt += [replace(s, refused=False) for s in spoilt_before]
    spoilt_before += own  # a later backward call belongs to this x
    _, ok = attempt(
        getattr(layer, method), (positional, {}), spoilt, names, call, list(values.values())
    )
    if not ok and layer_state(layer) != before:
        raise Failure(f"an error changed the layer\n{call}")
    return ok


# ---- rounds of examples, in a process of their own


def run_rounds(options):
    log = Log(options.log)
    faulthandler.enable()
    if "asan" not in os.environ.get("LD_PRELOAD", ""):
        resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    end = time.monotonic() + options.seconds
    seed, answers, failures = options.seed, collections.Counter(), collections.Counter()

    def example(data):
        target = data.draw(st.sampled_from((fuzz_function, fuzz_function, fuzz_layer)))
        try:
            answers[target(data.draw, log)] += 1
        except Failure as failure:
            if not options.survey:
                raise
            # The first of each kind: the message without what differs between calls.
            kind = re.sub(r"\d+|'.*?'|\(.*?\)|\[.*?\]", "#", str(failure).split("\n")[0])
            failures[kind] += 1
            if failures[kind] == 1:
                print(f"--seed {seed}: " + str(failure).replace("\n", "\n    "), flush=True)

    while time.monotonic() < end and seed - options.seed < options.rounds:
        log.round = seed
        settings = hypothesis.settings(
            max_examples=ROUND,
            database=None,
            deadline=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            print_blob=False,
        )
        test = hypothesis.seed(seed)(settings(hypothesis.given(st.data())(example)))
        try:
            test()
        except Failure:
            traceback.print_exc()
            print(f"python_fuzz: failed; repeat with --seed {seed} --rounds 1", flush=True)
            return 1
        seed += 1
    for kind, times in failures.most_common():
        print(f"{times} times: {kind}")
    print(
        f"python_fuzz: seeds {options.seed} to {seed - 1}, {answers[True]} calls answered, "
        f"{answers[False]} refused",
        flush=True,
    )
    if options.rounds > 1 and min(answers[True], answers[False]) * 10 < sum(answers.values()):
        print("python_fuzz: hardly any call was answered, or hardly any refused")
        return 1
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=10**9)
    parser.add_argument("--survey", action="store_true", help="go on after failures, list all")
    parser.add_argument("--log", help=argparse.SUPPRESS)  # this is the process that makes calls
    options = parser.parse_args()
    if options.log:
        warnings.simplefilter("ignore")
        return run_rounds(options)
    print(f"python_fuzz: --seed {options.seed}", flush=True)
    end, died = time.monotonic() + options.seconds, 0
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "call")
        while True:
            seconds = max(0, end - time.monotonic())
            told = ["--seed", str(options.seed), "--seconds", str(seconds), "--log", str(log)]
            done = subprocess.run([sys.executable, *sys.argv, *told], check=False)
            if done.returncode in (0, 1):
                return 1 if done.returncode or died else 0
            died += 1
            call = log.read_text()
            print(f"python_fuzz: died with {done.returncode}; repeat with {call}", flush=True)
            if not options.survey or end - time.monotonic() < 5:
                return 1
            options.seed = int(call.split()[1]) + 1


if __name__ == "__main__":
    sys.exit(main())
