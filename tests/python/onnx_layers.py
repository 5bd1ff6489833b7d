"""Single INT8 layers as ONNX QDQ models, written with onnx.helper: what an independent runtime is asked to compute."""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class Grid:
    """Scale and zero point of one u8 tensor."""

    scale: np.float32
    zero_point: int


class QdqModel:
    """Collects the nodes of a model whose inputs and output are u8 codes; weights are s8, biases int32 codes."""

    def __init__(self):
        self.nodes, self.constants, self.inputs = [], [], []

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(value, name))
        return name

    def node(self, op: str, inputs: list[str], output: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def dequantize(self, name: str, scale, zero_point: np.ndarray, **attributes) -> str:
        """Always with an explicit zero point: without one ONNX Runtime leaves a Gemm in float."""
        parameters = [
            self.constant(f"{name}_scale", np.asarray(scale, np.float32)),
            self.constant(f"{name}_zero", zero_point),
        ]
        return self.node("DequantizeLinear", [name, *parameters], f"{name}_float", **attributes)

    def input(self, name: str, grid: Grid) -> str:
        self.inputs.append(name)
        return self.dequantize(name, grid.scale, np.uint8(grid.zero_point))

    def weight(self, codes: np.ndarray, scale: np.ndarray) -> str:
        self.constant("weight", codes)
        return self.dequantize("weight", scale, np.zeros(len(scale), np.int8), axis=0)

    def bias(self, codes: np.ndarray, scale: np.ndarray) -> str:
        self.constant("bias", codes)
        return self.dequantize("bias", scale, np.zeros(len(scale), np.int32), axis=0)

    def build(self, value: str, grid: Grid) -> bytes:
        parameters = [
            self.constant("y_scale", np.float32(grid.scale)),
            self.constant("y_zero", np.uint8(grid.zero_point)),
        ]
        self.node("QuantizeLinear", [value, *parameters], "y")
        u8 = TensorProto.UINT8
        inputs = [helper.make_tensor_value_info(name, u8, None) for name in self.inputs]
        outputs = [helper.make_tensor_value_info("y", u8, None)]
        graph = helper.make_graph(self.nodes, "layer", inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
        return model.SerializeToString()


def run(model: bytes, *inputs: np.ndarray) -> tuple[np.ndarray, Counter]:
    """The runtime's output, and how often each operator is left in the graph that it really ran."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.log_severity_level = 3
        # Machines without VNNI: do not let 16-bit sums of products saturate.
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        executed = onnx.load(options.optimized_model_filepath)
    feeds = {value.name: codes for value, codes in zip(session.get_inputs(), inputs, strict=True)}
    return session.run(None, feeds)[0], Counter(node.op_type for node in executed.graph.node)
