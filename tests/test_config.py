"""Settings and what the library tells about itself.

Hunts for settings that are accepted and ignored, that stick after an error, or that disagree with
what show_config() prints. Environment variables are read once, so they get fresh interpreters.
"""

import importlib.metadata
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from support import assert_same_bits, bfloat16, every_isa

import normcore as nc


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_version():
    try:
        installed = importlib.metadata.version("normcore")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("normcore is not installed here but found on the path, so it has no metadata")
    assert nc.__version__ == installed


def test_show_config_tells_version_isa_and_threads(capsys):
    returned = nc.show_config()
    text = capsys.readouterr().out + ("" if returned is None else str(returned))
    for part in (nc.__version__, nc.get_isa(), str(nc.get_num_threads())):
        assert part in text
    assert "cuda" in text.lower()


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "normcore", *arguments], capture_output=True, text=True, timeout=120
    )


def test_the_command_info_prints_the_configuration(capsys):
    nc.show_config()
    run = command("info")
    assert (run.stderr, run.returncode) == ("", 0)
    # Whose threads they are depends on what else this process has loaded.
    here, there = (
        [line for line in text.splitlines() if not line.startswith("threads")]
        for text in (capsys.readouterr().out, run.stdout)
    )
    assert here == there


def test_info_has_a_form_for_programs():
    run = command("info", "--json")
    facts = json.loads(run.stdout)
    assert facts["versions"]["normcore"] == nc.__version__
    assert facts["versions"]["numpy"] == np.__version__
    assert facts["isa"] in facts["available_isas"] == nc.available_isas()
    assert facts["threads"] == nc.get_num_threads()
    assert facts["cuda"]["available"] == nc.cuda.is_available()
    # By their public names, and all of them: each function with a gradient is one.
    gradients = {name for name in nc.__all__ if name.endswith("_backward")}
    assert facts["methods"] == sorted(name.removesuffix("_backward") for name in gradients)


@pytest.mark.parametrize(
    "arguments, text",
    [
        ((), "the following arguments are required: command"),
        (("inform",), "invalid choice: 'inform'"),
        (("info", "--yaml"), "unrecognized arguments: --yaml"),
    ],
)
def test_commands_that_there_are_not(arguments, text):
    run = command(*arguments)
    assert run.returncode == 2 and text in run.stderr and not run.stdout


def test_available_isas_are_named_and_hold_the_current_one():
    isas = list(nc.available_isas())
    assert isas and len(set(isas)) == len(isas)
    assert nc.get_isa() in isas
    assert all(isinstance(name, str) for name in isas)


# What each level of x86-64 adds, in the words of Linux: what its kernels are compiled for.
LEVELS = {
    "x86-64-v2": "sse4_2 popcnt",
    "x86-64-v3": "avx avx2 fma f16c movbe bmi1 bmi2 abm",
    "x86-64-v4": "avx512f avx512bw avx512cd avx512dq avx512vl",
}


def test_available_isas_are_those_of_the_cpu_as_the_system_sees_it():
    if not set(nc.available_isas()) <= set(LEVELS) or not os.path.exists("/proc/cpuinfo"):
        pytest.skip("kernels of x86-64 on Linux")
    with open("/proc/cpuinfo") as lines:
        flags = next(line for line in lines if line.startswith("flags")).split()
    expected = []
    for name, added in LEVELS.items():
        if not set(added.split()) <= set(flags):
            break
        expected.insert(0, name)
    assert list(nc.available_isas()) == expected, "for a build of all levels"


def test_set_isa_is_read_back(isa):
    assert nc.get_isa() == isa


def test_what_a_cpu_has_beyond_a_level_changes_no_bit(rng):
    bases = [isa for isa in every_isa() if isa.endswith("-base")]
    if not bases:
        pytest.skip("this CPU has nothing beyond its level that kernels use")
    previous = nc.get_isa()
    # Rows of pairs of vectors, of single ones and of parts; subnormals, infinities, NaN.
    x = (rng.standard_normal((37, 157)) * 2.0 ** rng.integers(-140, 120, (37, 1))).astype(bfloat16)
    x[3, 5:60], x[4, 70], x[5, 33] = 0, np.inf, np.nan
    dy = rng.standard_normal(x.shape).astype(bfloat16)
    channels = np.arange(1, 158, dtype=np.float32) * 2.0**-126

    def results():
        yield nc.layer_norm(x)
        yield from nc.layer_norm_backward(dy, x)[:1]
        yield nc.normalize(x, ord=1)
        yield nc.batch_norm(x, weight=channels)
        yield nc.batch_norm_backward(dy, x, weight=channels)[0]
        yield nc.instance_norm(x[None].copy())

    try:
        for base in bases:
            nc.set_isa(base)
            expected = list(results())
            nc.set_isa(base.removesuffix("-base"))
            for got, want in zip(results(), expected, strict=True):
                assert_same_bits(got, want, base)
    finally:
        nc.set_isa(previous)


@pytest.mark.parametrize("name", ["", "v9", "avx", "x86-64-v5"])
def test_unknown_isa_is_refused(name):
    before = nc.get_isa()
    with pytest.raises(ValueError) as caught:
        nc.set_isa(name)
    assert nc.get_isa() == before
    assert all(known in str(caught.value) for known in nc.available_isas()), "say what there is"


@pytest.mark.parametrize("name", [3, None, b"v3", ["v3"], "\ud800"])
def test_an_isa_that_is_no_text_is_refused(name):
    before = nc.get_isa()
    with pytest.raises(TypeError, match=r"^name is .*, expected a string"):
        nc.set_isa(name)
    assert nc.get_isa() == before


@pytest.mark.parametrize("level", ["v2", "v3", "v4"])
def test_environment_forces_an_isa(level):
    matching = [name for name in nc.available_isas() if name.endswith(level)]
    result = run_python("import normcore as nc; print(nc.get_isa())", NORMCORE_ISA=level)
    if matching:
        assert result.stdout.strip() == matching[0], result.stderr
    else:  # this machine does not have it: an error that says so, never an illegal instruction
        assert result.returncode == 1
        assert "NORMCORE_ISA" in result.stderr


def test_environment_with_an_unknown_isa_is_an_error():
    result = run_python("import normcore", NORMCORE_ISA="v9")
    assert result.returncode == 1
    assert "NORMCORE_ISA" in result.stderr and "v9" in result.stderr


def test_best_isa_is_the_default():
    environment = {k: v for k, v in os.environ.items() if k != "NORMCORE_ISA"}
    code = "import normcore as nc; print(nc.get_isa(), *nc.available_isas())"
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    current, *available = result.stdout.split()
    assert current == max(available)


def test_cuda_is_available_only_where_a_driver_is():
    assert isinstance(nc.cuda.is_available(), bool)
    if not os.path.exists("/proc/driver/nvidia"):
        assert nc.cuda.is_available() is False


def test_import_is_light():
    # No other package than NumPy may be pulled in: torch and the like take seconds to import.
    code = "import sys, normcore; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = set(run_python(code).stdout.split())
    assert "normcore" in loaded
    assert not loaded & {"torch", "jax", "tensorflow", "scipy", "pandas"}


def test_verbose_prints_one_line_for_each_call():
    code = """if True:
        import numpy as np, normcore as nc
        for shape in ((1, 64, 10), (8, 8, 4000)):  # backward of few pixels, and of many
            x = np.ones(shape, np.float32)
            beta, gamma = np.ones(shape[1], np.float32), np.full((shape[1],) * 2, 0.1, np.float32)
            nc.gdn(x, beta, gamma)
            nc.gdn_backward(x, x, beta, gamma)
            for _ in range(2):  # the second one finds its plan
                nc.layer_norm(x)
                nc.group_norm(x, 2)
                nc.batch_norm_backward(x, x, training=True)
    """
    lines = run_python(code, NORMCORE_VERBOSE="1").stderr.splitlines()
    assert len(lines) == 2 * (2 + 2 * 3) and all("normcore" in line for line in lines), lines
