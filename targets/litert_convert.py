"""From an ONNX file to a .tflite, by way of a torch program, in a process of its own: `python -m targets.litert_convert`.

The converter brings jax with it, and prints much; neither belongs into the process that asked.

Its quantizer's marks are those of torch's `quantized_decomposed`, and it expects them as torch's own tools write them: a
weight is floats that are quantized and dequantized, and not the integers alone. So each integer weight is given to it as
the floats that these integers stand for, which are on the grid, and come out as the same integers.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from torch import fx

from kdc.core.errors import TargetError
from targets.torch_import.module import as_module
from targets.xnnpack import signed

_QUANTIZE = {"dequantize_per_tensor": "quantize_per_tensor", "dequantize_per_channel": "quantize_per_channel"}


def main(onnx_path: Path, path: Path, batch: int) -> None:
    """Write the .tflite of an ONNX file, for a batch of this size.

    Raises: TargetError where the file cannot be brought into torch; whatever the converter raises.
    """
    import onnx_ir

    from targets.litert_ends import with_float_ends
    from targets.ports import ports_of

    inputs, outputs = ports_of(onnx_ir.load(onnx_path), onnx_path)
    written = _converted(onnx_path, batch)
    path.write_bytes(with_float_ends(written, [port.dtype for port in inputs], [port.dtype for port in outputs]))


def _converted(onnx_path: Path, batch: int) -> bytes:
    module = as_module(onnx_path, batch, signed)  # its kernels are of int8
    graph: Any = module.program().module()
    warnings.simplefilter("ignore")
    import litert_torch
    from litert_torch.quantize import pt2e_quantizer, quant_config

    settings = None
    if with_float_weights(graph):
        # The converter asks its quantizer for no more than whether activations have ranges of their own.
        marks = pt2e_quantizer.PT2EQuantizer().set_global(
            pt2e_quantizer.get_symmetric_quantization_config(is_per_channel=True, is_dynamic=False)
        )
        settings = quant_config.QuantConfig(pt2e_quantizer=marks)
    return bytes(litert_torch.convert(graph, module.examples, quant_config=settings).model_content())


def with_float_weights(graph: fx.GraphModule) -> bool:
    """Put the floats of each integer weight, and their quantization, in the integers' place; whether there were marks."""
    import torch.ao.quantization.fx._decomposed  # its import defines the operators

    ops = torch.ops.quantized_decomposed
    quantize = {getattr(ops, name).default: getattr(ops, to).default for name, to in _QUANTIZE.items()}
    marks = [node for node in graph.graph.nodes if node.op == "call_function" and node.target in quantize]
    for node in marks:
        target: Any = node.target
        source, *settings = list[Any](node.args)
        if source.op != "get_attr":
            continue
        name = f"{source.name}_floats"
        while hasattr(graph, name):
            name += "_"
        graph.register_buffer(name, target(*(_value(graph, one) for one in node.args)))
        with graph.graph.inserting_before(node):
            floats = graph.graph.get_attr(name)
            node.args = (graph.graph.call_function(quantize[target], (floats, *settings)), *settings)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return bool(marks)


def _value(graph: fx.GraphModule, argument: Any) -> Any:
    if not isinstance(argument, fx.Node):
        return argument
    found: Any = graph
    for part in str(argument.target).split("."):
        found = getattr(found, part)
    return found


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
    except TargetError as error:
        sys.exit(str(error))
