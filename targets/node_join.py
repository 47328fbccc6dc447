"""What ran, found again in the file: its nodes, their work, torch's modules behind them, and the passes that made those."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from itertools import pairwise

import onnx_ir

from kdc.core.errors import ModelError
from kdc.core.origins import origin_of, origins_of
from kdc.numerics.cost import node_macs, with_shapes
from targets.node_events import Ran

BLOCKED = "_nchwc"  # onnxruntime's suffix to the value that a node in the blocked layout makes
SCOPES = "pkg.torch.onnx.name_scopes"


class Join:
    """What ran, found again in the file."""

    def __init__(self, model: onnx_ir.Model, ran: onnx_ir.Model | None, batch: int) -> None:
        first = {v.shape[0] for v in model.graph.inputs if v.shape is not None and len(v.shape) > 0}
        self._batch = batch if any(not isinstance(size, int) for size in first) else 1
        self._origins = origins_of(model)
        self._model = with_shapes(model)
        self._nodes = list(onnx_ir.traversal.RecursiveGraphIterator(self._model.graph))
        self._makers = {value.name: node for node in self._nodes for value in node.outputs if value.name}
        self._by_name = {node.name: node for node in self._nodes if node.name}
        self._made: dict[str, list[str]] = {}
        if ran is not None:
            for node in onnx_ir.traversal.RecursiveGraphIterator(ran.graph):
                self._made[node.name or ""] = [value.name for value in node.outputs if value.name]

    def covered(self, ran: Sequence[Ran]) -> list[list[onnx_ir.Node]]:
        """For each node that ran, the file's nodes that it stands for: the one that makes its value first.

        From the value that it makes the way goes back to values that other nodes make; what lies between was fused.
        """
        ends = [self._ends(one) for one in ran]
        claimed = {node for ended in ends for node in ended}
        found = []
        for ended in ends:
            mine = list(ended)
            waiting = list(ended)
            while waiting:
                for value in waiting.pop().inputs:
                    maker = None if value is None else value.producer()
                    if maker is not None and maker not in claimed and maker not in mine and maker.op_type != "Constant":
                        mine.append(maker)
                        waiting.append(maker)
            found.append(mine)
        return found

    def _ends(self, ran: Ran) -> list[onnx_ir.Node]:
        """The file's nodes that make what this one makes."""
        for value in self._made.get(ran.name, []) if ran.name else []:
            if value in self._makers:
                return [self._makers[value]]
        name = ran.name.removesuffix(BLOCKED)
        for known in (self._makers, self._by_name):
            if name in known:
                return [known[name]]
        # onnxruntime makes new names by adding to an old one
        starts = [known for known in self._by_name if len(known) > 3 and name.startswith((known + "_", known + "/"))]
        return [self._by_name[max(starts, key=len)]] if starts else []

    def macs(self, nodes: Iterable[onnx_ir.Node]) -> int | None:
        """Multiply-accumulates of the whole batch."""
        try:
            return self._batch * sum(node_macs(node) for node in nodes)
        except ModelError:
            return None

    def weight_bytes(self, nodes: Iterable[onnx_ir.Node]) -> int:
        """Of all initializers that these nodes read, each once."""
        weights = {value for node in nodes for value in node.inputs if value is not None and value.is_initializer()}
        tensors = [value.const_value for value in weights]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)

    def module(self, nodes: Sequence[onnx_ir.Node]) -> str | None:
        """Torch's module, of the node among these with the most work; of the one that ends them where none has any."""
        macs = [(node, self.macs([node]) or 0) for node in nodes]
        for node, _ in sorted(macs, key=lambda pair: -pair[1]):
            name = module_of(node)
            if name:
                return name
        return None

    def made_by(self, module: str | None) -> str | None:
        """The pass that last changed a module's layer, where the file tells it."""
        return None if module is None else origin_of(module, self._origins)


def module_of(node: onnx_ir.Node) -> str | None:
    """The torch module that a node was written from.

    torch.onnx writes the scopes down; its older exporter makes the node's name of them; else a weight's name tells it,
    `layer1.0.conv1.weight` being of `layer1.0.conv1`. None where none does.
    """
    scopes = node.metadata_props.get(SCOPES)
    if scopes is not None:
        try:
            *modules, _ = ast.literal_eval(scopes)
            return next((str(name) for name in reversed(modules) if name), None)
        except (ValueError, SyntaxError, TypeError):
            pass  # not torch's: what follows may still tell
    parts = (node.name or "").split("/")
    if len(parts) > 2 and parts[0] == "":
        # "/layer1/layer1.0/conv1/Conv": a part that holds the one before it stands in its place
        inner = [part for part, after in pairwise(parts[1:]) if not after.startswith(f"{part}.")]
        return ".".join(inner)
    for value in node.inputs:
        if value is not None and value.is_initializer() and value.name and "." in value.name:
            return value.name.rpartition(".")[0]
    return None
