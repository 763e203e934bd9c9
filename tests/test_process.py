"""What surrounds a call: the thread's floating-point environment, signals, little memory, forked
children, subinterpreters, the end of the interpreter, and what the module shows to other libraries.

Whatever might hang or end the process runs in one of its own, with a time limit.
"""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from contextlib import contextmanager
from ctypes.util import find_library
from pathlib import Path

import numpy as np
import pytest
from support import VARIANTS, assert_same_bits, make_problem

import normcore as nc

each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=str)
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def run_python(code, *arguments, timeout=120, **environment):
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def expect_success(code, *arguments, **options):
    result = run_python(code, *arguments, **options)
    assert result.returncode == 0, f"rc {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result.stdout


# ---- the floating-point environment

# Where fenv_t keeps the register, and in it: flush subnormal results and take them for 0; all
# rounding modes but the default; traps.
REGISTERS = {
    "x86_64": (32, 28, {"flush": 0x8040, "up": 0x4000, "down": 0x2000, "to zero": 0x6000}, 0x1E80),
    "aarch64": (8, 0, {"flush": 1 << 24, "up": 1 << 22, "down": 1 << 23, "to zero": 3 << 22}, 0),
}
REGISTER = REGISTERS.get(platform.machine()) if sys.platform == "linux" else None


@contextmanager
def float_environment(name):
    """The calling thread computes otherwise; ends with a check that it still does."""
    size, at, changes, _ = REGISTER
    libm = ctypes.CDLL("libm.so.6")

    def read():
        state = ctypes.create_string_buffer(size)
        assert libm.fegetenv(state) == 0
        return state

    before = read()
    changed = ctypes.create_string_buffer(before.raw, size)
    register = int.from_bytes(before.raw[at : at + 4], "little") | changes[name]
    changed[at : at + 4] = register.to_bytes(4, "little")
    assert libm.fesetenv(changed) == 0
    try:
        yield
        after = read().raw[at : at + 4]
    finally:
        libm.fesetenv(before)
    flags = 0x3F if platform.machine() == "x86_64" else 0
    assert int.from_bytes(after, "little") | flags == register | flags, "it was not put back"


def specials(rng, scale):
    """Calls of what is no registered method."""
    x, dy = (scale * rng.normal(size=(2, 3, 16, 40, 40))).astype(np.float32)
    matrix = (scale * rng.normal(size=(300, 700))).astype(np.float32)
    beta, gamma = np.ones(16, np.float32), rng.uniform(0, 1, (16, 16)).astype(np.float32)
    windows = {"summation_window": 3, "suppression_window": 5}
    return {
        "norm": lambda: [nc.norm(x, axis=1), nc.norm(x, ord=1, axis=-1)],
        "moments": lambda: nc.moments(x, axis=(0, 2)),
        "lrn": lambda: [nc.local_response_norm(x, 5, k=0.0, alpha=1.0)],
        "lrn_backward": lambda: [nc.local_response_norm_backward(dy, x, 5)],
        "ldn": lambda: [nc.local_divisive_norm(x, 1e-30, **windows)],
        "ldn_backward": lambda: [nc.local_divisive_norm_backward(dy, x, 1e-30, **windows).dx],
        "gdn": lambda: [nc.gdn(x, beta, gamma)],
        "gdn_backward": lambda: list(nc.gdn_backward(dy, x, beta, gamma)[:3]),
        "power_method": lambda: list(nc.power_method(matrix, n_iterations=3)[1:3]),
        "weight_norm": lambda: [nc.weight_norm(matrix, np.ones((300, 1), np.float32))],
    }


def arrays(results):
    return [np.asarray(r) for r in results if r is not None]


def everything(problem):
    buffers = {k: v.copy() for k, v in problem.options.items() if k.startswith("running")}
    y, stats = problem.forward(return_stats=True, **buffers)
    return arrays((y, stats[0], *buffers.values(), *problem.backward()))


needs_register = pytest.mark.skipif(
    REGISTER is None, reason="where fenv_t keeps what is known of Linux on x86-64 and aarch64 alone"
)


@needs_register
@each_variant
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda t: t.__name__)
def test_a_method_computes_the_same_in_any_environment(rng, threads, variant, dtype):
    # Results and what they are summed from reach into the subnormal numbers.
    problem = make_problem(rng, variant, dtype, (4, 12, 67, 41))
    tiny = {np.float32: 1e-37, np.float64: 1e-307, np.float16: 1e-6}[dtype]
    problem.x = (problem.x * tiny).astype(dtype)
    threads(1)
    want = everything(problem)
    for count in (1, 4):
        threads(count)
        for name in REGISTER[2]:
            with float_environment(name):
                got = everything(problem)
            assert_same_bits(got, want, f"{name}, {count} threads")


@needs_register
@pytest.mark.parametrize("name", list(specials(np.random.default_rng(0), 1.0)))
def test_other_functions_compute_the_same_in_any_environment(rng, threads, name):
    call = specials(rng, 1e-37)[name]
    threads(1)
    want = arrays(call())
    for count in (1, 4):
        threads(count)
        for environment in REGISTER[2]:
            with float_environment(environment):
                got = arrays(call())
            assert_same_bits(got, want, f"{environment}, {count} threads")


@needs_register
def test_the_environment_is_put_back_after_an_error(rng):
    x = rng.normal(size=(4, 6, 50, 50)).astype(np.float32)
    with float_environment("flush"), pytest.raises(ValueError):
        nc.batch_norm(x, eps=-1.0)
    with float_environment("up"), pytest.raises(ValueError):
        nc.divisive_norm(x, -np.ones((6, 6), np.float32), np.ones(6, np.float32))


@pytest.mark.skipif(platform.machine() != "x86_64", reason="aarch64 has no traps to enable")
@pytest.mark.skipif(sys.platform != "linux", reason="feenableexcept is glibc's")
def test_traps_of_the_caller_do_not_end_a_call():
    code = """
import ctypes, numpy as np, normcore as nc
libm = ctypes.CDLL("libm.so.6")
x = np.zeros((8, 64, 90, 90), np.float32)
x[0, 0, 0, :3] = np.nan, np.inf, 3e38
nc.set_num_threads(4)
for _ in range(2):
    libm.feenableexcept(0x1d)  # invalid, division by zero, overflow, underflow
    y = nc.layer_norm(x, eps=0.0)
    z = nc.group_norm_backward(x, x, 4)
    assert libm.fedisableexcept(0x1d) == 0x1d, "they were not put back"
"""
    expect_success(code)


# ---- signals

INTERRUPT = """
import signal, sys, threading, _thread
import numpy as np, normcore as nc

def answer(*_):
    raise KeyboardInterrupt

nc.set_num_threads(int(sys.argv[2]))
one = np.ones((1, 1), np.float32)
matrix = np.random.default_rng(0).normal(size=(60, 60)).astype(np.float32)
large = np.random.default_rng(0).normal(size=(900, 1100)).astype(np.float32)
u = np.ones(900, np.float32)
x = np.broadcast_to(one, (2**19, 2**19))  # a TiB to read
call = {
    "power_method": lambda: nc.power_method(large, n_iterations=10**12),
    "small power_method": lambda: nc.power_method(matrix, n_iterations=10**12),
    "spectral_norm": lambda: nc.spectral_norm(large, u, n_power_iterations=10**12),
    "norm": lambda: nc.norm(x),
    "norm of rows": lambda: nc.norm(x, axis=1),
    "norm of columns": lambda: nc.norm(x.T, axis=1),
    "moments": lambda: nc.moments(x),
}[sys.argv[1]]
if sys.argv[3] == "signal":
    signal.signal(signal.SIGALRM, answer)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
else:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    threading.Timer(0.3, _thread.interrupt_main).start()
try:
    call()
except KeyboardInterrupt:
    pass
# The next call is as ever.
np.testing.assert_allclose(nc.norm(large), np.linalg.norm(large.astype(np.float64)), rtol=1e-6)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="setitimer is POSIX's")
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("how", ["signal", "interrupt_main"])
@pytest.mark.parametrize(
    "name",
    [
        "power_method",
        "small power_method",
        "spectral_norm",
        "norm",
        "norm of rows",
        "norm of columns",
        "moments",
    ],
)
def test_long_calls_are_interrupted(name, how, count):
    # They would take from minutes to years.
    expect_success(INTERRUPT, name, count, how, timeout=60)


def test_handlers_run_during_a_call_and_it_goes_on():
    code = """
import signal, numpy as np, normcore as nc
seen = []
def handler(*_):
    seen.append(nc.layer_norm(np.arange(6.0)).sum())  # a call within a call
    if len(seen) == 3:
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.2, 0.2)
try:
    nc.power_method(np.ones((400, 500), np.float32), n_iterations=10**12)
except KeyboardInterrupt:
    signal.setitimer(signal.ITIMER_REAL, 0)
assert len(seen) == 3, seen
"""
    expect_success(code)


# ---- the end of the interpreter

DAEMONS = """
import sys, threading, time
import numpy as np, normcore as nc

nc.set_num_threads(2)
x = np.ones((16, 32, 33, 35), np.float32)
matrix = np.ones((300, 400), np.float32)
class Comm:
    def allreduce(self, array):
        for _ in range(1000): pass
        return array
layer = nc.BatchNorm(32, comm=Comm())
call = {
    "layer_norm": lambda: nc.layer_norm(x),
    "backward": lambda: nc.group_norm_backward(x, x, 4),
    "gdn": lambda: nc.gdn(x, np.ones(32, np.float32), np.ones((32, 32), np.float32)),
    "power_method": lambda: nc.power_method(matrix, n_iterations=10**9),
    "comm": lambda: layer(x),
}[sys.argv[1]]
def work():
    while True:
        call()
for _ in range(5):
    threading.Thread(target=work, daemon=True).start()
time.sleep(float(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("name", "repeats"),
    [("layer_norm", 20), ("backward", 3), ("gdn", 3), ("power_method", 2), ("comm", 5)],
)
def test_daemon_threads_end_with_the_interpreter(name, repeats):
    for i in range(repeats):
        expect_success(DAEMONS, name, 0.03 * i)


# ---- forked children

FORK = """
import os, select, sys
import numpy as np
import normcore as nc

nc.set_num_threads(3)
x = np.random.default_rng(1).normal(size=(16, 32, 61, 67)).astype(np.float32)

def in_child(f):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, f())
        finally:
            os._exit(0)
    os.close(write)
    ready, _, _ = select.select([read], [], [], 60)
    if not ready:
        os.kill(pid, 9)
        sys.exit("the child hangs")
    answer = os.read(read, 1000)
    os.waitpid(pid, 0)
    return answer

def call():
    y = nc.batch_norm(x, training=True)
    return nc.group_norm_backward(x, y, 4).dx.tobytes()[:500]

def threads():
    tasks = len(os.listdir("/proc/self/task"))
    nc.layer_norm(x)
    return str(len(os.listdir("/proc/self/task")) - tasks).encode()
"""


@needs_fork
@pytest.mark.parametrize("first", ["nothing", "normcore", "torch"])
def test_children_of_a_process_with_threads(first):
    if first == "torch":
        pytest.importorskip("torch", reason="the other user of OpenMP in this test is torch")
    start = {
        "nothing": "",
        "normcore": "call()",
        "torch": "import torch; torch.set_num_threads(2); torch.randn(2000, 2000).exp().sum()",
    }[first]
    end = """
want = in_child(call)
assert want == in_child(lambda: call() and call())
assert want == in_child(lambda: in_child(call)), "in a grandchild"
assert want == in_child(lambda: call() and in_child(call)), "of a child with threads"
assert want == call(), "in the parent"
assert want == in_child(call), "in a child after that"
"""
    expect_success(FORK + start + end)


@needs_fork
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="counts threads in /proc")
def test_a_child_has_threads_of_its_own():
    expect_success(FORK + "call()\nassert in_child(threads) == b'2'")


@needs_fork
def test_a_child_is_interrupted_too():
    end = """
import signal
def interrupted():
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        nc.norm(np.broadcast_to(np.ones((1, 1), np.float32), (2**19, 2**19)))
    except KeyboardInterrupt:
        return b"interrupted"
assert in_child(interrupted) == b"interrupted"
"""
    expect_success(FORK + "call()" + end)


# ---- subinterpreters

SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:
    import _xxsubinterpreters as interpreters
message, path, when, what = sys.argv[1:]
if when == "after":
    import normcore
code = f'''
import importlib.util, sys
sys.path[:] = {sys.path!r}
try:
    if {what!r} == "module":
        spec = importlib.util.spec_from_file_location("normcore._core", {path!r})
        importlib.util.module_from_spec(spec)
    else:
        import normcore
except ImportError as error:
    with open({message!r}, "w") as file:
        file.write(str(error))
'''
legacy = ["legacy"] if sys.version_info >= (3, 13) else []
interpreters.run_string(interpreters.create(*legacy), code)
"""


@pytest.mark.parametrize("when", ["first", "after"])
@pytest.mark.parametrize("what", ["module", "package"])
def test_a_subinterpreter_gets_an_import_error(tmp_path, what, when):
    try:
        __import__("_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters")
    except ImportError:
        pytest.skip("this Python has no subinterpreters")
    message = tmp_path / "message"
    expect_success(SUBINTERPRETER, message, nc._core.__file__, when, what, timeout=60)
    text = message.read_text()
    if what == "module":  # of the package NumPy may be refused before
        assert text == "normcore._core runs in the main interpreter only, not in a subinterpreter"


# ---- threads and memory that are not there

MOST = 1024


@pytest.mark.parametrize("count", [MOST + 1, 2**20, 2**31, 2**32 + 1, 2**40])
def test_too_many_threads_are_refused(threads, count):
    before = nc.get_num_threads()
    with pytest.raises(ValueError, match=rf"n is {count}, expected 1 to {MOST}"):
        threads(count)
    assert nc.get_num_threads() == before


def test_a_variable_that_asks_for_too_many_threads():
    code = "import normcore as nc; print(nc.get_num_threads())"
    assert 1 <= int(expect_success(code, OMP_NUM_THREADS="1000000")) <= MOST


LIMITED = """
import ctypes, os, resource, sys, threading
import numpy as np, normcore as nc

def limit(room):
    size = next(line for line in open("/proc/self/status") if line.startswith("VmSize"))
    used = int(size.split()[1]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (used + room, resource.RLIM_INFINITY))
def no_limit():
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
@pytest.mark.parametrize("room", [0, 2**24, 2**28])
def test_threads_that_cannot_be_started_are_not_missed(room):
    # A stack is of 8 MiB: none, one or some thirty of them.
    code = """
x = np.random.default_rng(0).normal(size=(64, 32, 33, 35)).astype(np.float32)
y = np.empty_like(x)
nc.set_num_threads(1)
want = nc.layer_norm(x)
nc.set_num_threads(512)
limit(int(sys.argv[1]))
for _ in range(3):
    y[...] = 0
    nc.layer_norm(x, out=y)
no_limit()
assert (y == want).all()
nc.set_num_threads(16)
assert (nc.layer_norm(x) == want).all()
"""
    expect_success(LIMITED + code, room)


LITTLE_MEMORY = """
sys.path.insert(0, sys.argv[1])
from support import VARIANTS, make_problem
count = int(sys.argv[2])
nc.set_num_threads(count)
rng = np.random.default_rng(0)
many = rng.normal(size=(6, 300, 30, 31)).astype(np.float32)
few = many[:, :16]
matrix = rng.normal(size=(300, 2000)).astype(np.float32)
beta, gamma = np.ones(300, np.float32), rng.uniform(0, 1, (300, 300)).astype(np.float32)
windows = {"summation_window": 3, "suppression_window": 5}
calls = {}
for variant in VARIANTS:
    problem = make_problem(rng, variant, np.float16, (6, 36, 30, 31), "channels_last")
    buffers = {k: v for k, v in problem.options.items() if k.startswith("running")}
    calls[f"{variant} forward"] = (lambda p=problem: [p.forward()]), buffers
    calls[f"{variant} backward"] = (lambda p=problem: p.backward()), {}
for name, call in {
    "norm": lambda: [nc.norm(many, axis=1)],
    "moments": lambda: nc.moments(many, axis=0),
    "lrn": lambda: [nc.local_response_norm(many, 5)],
    "lrn backward": lambda: [nc.local_response_norm_backward(many, many, 5)],
    "ldn": lambda: [nc.local_divisive_norm(few, 1.0, **windows)],
    "ldn backward": lambda: nc.local_divisive_norm_backward(few, few, 1.0, **windows),
    "gdn": lambda: [nc.gdn(many, beta, gamma)],
    "gdn backward": lambda: nc.gdn_backward(many, many, beta, gamma)[:3],
    "divisive_norm": lambda: [nc.divisive_norm(many, gamma, beta)],
    "power_method": lambda: nc.power_method(matrix, n_iterations=2)[1:3],
    "spectral_norm": lambda: [nc.spectral_norm(matrix, np.ones(300, np.float32)).weight],
}.items():
    calls[name] = call, {}
bits = lambda results: [np.asarray(r).tobytes() for r in results if r is not None]
failed = 0

def attempt(call, room, answer):
    # In a thread that has no scratch memory yet, nor helpers.
    limit(room)
    try:
        answer.append(call())
    except MemoryError:
        answer.append(None)
    except BaseException as error:
        answer.append(error)
    finally:
        no_limit()

for name, (call, buffers) in calls.items():
    start = {k: v.copy() for k, v in buffers.items()}
    def restart():
        for k, v in buffers.items():
            v[...] = start[k]
    want = bits(call())
    moved = bits(buffers.values())
    for room in (0, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 3 << 20, 1 << 23):
        restart()
        answer = []
        thread = threading.Thread(target=attempt, args=(call, room, answer))
        thread.start()
        thread.join()
        if answer[0] is None:
            failed += 1
            assert bits(buffers.values()) == bits(start.values()), f"{name}: a buffer has moved"
        else:
            assert not isinstance(answer[0], BaseException), (name, answer[0])
            assert bits(answer[0]) == want, f"{name} with {room} bytes left"
            assert bits(buffers.values()) == moved, f"{name} with {room} bytes left"
    restart()
    assert bits(call()) == want, f"{name} afterwards"
# Not more: what the heap has free beneath its end is no new memory, and serves small calls.
assert failed > len(calls) // 2, f"the limits are none: {failed} of {len(calls)}"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits address space as Linux does")
@pytest.mark.parametrize("count", [1, 4])
def test_little_memory_is_an_error(count):
    # What is freed goes back to the system at once, so that the limit is one.
    settings = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
    settings["MALLOC_MMAP_THRESHOLD_"] = str(2**16)
    tests = Path(__file__).parent
    expect_success(LIMITED + LITTLE_MEMORY, tests, count, timeout=600, **settings)


@pytest.mark.skipif(find_library("gomp") is None, reason="no OpenMP runtime of GNU")
def test_threads_need_little_stack():
    # OpenMP's, since their stacks can be had small.
    code = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
import numpy as np, normcore as nc
ctypes.CDLL("libgomp.so.1")
assert nc._core.has_openmp()
from support import VARIANTS, make_problem
rng = np.random.default_rng(0)
nc.set_num_threads(4)
for variant in VARIANTS:
    for dtype in (np.float32, np.float64, np.float16):
        problem = make_problem(rng, variant, dtype, (4, 36, 67, 41), "channels_last")
        problem.forward()
        problem.backward()
x = rng.normal(size=(6, 200, 30, 31)).astype(np.float32)
beta, gamma = np.ones(200, np.float32), rng.uniform(0, 1, (200, 200)).astype(np.float32)
nc.gdn(x, beta, gamma)
nc.gdn_backward(x, x, beta, gamma)
nc.local_response_norm_backward(x, x, 5)
nc.local_divisive_norm_backward(x, x, 1.0, summation_window=3, suppression_window=5)
"""
    expect_success(code, Path(__file__).parent, OMP_STACKSIZE="64k")


# ---- the module as a library


def elf(*command):
    tool = shutil.which(command[0])
    if sys.platform != "linux" or tool is None:
        pytest.skip(f"needs ELF and {command[0]}")
    return subprocess.run(
        [tool, *command[1:], nc._core.__file__], capture_output=True, text=True, check=True
    ).stdout


def test_the_module_exports_its_start_alone():
    listing = elf("nm", "-D", "--defined-only")
    assert [line.split()[-1] for line in listing.splitlines()] == ["PyInit__core"]


def test_the_module_is_hardened():
    dynamic, segments = elf("readelf", "-dW"), elf("readelf", "-lW")
    assert "NOW" in dynamic and "TEXTREL" not in dynamic
    assert "GNU_RELRO" in segments
    stack = next(line for line in segments.splitlines() if "GNU_STACK" in line)
    assert "RWE" not in stack
    if "-fsanitize" not in os.environ.get("CXXFLAGS", ""):
        assert "__stack_chk_fail" in elf("nm", "-D", "--undefined-only")
