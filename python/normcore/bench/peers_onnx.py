"""ONNX Runtime and OpenVINO as peers: one ONNX node, forward only, both on the same model.

ONNX has no backward, no training batch norm on the CPU, and channels second throughout; what a
runtime refuses is reported as unsupported.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .formulas import eps_of
from .peers import Prepared
from .workload import Unsupported, Workload

OPSET = 23  # the first with RMSNormalization
IR_VERSION = 10  # what runtimes of several years read; opset 23 itself asks for no more
ELEMENT = {
    "f32": TensorProto.FLOAT,
    "f16": TensorProto.FLOAT16,
    "bf16": TensorProto.BFLOAT16,
}


def onnx_model(work: Workload) -> bytes:
    """A model of one node with the parameters as constants."""
    case = work.case
    if case.direction == "backward":
        raise Unsupported("no backward in ONNX")
    if case.layout == "NHWC":
        raise Unsupported("no channels-last in ONNX")
    if case.option("training"):
        raise Unsupported("no training batch norm on the CPU")
    if case.dtype == "bf16":
        raise Unsupported("no bf16 from NumPy")
    if case.option("axis", -1) != -1:
        raise Unsupported("trailing axes only")

    constants = dict(work.params)
    names = {
        "layer_norm": "LayerNormalization",
        "rms_norm": "RMSNormalization",
        "batch_norm": "BatchNormalization",
        "instance_norm": "InstanceNormalization",
        "group_norm": "GroupNormalization",
        "normalize": "LpNormalization",
    }
    if case.op not in names:
        raise Unsupported(f"no {case.op}")
    attributes: dict[str, Any] = {"epsilon": eps_of(case)}
    if case.op == "normalize":  # 2-norm of the last axis, without eps
        attributes = {}
    if case.op == "batch_norm":
        constants |= work.buffers
    if case.op == "group_norm":
        attributes["num_groups"] = case.option("num_groups")
    if case.op in ("instance_norm", "group_norm"):  # one type for x and the parameters
        constants = {name: value.astype(work.x.dtype) for name, value in constants.items()}

    element = ELEMENT[case.dtype]
    graph = helper.make_graph(
        [helper.make_node(names[case.op], ["x", *constants], ["y"], **attributes)],
        case.op,
        [helper.make_tensor_value_info("x", element, case.memory_shape)],
        [helper.make_tensor_value_info("y", element, case.memory_shape)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class OnnxRuntime:
    """An InferenceSession; kernel mode binds the output to memory of ours."""

    name = "onnxruntime"

    def __init__(self, threads: int) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(4)
        self._ort: Any = onnxruntime
        self._threads = threads
        self.version = onnxruntime.__version__

    def prepare(self, work: Workload, kernel: bool) -> Prepared:
        """run(), or run_with_iobinding()."""
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        try:
            session = self._ort.InferenceSession(
                onnx_model(work), options, providers=["CPUExecutionProvider"]
            )
        except Unsupported:
            raise
        except Exception as error:
            raise Unsupported(str(error).splitlines()[0]) from error
        if not kernel:
            feed = {"x": work.x}
            return Prepared(lambda: session.run(None, feed), lambda outputs: outputs)
        x, y = work.x, np.empty_like(work.x)
        binding = session.io_binding()
        binding.bind_ortvalue_input("x", self._ort.OrtValue.ortvalue_from_numpy(x))
        binding.bind_output("y", "cpu", 0, y.dtype.type, y.shape, y.ctypes.data)

        def call() -> np.ndarray:
            session.run_with_iobinding(binding)
            return y  # also keeps y alive: the binding has only its address

        return Prepared(call, lambda y: [y])

    def forget(self) -> None:
        """Sessions end with their case."""


class OpenVino:
    """A compiled model on the CPU, in the precision of the tensors."""

    name = "openvino"

    def __init__(self, threads: int) -> None:
        import openvino

        self._ov: Any = openvino
        self._core: Any = openvino.Core()
        self._threads = threads
        self.version = openvino.__version__

    def prepare(self, work: Workload, kernel: bool) -> Prepared:
        """An infer request on x; kernel mode sets its output tensor too."""
        config = {
            "INFERENCE_NUM_THREADS": self._threads,
            "PERFORMANCE_HINT": "LATENCY",
            # Its default on machines with bfloat16 arithmetic is to round inside.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        data = onnx_model(work)
        try:
            compiled = self._core.compile_model(self._core.read_model(data), "CPU", config)
            request = compiled.create_infer_request()
            request.set_input_tensor(self._ov.Tensor(work.x, shared_memory=True))
        except Exception as error:
            raise Unsupported(str(error).splitlines()[0]) from error
        if kernel:
            y = np.empty_like(work.x)
            request.set_output_tensor(self._ov.Tensor(y, shared_memory=True))

            def call() -> np.ndarray:
                request.infer()
                return y  # also keeps y alive: the request has only its address

            return Prepared(call, lambda y: [y])
        feed = [work.x]
        return Prepared(lambda: compiled(feed, share_inputs=True)[0], lambda y: [y])

    def forget(self) -> None:
        """Compiled models end with their case."""
