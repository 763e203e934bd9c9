"""What runs where there is a CUDA device, tried where there is none: tests/run_cuda.sh, its steps.

In a copied folder without git. Hunts for a budget that is overrun, results that are lost when a run
is cut off, processes that outlive it, and comparisons of the benchmark that compare something else.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from every_call import CASES

import normcore as nc

ROOT = Path(__file__).parents[1]
for folder in ("bench", "tests/cuda"):
    sys.path.append(str(ROOT / folder))
pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or shutil.which("timeout") is None,
    reason="the script wants Linux and coreutils",
)

# In place of a Python that runs a step: it does not end by itself, and what it has started does not
# listen.
STUCK = """#!/bin/bash
echo begins
(trap '' TERM; sleep 600) &
sleep 600
wait
"""
# It reports and ends.
BRISK = """#!/bin/bash
echo "done $*"
"""
TOOLS = {
    "nvidia-smi": 'echo "Imaginary device, 1.0, 80000 MiB, 9.0"',
    "cmake": 'echo "CMake Error" && exit 1',
    "compute-sanitizer": 'echo "========= Error: Device not supported" && exit 1',
    "stuck-python": STUCK,
    "brisk-python": BRISK,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """The sources, with a package that counts as built of them."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("cpp", "cmake", "bench", "tests", "python"):
        left_out = shutil.ignore_patterns("__pycache__", "*.so", "typing", "fuzz")
        shutil.copytree(ROOT / name, folder / name, ignore=left_out)
    for name in ("CMakeLists.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    site = folder / "build/cuda-site"
    shutil.copytree(
        Path(nc.__file__).parent, site / "normcore", ignore=shutil.ignore_patterns("_core*.so")
    )
    shutil.copy(nc._core.__file__, site / "normcore")
    digest = subprocess.run(
        ["bash", "-c", ". tests/cuda/build.sh; module_digest"], cwd=folder, capture_output=True
    )
    (site / "digest").write_bytes(digest.stdout)
    for name, text in TOOLS.items():
        tool = folder / "bin" / name
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(text if text.startswith("#!") else f"#!/bin/bash\n{text}\n")
        tool.chmod(0o755)
    return folder


class Run:
    """tests/run_cuda.sh with torch's CPU in the device's place."""

    def __init__(self, source, out, *arguments, python=sys.executable):
        self.out, self.marker = out, f"NORMCORE_TRIAL={out}"
        changes = {
            "PATH": f"{source}/bin:{os.environ['PATH']}",
            "PYTHON": str(python),
            "OUT": str(out),
            "NORMCORE_TEST_DEVICE": "cpu",
            "NORMCORE_TRIAL": str(out),
            "OMP_NUM_THREADS": "1",
        }
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTEST_", "GIT_"))}
        self.process = subprocess.Popen(
            ["bash", source / "tests/run_cuda.sh", *arguments],
            env=environment | changes,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def wait(self):
        self.text, _ = self.process.communicate(timeout=300)
        self.status = self.process.returncode
        self.summary = (self.out / "summary.txt").read_text()
        assert self.text.endswith(self.summary), self.text  # it is what is printed last
        return self

    def results(self):
        """Steps by name, and what became of them."""
        return {line.split()[0]: line[11:22].strip() for line in self.summary.splitlines()}

    def left(self):
        """Processes that the run has left behind."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.marker.encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes())
            except OSError:
                pass
        return found


@pytest.fixture
def run(source, tmp_path):
    return lambda *arguments, **options: Run(source, tmp_path / "out", *arguments, **options)


def test_steps_by_name(run):
    # The order is that of the steps, whatever that of the names.
    done = run("memcheck", "arrays", "build", "facts", python="brisk-python").wait()
    assert list(done.results().items()) == [
        ("facts", "passed"),
        ("build", "passed"),
        ("arrays", "passed"),
        ("memcheck", "n/a"),
    ], done.text
    assert done.status == 0 and not done.left()
    log = (done.out / "run.log").read_text()
    assert "Imaginary device" in log and "tests/test_cuda_arrays.py" in log
    assert "Device not supported" in log

    refused = subprocess.run(
        ["bash", ROOT / "tests/run_cuda.sh", "smock"], capture_output=True, text=True
    )
    assert refused.returncode == 2 and "no step smock, expected some of: facts" in refused.stdout


def test_the_budget_holds(run):
    begun = time.monotonic()
    done = run("--budget", "11", "smoke", "tests", "arrays", python="stuck-python").wait()
    assert time.monotonic() - begun < 40  # each of its steps would take minutes
    assert done.results() == {"smoke": "TIMED OUT", "tests": "skipped", "arrays": "skipped"}
    assert done.status == 1 and not done.left()


def test_an_interrupted_run_leaves_a_summary_and_no_processes(run):
    going = run("smoke", "tests", python="stuck-python")
    log = going.out / "run.log"
    while not (log.exists() and "begins" in log.read_text()):
        time.sleep(0.05)
    assert going.left()
    going.process.send_signal(signal.SIGTERM)
    done = going.wait()
    assert done.results() == {"smoke": "interrupted"}
    assert done.status == 143 and not done.left()


def test_without_a_build_nothing_runs(source, run):
    digest = source / "build/cuda-site/digest"
    kept = digest.read_text()
    digest.write_text("of other sources")
    try:
        done = run("smoke", python="brisk-python").wait()
    finally:
        digest.write_text(kept)
    assert done.results() == {"build": "FAILED", "all": "FAILED"}
    assert "no prebuilt library" in (done.out / "run.log").read_text() and done.status == 1


def test_the_quick_benchmark_leaves_lines_of_json(run):
    pytest.importorskip("torch")
    done = run("quick").wait()
    assert done.results() == {"quick": "passed"}, done.text
    facts, *lines = map(json.loads, (done.out / "quick.jsonl").read_text().splitlines())
    assert facts["torch"] and facts["normcore"] == nc.__version__
    assert {line["op"] for line in lines} > {"layer_norm", "rms_norm", "batch_norm"}
    for line in lines:
        assert line["failed"] == {}
        assert set(line["us"]) == set(line["host_us"]) == {"normcore", "torch", "copy"}
        assert line["of_copy"]["normcore"] == line["GB/s"]["normcore"] / line["GB/s"]["copy"]
        # Two roundings to the dtype, and sums of terms that cancel.
        assert line["differs_from_torch"]["normcore"] < {"bf16": 2**-6, "f32": 1e-4}[line["dtype"]]


# ---- the table of calls

# In place of torch and its device: some functions spoil it, crash the process, hang or are refused.
PLANTED = """
import os, time, types
import normcore

class TorchCore:
    torch = types.SimpleNamespace(Tensor=())
    def __init__(self, device): pass
    to_device = to_numpy = lambda self, value: value

spoilt = []
def device_fault():
    return "an illegal address" if spoilt else ""

def plant(name, act):
    function = getattr(normcore, name)
    def planted(*arguments, **options):
        act()
        return function(*arguments, **options)
    setattr(normcore, name, planted)

def refuse():
    raise ValueError("x is on CUDA device 0, expected the CPU")

plant("rms_norm", lambda: spoilt.append(True))
plant("normalize", os.abort)
plant("gdn", refuse)
plant("norm", lambda: time.sleep(100))
"""


def test_a_call_that_spoils_crashes_or_hangs_does_not_stop_the_others(source, tmp_path):
    tests = tmp_path / "tests"
    shutil.copytree(source / "tests", tests)
    with (tests / "cuda_support.py").open("a") as file:
        file.write(PLANTED)
    smoke = tests / "cuda/smoke.py"
    smoke.write_text(smoke.read_text().replace("HANG_SECONDS = 30", "HANG_SECONDS = 3"))
    names = ["rms_norm", "norm", "normalize", "gdn", "gdn_backward", "weight_norm"]
    command = [sys.executable, smoke, "--most", "700", *names]
    # As the package is found here.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()

    def said(function, what):
        """Whether all lines of calls of a function say so; there are some."""
        of = [line for line in lines if re.match(rf"\w+ +{function}[- ].* float32", line)]
        return of and [line for line in of if not re.match(what, line)] == []

    assert said("gdn", "refused .* expected the CPU") and said("gdn_backward", "ok ")
    assert said("rms_norm", "FAIL .* spoils the device: an illegal address|skipped")
    assert said("normalize", "FAIL .* ends the process: status -6|skipped")
    assert said("norm", "FAIL .* ends the process: status 1|skipped")
    assert said("weight_norm", "ok ") and said("weight_norm_backward", "ok ")
    # Once more in a new process, and then not again.
    for function, times in (("rms_norm", 2), ("normalize", 1), ("norm", 1)):
        assert sum(line.startswith(f"FAIL    {function}-") for line in lines) == times
    assert re.search(r"\nrms_norm +\d+ of \d+ FAIL", done.stdout)
    assert re.search(r"\ngdn +refused +refused +refused +refused\n", done.stdout)
    assert re.search(r"\nweight_norm +ok +ok +ok +ok\n", done.stdout)
    assert re.fullmatch(
        r"\d+ ok, \d+ refused, 6 FAIL, \d+ skipped, of \d+ calls on cuda", lines[-1]
    )


def test_smoke_and_sanitize_call_every_function():
    import sanitize
    import smoke

    functions = {case.function for case in CASES}
    assert {call.case.function for call in smoke.calls()} == functions
    assert {call.case.function for call in sanitize.calls()} == functions
    public = {n for n in nc.__all__ if hasattr(nc, n + "_backward") or n.endswith("_backward")}
    assert public <= functions


# ---- the benchmark


def test_an_eager_call_is_not_taken_for_a_compiled_one():
    torch = pytest.importorskip("torch")
    import gpu

    x = torch.ones(3)
    compiled = gpu.Compiled(lambda x: x + 1, lambda graph, inputs: graph.forward)
    for _ in range(3):
        assert (compiled(x) == 2).all()
    compiled.check()
    assert (compiled.graphs, compiled.runs, compiled.calls) == (1, 3, 3)

    # As where dynamo gives up: the call works, by eager torch.
    with torch.compiler.set_stance("force_eager"):
        assert (compiled(x) == 2).all()
    with pytest.raises(RuntimeError, match="3 of 4 calls"):
        compiled.check()


def test_each_cell_is_compiled_anew():
    torch = pytest.importorskip("torch")
    import gpu

    # More shapes than dynamo compiles of one function.
    for n in range(2, 3 + torch._dynamo.config.recompile_limit):
        cell = gpu.Cell("layer_norm", (4, n))
        problem = gpu.Problem(cell, torch.float32, "cpu")
        problem.compiled = gpu.Compiled(problem.function, lambda graph, inputs: graph.forward)
        problem.compiled(problem.x, problem.w, problem.b)
        problem.compiled.check()
        assert problem.compiled.graphs == 1
