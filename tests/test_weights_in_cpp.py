"""examples/cpp_weights: model files that Python's libraries wrote, read by C++ programs.

Hunts for programs that disagree with Python, and for files that are damaged and taken all the same.
"""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

import normcore as nc

SOURCE = Path(__file__).parents[1] / "examples" / "cpp_weights"
CHANNELS = 24


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    cmake = shutil.which("cmake")
    if not cmake or not shutil.which(os.environ.get("CXX", "c++")):
        pytest.skip("needs CMake and a C++ compiler")
    if not Path(nc._core.__file__).with_name("lib").is_dir():
        pytest.skip("a module without the library beside it")
    build = tmp_path_factory.mktemp("weights")
    for step in (
        ["-S", SOURCE, "-B", build, f"-Dnormcore_DIR={nc.get_cmake_dir()}"],
        ["--build", build],
    ):
        done = subprocess.run([cmake, *step], capture_output=True, text=True, timeout=300)
        if "nlohmann_json" in done.stderr:
            pytest.skip("needs nlohmann-json")
        assert done.returncode == 0, done.stdout + done.stderr
    return build


def run(program, *arguments, x):
    return subprocess.run([program, *arguments], input=x.tobytes(), capture_output=True, timeout=60)


def arrays(rng):
    return [rng.uniform(0.5, 2, CHANNELS).astype(np.float32) for _ in range(4)]


@pytest.fixture
def x(rng):
    return rng.normal(3, 1, (7, CHANNELS)).astype(np.float32)


def test_weights_of_a_safetensors_file(programs, rng, x, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    weight, bias, *_ = arrays(rng)
    file = tmp_path / "model.safetensors"
    safetensors.save_file({"norm.weight": weight, "norm.bias": bias}, file)
    done = run(programs / "from_safetensors", file, "norm", x=x)
    assert done.returncode == 0, done.stderr
    got = np.frombuffer(done.stdout, np.float32).reshape(x.shape)
    np.testing.assert_array_equal(got, nc.layer_norm(x, weight, bias))
    done = run(programs / "from_safetensors", file, "other", x=x)
    assert done.returncode == 1 and b"no tensor other.weight" in done.stderr


@pytest.mark.parametrize("raw", [True, False])
def test_weights_of_an_onnx_file(programs, rng, x, tmp_path, raw):
    onnx = pytest.importorskip("onnx")
    values = dict(zip(("scale", "B", "mean", "var"), arrays(rng), strict=True))
    shape = [None, CHANNELS]
    tensors = [
        onnx.helper.make_tensor(
            name, onnx.TensorProto.FLOAT, [CHANNELS], v.tobytes() if raw else v, raw=raw
        )
        for name, v in values.items()
    ]
    nodes = [
        onnx.helper.make_node("Relu", ["x"], ["h"]),
        onnx.helper.make_node("BatchNormalization", ["h", *values], ["y"], epsilon=0.01),
    ]
    ends = [
        onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, shape) for n in ("x", "y")
    ]
    graph = onnx.helper.make_graph(nodes, "graph", ends[:1], ends[1:], tensors)
    model = onnx.helper.make_model(graph).SerializeToString()
    file = tmp_path / "model.onnx"
    file.write_bytes(model)
    done = run(programs / "from_onnx", file, x=x)
    assert done.returncode == 0, done.stderr
    got = np.frombuffer(done.stdout, np.float32).reshape(x.shape)
    buffers = {"running_mean": values["mean"], "running_var": values["var"]}
    want = nc.batch_norm(x, values["scale"], values["B"], **buffers, eps=float(np.float32(0.01)))
    np.testing.assert_array_equal(got, want)

    # Fewer variances than channels, of which the program must not read more.
    graph.initializer[3].CopyFrom(
        onnx.helper.make_tensor("var", onnx.TensorProto.FLOAT, [3], [1.0, 1.0, 1.0])
    )
    file.write_bytes(onnx.helper.make_model(graph).SerializeToString())
    done = run(programs / "from_onnx", file, x=x)
    assert done.returncode == 1 and b"running_var has shape (3,)" in done.stderr

    # Cut anywhere it is an error.
    for size in range(1, len(model) // 2, 37):
        file.write_bytes(model[:size])
        done = run(programs / "from_onnx", file, x=x)
        assert done.returncode == 1 and done.stderr, size
