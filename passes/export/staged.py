"""A cascade's file with nested `If` cut back into one model a stage, for a host that decides for each sample.

The stages' nodes are those of the one file: what was simplified and quantized there is so here, and both forms compute
the same confidence by the same operators.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx_ir
from onnx_ir.passes import common

from kdc.core.errors import LawError
from kdc.core.origins import origins_of, write_origins
from kdc.core.spec import TensorSpec
from passes.export.lower import canonical, check
from targets import run_cascade
from targets.cascade import stage_files

PLAN = run_cascade.PLAN
HOST = Path(run_cascade.__file__).name


@dataclass(frozen=True)
class Staged:
    """A cascade as one model a stage, and the plan by which a host runs them.

    The plan is what cascade.json holds, but the names and hashes of files: the names of the cascade's inputs and outputs,
    and for each stage its inputs, its outputs, which of them are logits and confidence, and the threshold. A value that
    goes from one stage to another has one name in both.
    """

    models: tuple[onnx_ir.Model, ...]
    plan: dict[str, Any]


def is_branched(model: onnx_ir.Model) -> bool:
    """Whether this is a cascade with nested `If`, as `branched` writes it."""
    return _choice(model.graph) is not None


def with_free_batch(specs: Sequence[TensorSpec]) -> tuple[TensorSpec, ...]:
    """The specs of a file for batch 1 with the batch free again: first in every shape of a cascade."""
    return tuple(spec.model_copy(update={"shape": ("batch", *spec.shape[1:])}) for spec in specs)


def split(model: onnx_ir.Model, inputs: Sequence[TensorSpec]) -> Staged:
    """One model for each stage of a cascade, for any batch size; the file is left as it was.

    Args: model: as `is_branched` knows it. inputs: the file's inputs with the batch free (`with_free_batch`).

    Every stage but the last gives its logits [batch, classes] and its confidence [batch]; each gives all that later ones
    read, and takes what it reads of earlier ones and of the inputs.
    Raises: LawError where a pass wrote batch 1 into a stage.
    """
    whole = model.clone()
    parts = list(_parts(whole.graph))
    read = [_read_from_outside(part) for part in parts]
    logits = whole.graph.outputs[0]
    assert logits.shape is not None
    models: list[onnx_ir.Model] = []
    plans: list[dict[str, Any]] = []
    batch = str(inputs[0].shape[0])
    seen: dict[str, onnx_ir.Value] = {}
    for place, part in enumerate(parts):
        later = {id(value) for values in read[place + 1 :] for value in values}
        made = [value for node in part.nodes for value in node.outputs]
        features = [value for value in made if id(value) in later]
        outputs = [*features, *(value for value in part.gives if value not in features)]
        faces = whole.graph.inputs if place == 0 else [v for v in read[place] if not v.is_initializer()]
        stage = _stage(whole, part, faces, read[place], outputs)
        for value, spec in zip(stage.graph.inputs, inputs, strict=True) if place == 0 else ():
            value.shape = onnx_ir.Shape(spec.shape)
        for value in stage.graph.inputs if place else ():
            known = seen[value.name or ""]
            value.type, value.shape = known.type, known.shape
        answer = next(value for value in stage.graph.outputs if value.name == part.logits.name)
        answer.type, answer.shape = logits.type, onnx_ir.Shape([batch, *logits.shape[1:]])
        _infer(stage, batch)
        canonical(stage)
        check(stage)
        seen |= {value.name or "": value for value in (*stage.graph.inputs, *stage.graph.outputs)}
        models.append(stage)
        plan: dict[str, Any] = {
            "inputs": [value.name for value in stage.graph.inputs],
            "outputs": [value.name for value in stage.graph.outputs],
            "logits": part.logits.name,
        }
        if part.confidence is not None:
            plan |= {"confidence": part.confidence.name, "threshold": part.threshold}
        plans.append(plan)
    names = {"inputs": [spec.name for spec in inputs], "outputs": [value.name for value in model.graph.outputs]}
    return Staged(tuple(models), {**names, "stages": plans})


def write(staged: Staged, folder: Path, build: Callable[[Path], Path] = lambda path: path) -> Path:
    """Write the stages' files, cascade.json and the host's run_cascade.py into a folder.

    Args: build: turns a stage's ONNX file into the one that the target loads, in the same folder.

    Returns: the path of cascade.json, which names every file with its SHA-256.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stages = []
    for number, (model, plan) in enumerate(zip(staged.models, staged.plan["stages"], strict=True), start=1):
        path = folder / f"stage-{number}.onnx"
        onnx_ir.save(model, path)
        built = build(path)
        stages.append(
            {"file": built.relative_to(folder).as_posix(), "sha256": sha256(built.read_bytes()).hexdigest(), **plan}
        )
    shutil.copyfile(run_cascade.__file__, folder / HOST)
    path = folder / PLAN
    plan = {"schema_version": run_cascade.SCHEMA_VERSION, **staged.plan, "stages": stages}
    path.write_text(json.dumps(plan, indent=2) + "\n")
    return path


def staged_files(folder: Path) -> tuple[Path, ...]:
    """All that `write` put into a folder: the plan, each stage's file, the host's program."""
    return (*stage_files(folder / PLAN), folder / HOST)


@dataclass(frozen=True)
class _Part:
    """One stage inside the file: its graph, its own nodes without the choice behind them, and what it decides by."""

    graph: onnx_ir.Graph
    nodes: tuple[onnx_ir.Node, ...]
    logits: onnx_ir.Value
    confidence: onnx_ir.Value | None = None
    threshold: float = 0.0

    @property
    def gives(self) -> tuple[onnx_ir.Value, ...]:
        return (self.logits,) if self.confidence is None else (self.logits, self.confidence)


def _choice(graph: onnx_ir.Graph) -> onnx_ir.Node | None:
    """The `If` that ends a stage: the graph's two outputs are its own, and it goes by a number against a constant."""
    choice = graph.outputs[0].producer() if len(graph.outputs) == 2 else None
    if choice is None or choice.op_type != "If" or list(choice.outputs) != list(graph.outputs):
        return None
    sure = choice.inputs[0].producer() if choice.inputs[0] is not None else None
    if sure is None or sure.op_type != "GreaterOrEqual" or None in sure.inputs:
        return None
    answer = choice.attributes["then_branch"].as_graph().outputs[0].producer()
    limit = sure.inputs[1]
    known = limit is not None and limit.is_initializer()
    return choice if known and answer is not None and answer.op_type == "Identity" else None


def _parts(graph: onnx_ir.Graph) -> Iterator[_Part]:
    while (choice := _choice(graph)) is not None:
        sure = choice.predecessors()[0]
        confidence, limit = sure.inputs
        answer = choice.attributes["then_branch"].as_graph().outputs[0].producer()
        assert answer is not None
        (logits,) = answer.inputs
        assert confidence is not None
        assert logits is not None
        assert limit is not None
        assert limit.const_value is not None
        nodes = tuple(node for node in graph if node is not choice and node is not sure)
        yield _Part(graph, nodes, logits, confidence, float(limit.const_value.numpy()))
        graph = choice.attributes["else_branch"].as_graph()
    logits, number = graph.outputs
    yield _Part(graph, tuple(node for node in graph if node is not number.producer()), logits)


def _all_nodes(nodes: Sequence[onnx_ir.Node]) -> Iterator[onnx_ir.Node]:
    """The nodes and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attributes.values():
            if attribute.type == onnx_ir.AttributeType.GRAPH:
                yield from onnx_ir.traversal.RecursiveGraphIterator(attribute.as_graph())


def _read_from_outside(part: _Part) -> list[onnx_ir.Value]:
    """What a stage reads that neither its nodes nor its own constants give, in the order of reading."""
    nodes = list(_all_nodes(part.nodes))
    own = {id(value) for node in nodes for value in node.outputs}
    own |= {id(value) for node in nodes if node.graph is not None for value in node.graph.initializers.values()}
    own |= {id(value) for value in part.graph.initializers.values()}
    read = {id(value): value for node in nodes for value in node.inputs if value is not None and id(value) not in own}
    return list(read.values())


def _stage(
    whole: onnx_ir.Model,
    part: _Part,
    faces: Sequence[onnx_ir.Value],
    read: Sequence[onnx_ir.Value],
    outputs: Sequence[onnx_ir.Value],
) -> onnx_ir.Model:
    """A stage's nodes as a model of their own; constants from outside are copied into it."""
    stands = {
        id(value): onnx_ir.Value(
            name=value.name, type=value.type, shape=value.shape, const_value=value.const_value, doc_string=None
        )
        for value in (*faces, *read)
    }
    nodes = list(_all_nodes(part.nodes))
    used = {id(value) for node in nodes for value in node.inputs}
    constants = [value for value in part.graph.initializers.values() if id(value) in used]
    for node in nodes:
        for index, value in enumerate(node.inputs):
            if id(value) in stands:
                node.replace_input_with(index, stands[id(value)])
    part.graph.outputs.clear()
    part.graph.remove(part.nodes)
    for value in constants:
        part.graph.initializers.pop(value.name or "")
    graph = onnx_ir.Graph(
        [stands[id(value)] for value in faces],
        outputs,
        nodes=part.nodes,
        initializers=[*constants, *(stands[id(value)] for value in read if value.is_initializer())],
        opset_imports=dict(whole.opset_imports),
    )
    # A clone, for the old file's own `If` still counts as a reader of these values.
    stage = onnx_ir.Model(graph, ir_version=whole.ir_version).clone()
    write_origins(stage, origins_of(whole))
    return stage


def _infer(stage: onnx_ir.Model, batch: str) -> None:
    """Give the outputs their types and shapes, the batch by its name."""
    common.ShapeInferencePass()(stage)
    for value in stage.graph.outputs:
        if value.shape is None or len(value.shape) == 0:
            continue
        first, *sizes = value.shape
        if isinstance(first, int):
            raise LawError(f"{value.name}: the batch of a cascade's stage is fixed at {first}, and has to be free")
        free = [size if isinstance(size, int) else f"{value.name}_{axis}" for axis, size in enumerate(sizes, start=1)]
        value.shape = onnx_ir.Shape([batch, *free])
