"""What stands in a .tflite: what it takes and gives, and its operators with their number formats."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kdc.core.errors import TargetError
from targets.runtime import Layer, Port

_STEP = re.compile(r"\.Step_([^;]+)")


def check(written: bytes, inputs: Sequence[Port], outputs: Sequence[Port], path: Path) -> None:
    """Hold what a file takes and gives to the ONNX file's, in order: it has names of its own.

    Args: inputs: with their sizes fixed. outputs: free sizes fit any. path: the ONNX file's, for the message.

    Raises: TargetError with what differs.
    """
    graph = _graph(written)
    ends = (graph.inputs, inputs, "takes"), (graph.outputs, outputs, "gives")
    for indices, wanted, verb in ends:
        found = [(tuple(map(int, graph.tensors[index].shape)), _format(graph.tensors[index])) for index in indices]
        fits = len(found) == len(wanted) and all(
            dtype == port.dtype
            and len(shape) == len(port.shape)
            and all(isinstance(want, str) or want == got for want, got in zip(port.shape, shape, strict=True))
            for (shape, dtype), port in zip(found, wanted, strict=True)
        )
        if not fits:
            asked = [(port.shape, port.dtype) for port in wanted]
            raise TargetError(f"{path}: what litert wrote is another model: it {verb} {found}, not {asked}")


def operators(written: bytes) -> tuple[Layer, ...]:
    """The operators in their order, by the ONNX nodes that they were, with the formats of all outputs."""
    model = _model(written)
    names = {number: name for name, number in vars(_schema().BuiltinOperator).items() if isinstance(number, int)}
    graph = model.subgraphs[0]

    def kind(operator: Any) -> str:
        code = model.operatorCodes[operator.opcodeIndex]
        # the first releases had a byte for the kind, which is still written where it is large enough
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        return str(names[number] if number != _schema().BuiltinOperator.CUSTOM else code.customCode.decode())

    return tuple(
        Layer(
            _name(graph.tensors[operator.outputs[0]].name.decode()),
            kind(operator),
            tuple(_format(graph.tensors[index]) for index in operator.outputs),
        )
        for operator in graph.operators
    )


def _name(tensor: str) -> str:
    """The nodes of ONNX that a tensor's name tells of (`torch_import/module.py`'s steps), else that name."""
    return " + ".join(_STEP.findall(tensor)) or tensor


def _format(tensor: Any) -> str:
    names = {number: name for name, number in vars(_schema().TensorType).items() if isinstance(number, int)}
    return str(names[tensor.type]).lower()


def _graph(written: bytes) -> Any:
    return _model(written).subgraphs[0]


def _model(written: bytes) -> Any:
    return _schema().ModelT.InitFromObj(_schema().Model.GetRootAsModel(written, 0))


def _schema() -> Any:
    from ai_edge_litert import schema_py_generated

    return schema_py_generated
