"""Where a model can be cut in two, and the model in stages: one tensor goes from each stage to the next."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from kdc.core.artifact import example
from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec
from kdc.core.torch_macs import counted
from passes.quantize.graph import layer_name, parameter_of, plain_graph

LEAVE_OUT = "leave `route` out of the recipe's passes"
BATCHES = (2, 3)
"""Two runs with batches of these sizes tell what scales with the batch from what does not."""


@dataclass(frozen=True)
class Cut:
    """A place where one tensor is all that the rest of the model needs."""

    name: str
    """The last layer before it: "blocks.1.conv2"."""
    node: str
    """The tensor's name in the graph."""
    share: float
    """Of the model's multiply-accumulates, how much stands before it: 0 to 1."""
    shape: tuple[int, ...]
    """Of the tensor, without the batch."""
    channels_last: bool = False
    """Channels stand on the last axis (tokens: the next layer is linear along it), not on the first behind the batch."""
    before: tuple[str, ...] = field(default=(), repr=False)
    """Layers with weights up to here, in the order in which they run."""
    behind: tuple[str, ...] = field(default=(), repr=False)
    """The others."""

    @property
    def channels(self) -> int:
        """How many channels the tensor has."""
        return self.shape[-1 if self.channels_last else 0]


class Stage(fx.GraphModule):
    """A part of a graph. It prints its code, so that a model's digest tells two cuts of the same layers apart."""

    def extra_repr(self) -> str:
        """What it computes."""
        return str(self.code).strip()

    def _get_name(self) -> str:
        return "Stage"  # a copy would else print as fx's own class, and have another digest


def graph_of(model: nn.Module, inputs: Sequence[TensorSpec]) -> fx.GraphModule:
    """The model as a graph: itself where it is one (a quantized model), else traced, with its BatchNorms folded.

    Raises: ModelError where the model cannot be traced.
    """
    return model if isinstance(model, fx.GraphModule) else plain_graph(model, inputs)


def cuts(graph: fx.GraphModule, inputs: Sequence[TensorSpec]) -> list[Cut]:
    """Every place where the model can be cut, in the order of the graph; one at most between two layers with weights.

    A place is the last before the next layer, behind activations, pools and quantizers, so that an exit there sees what
    the next layer sees. What depends on weights or on the batch's size alone is computed again where it is needed and
    does not count as alive.

    Raises: ModelError where there is no such place.
    """
    scan = _Scan.of(graph, inputs)
    layers = [(node, scan.weight(node)) for node in scan.flow]
    named = [(node, name) for node, name in layers if name is not None]
    order = [name for _, name in named]
    passed, macs = 0, 0.0
    total = sum(scan.macs.values())
    found: dict[int, Cut] = {}
    alive: set[fx.Node] = {node for node in scan.inputs if scan.readers(node)}
    last_reader = {node: max(scan.place[reader] for reader in scan.readers(node)) for node in alive}
    for node, layer in layers:
        macs += scan.macs.get(node, 0.0)
        passed += layer is not None
        if readers := scan.readers(node):
            alive.add(node)
            last_reader[node] = max(scan.place[reader] for reader in readers)
        alive = {other for other in alive if last_reader[other] > scan.place[node]}
        shape = scan.feature(node)
        if alive != {node} or shape is None or not 0 < passed < len(order):
            continue
        following = named[passed][0]
        found[passed] = Cut(
            name=_numbered(order[passed - 1], order[: passed - 1]),
            node=node.name,
            share=macs / total,
            shape=shape,
            channels_last=len(shape) > 1 and scan.is_linear_on(following, shape[-1]),
            before=tuple(order[:passed]),
            behind=tuple(order[passed:]),
        )
    if not found:
        reason = (
            "it has one layer with weights" if len(order) < 2 else "behind every layer the rest needs several tensors"
        )
        raise ModelError(
            f"the model cannot be split into stages: {reason}",
            do=f"let the model pass through one tensor between two of its layers, or {LEAVE_OUT}",
        )
    return list(found.values())


def find(found: Sequence[Cut], wanted: str) -> Cut:
    """The cut of this name, or the one behind the part of this name: "blocks.1" is behind all layers of blocks.1.

    Raises: ModelError, with all names, where there is none.
    """
    for cut in found:
        if cut.name == wanted:
            return cut
    for cut in found:
        if _within(cut.before[-1], wanted) and not any(_within(layer, wanted) for layer in cut.behind):
            return cut
    names = ", ".join(cut.name for cut in found)
    raise ModelError(
        f"no exit can stand behind {wanted!r}: it names no part of the model behind which one tensor is all that is "
        "needed",
        do=f"name one of {names}, or a part of the model that ends with one of them",
    )


def split(graph: fx.GraphModule, nodes: Sequence[str], inputs: Sequence[TensorSpec]) -> list[Stage]:
    """The graph in stages, cut behind these nodes (of `cuts`, in the graph's order), on weights of their own.

    The first stage takes the model's inputs, every other one tensor. Run in a row they give the graph's outputs bit by
    bit. Parameters and submodules keep their dotted names; what two stages use, they share.
    """
    scan = _Scan.of(graph, inputs)
    own = copy.deepcopy(graph)  # at once: what one part knows of another (a layer of its input's scale) stays so
    by_name = {node.name: node for node in scan.flow}
    ends = [by_name[name] for name in nodes]
    assert ends == sorted(ends, key=scan.place.__getitem__)
    stages: list[Stage] = []
    start = 0
    for end in [*ends, None]:
        part = fx.Graph()
        if stages:
            entry = ends[len(stages) - 1]
            writer = _Writer(scan, part, {entry: part.placeholder(entry.name)}, batch_of=entry)
        else:
            writer = _Writer(scan, part, {node: part.placeholder(str(node.target)) for node in scan.inputs}, None)
        stop = len(scan.flow) if end is None else scan.flow.index(end) + 1
        for node in scan.flow[start:stop]:
            writer.write(node)
        part.output(writer.value(scan.output if end is None else end))
        part.lint()
        stage = Stage(own, part)
        stages.append(stage.train(graph.training))
        start = stop
    return stages


def _within(layer: str, part: str) -> bool:
    return layer == part or layer.startswith(f"{part}.")


def _numbered(name: str, earlier: Sequence[str]) -> str:
    """A layer that runs several times has a cut behind each of them."""
    times = 1 + sum(other == name for other in earlier)
    return name if times == 1 else f"{name}#{times}"


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps, for every node, its value's shape and type (or its integer) and its multiply-accumulates."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.seen: dict[fx.Node, Any] = {}
        self.macs: dict[fx.Node, float] = {}

    def run_node(self, n: fx.Node) -> Any:
        with counted() as counter:
            value = super().run_node(n)
        self.macs[n] = counter.get_total_flops() / 2
        self.seen[n] = (tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value
        return value


@dataclass(frozen=True)
class _Scan:
    """A graph's nodes by their part in the flow of data from inputs to output."""

    graph: fx.GraphModule
    inputs: list[fx.Node]
    output: fx.Node
    flow: list[fx.Node]
    """Nodes that the output needs and that depend on the inputs' values, in order."""
    place: dict[fx.Node, int]
    macs: dict[fx.Node, float]
    seen: tuple[dict[fx.Node, Any], ...]
    integers: dict[fx.Node, int | None]
    """Nodes that give an integer: a constant, or None where it is the size of the batch."""

    @classmethod
    def of(cls, graph: fx.GraphModule, inputs: Sequence[TensorSpec]) -> _Scan:
        outputs = graph.graph.output_node().args[0]
        if not isinstance(outputs, fx.Node):
            raise ModelError(
                "the model cannot be split into stages: it gives more than one tensor",
                do=f"return the logits alone from forward(), or {LEAVE_OUT}",
            )
        recorders = [_run(graph, inputs, batch) for batch in BATCHES]
        seen = tuple(recorder.seen for recorder in recorders)
        integers: dict[fx.Node, int | None] = {}
        for node in graph.graph.nodes:
            values = tuple(run[node] for run in seen)
            if all(isinstance(value, int) and not isinstance(value, bool) for value in values):
                if values == BATCHES:
                    integers[node] = None
                elif values[0] == values[1]:
                    integers[node] = values[0]
        needed = _needed(outputs, integers)
        moved: set[fx.Node] = set()  # that depend on the inputs' values
        for node in graph.graph.nodes:
            reached = node.op == "placeholder" or any(source in moved for source in node.all_input_nodes)
            if reached and node not in integers:
                moved.add(node)
        flow = [n for n in graph.graph.nodes if n in needed and n in moved and n.op not in ("placeholder", "output")]
        return cls(
            graph=graph,
            inputs=[node for node in graph.graph.nodes if node.op == "placeholder"],
            output=outputs,
            flow=flow,
            place={node: place for place, node in enumerate(flow)},
            macs=recorders[0].macs,
            seen=seen,
            integers=integers,
        )

    def readers(self, node: fx.Node) -> list[fx.Node]:
        """The nodes of the flow that read this one."""
        return [user for user in node.users if user in self.place]

    def feature(self, node: fx.Node) -> tuple[int, ...] | None:
        """The shape, without the batch, of a floating tensor [batch, channels, ...]; None for any other value."""
        shapes = []
        for batch, run in zip(BATCHES, self.seen, strict=True):
            value = run[node]
            if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[1], torch.dtype):
                return None
            shape, dtype = value
            if not dtype.is_floating_point or len(shape) < 2 or shape[0] != batch:
                return None
            shapes.append(shape[1:])
        return shapes[0] if shapes[0] == shapes[1] else None

    def weight(self, node: fx.Node) -> str | None:
        """The layer's name, where this node multiplies by a weight; None where it does not."""
        if not self.macs.get(node):
            return None
        if node.op == "call_module":
            has = any(True for _ in self.graph.get_submodule(str(node.target)).parameters())
            return str(node.target) if has else None
        weight = self._weight_node(node)
        return None if weight is None else layer_name(weight)

    def _weight_node(self, node: fx.Node) -> fx.Node | None:
        """The first tensor of two and more dimensions that the node reads from the model, directly or computed on."""
        for source in node.all_input_nodes:
            if source in self.place or source.op == "placeholder":
                continue
            tensor = parameter_of(self.graph, source)
            if tensor is not None and tensor.dim() > 1:
                return source
            if source.op != "get_attr" and (deeper := self._weight_node(source)) is not None:
                return deeper
        return None

    def is_linear_on(self, node: fx.Node, size: int) -> bool:
        """Whether a layer is linear along a last axis of this size."""
        if node.op == "call_module":
            weight = getattr(self.graph.get_submodule(str(node.target)), "weight", None)
        else:
            source = self._weight_node(node)
            weight = None if source is None else parameter_of(self.graph, source)
        return isinstance(weight, torch.Tensor) and weight.dim() == 2 and weight.shape[1] == size


@torch.no_grad()
def _run(graph: fx.GraphModule, inputs: Sequence[TensorSpec], batch: int) -> _Recorder:
    training = graph.training
    graph.eval()
    try:
        recorder = _Recorder(graph)
        recorder.run(*(example(spec, batch) for spec in inputs), enable_io_processing=False)
    finally:
        graph.train(training)
    return recorder


def _needed(output: fx.Node, integers: Iterable[fx.Node]) -> set[fx.Node]:
    """What the output depends on; not what an integer was read from, which is known without it."""
    known = set(integers)
    needed: set[fx.Node] = set()
    waiting = [output]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += [] if node in known else node.all_input_nodes
    return needed


@dataclass(frozen=True)
class _Writer:
    """Copies nodes into a stage's graph."""

    scan: _Scan
    part: fx.Graph
    made: dict[fx.Node, Any]
    batch_of: fx.Node | None
    """The tensor that the stage takes, whose first size is the batch's; None in the first stage."""

    def write(self, node: fx.Node) -> fx.Node:
        copied = self.part.node_copy(node, self.value)
        copied.meta = {}  # the tracer's notes are neither copied nor printed from here on
        self.made[node] = copied
        return copied

    def value(self, node: fx.Node) -> Any:
        """What stands for a node of the whole graph here: what is no part of the flow is written where it is needed."""
        if node in self.made:
            return self.made[node]
        if node in self.scan.integers:
            constant = self.scan.integers[node]
            self.made[node] = self._batch_size() if constant is None else constant
            return self.made[node]
        assert node not in self.scan.place, f"{node} stands in another stage"
        return self.write(node)

    def _batch_size(self) -> fx.Node:
        source = self.batch_of or next(n for n in self.scan.inputs if self.scan.seen[1][n][0][0] == BATCHES[1])
        return self.part.call_function(torch.ops.aten.sym_size.int, (self.made[source], 0))


def parameters_by_name(stages: Iterable[nn.Module]) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the stages' state by its name in the whole model, once."""
    seen: set[str] = set()
    for stage in stages:
        for name, tensor in stage.state_dict().items():
            if name not in seen:
                seen.add(name)
                yield name, tensor
