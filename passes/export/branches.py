"""A cascade as one ONNX file whose nested `If` skips the stages that an input does not need.

    main graph    stage 1 -> features, logits, confidence;  confidence >= threshold -> If
      then        these logits, exit 0
      else        stage 2 -> ...;  If, or in the last stage its logits and the number behind the last exit's

`If` decides once for a whole batch, so this form is for batch 1 and says so in its shapes. Every stage is lowered as a
model of its own, and `join` puts them in each other; `passes.export.staged.split` is the way back.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir
import torch
from torch import nn

from kdc.core.artifact import Artifact, example
from kdc.core.cascade import Cascade, confidence
from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec
from kdc.core.trace import TRACE_BATCH
from passes.export.lower import canonical, check, lower
from passes.export.staged import Staged

EXIT = "exit"
CHANNELS_LAST, CHANNELS_FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def branched(artifact: Artifact[Cascade], opset: int, exit_name: str = EXIT) -> onnx_ir.Model:
    """The cascade as one ONNX file for batch 1, with the outputs logits [1, classes] and exit [1] (int64, 0 is the first).

    Two calls give the same bytes, in any process and any folder. The artifact is left as it was.
    Raises: ModelError where the specs do not fit a cascade, or torch cannot trace or export a stage; LawError where
    something of training is left.
    """
    _fit(artifact, exit_name)
    cascade = copy.deepcopy(artifact.model).eval()  # a mode set on a stage would be set on the artifact's own
    inputs = artifact.inputs
    models: list[onnx_ir.Model] = []
    plans: list[dict[str, Any]] = []
    for place, stage in enumerate(cascade.stages):
        own = stage_prefix(place)
        if place == len(cascade.exits):
            answer = artifact.outputs[0].model_copy(update={"name": f"{own}logits"})
            models.append(lower(Artifact(stage, inputs, (answer,)), opset))
            read = [spec.name for spec in inputs]
            plans.append({"inputs": read, "outputs": [f"{own}logits"], "logits": f"{own}logits"})
        else:
            step = _with_exit(stage, cascade.exits[place], len(inputs))
            features, logits, sure = outputs = _outputs(step, inputs, own)
            models.append(lower(Artifact(step, inputs, outputs), opset))
            plans.append(
                {
                    "inputs": [spec.name for spec in inputs],
                    "outputs": [spec.name for spec in outputs],
                    "logits": logits.name,
                    "confidence": sure.name,
                    "threshold": float(np.float32(cascade.thresholds[place])),
                }
            )
            inputs = (features,)
    for before, after in itertools.pairwise(models):
        _cross_in_integers(before, after)
    names = [artifact.outputs[0].name, exit_name]
    plan = {"inputs": [spec.name for spec in artifact.inputs], "outputs": names, "stages": plans}
    return join(Staged(tuple(models), plan))


def join(staged: Staged) -> onnx_ir.Model:
    """One model of a cascade's stages, for batch 1; they are left as they were.

    Weights of a stage lie in the graph of its branch, and every name stands once in the file.
    """
    models = [model.clone() for model in staged.models]
    faces = {name for stage in staged.plan["stages"] for name in (*stage["inputs"], *stage["outputs"])}
    seen: dict[str, onnx_ir.Value] = {value.name or "": value for value in models[0].graph.inputs}
    for place, model in enumerate(models):
        _prefix(model, stage_prefix(place), faces)
        for value in model.graph.inputs if place else ():
            value.replace_all_uses_with(seen[value.name or ""])
        seen |= {value.name or "": value for value in model.graph.outputs}
    final = seen[staged.plan["stages"][-1]["logits"]]
    classes, kind = final.shape, final.type
    graph: onnx_ir.Graph | None = None
    for place in reversed(range(len(models))):
        graph = _graph(place, models[place].graph, staged.plan["stages"][place], seen, graph)
    assert graph is not None
    assert classes is not None
    for value, name in zip(graph.outputs, staged.plan["outputs"], strict=True):
        value.name = name
    logits, taken = graph.outputs
    logits.type, taken.type = kind, onnx_ir.TensorType(onnx_ir.DataType.INT64)
    logits.shape, taken.shape = onnx_ir.Shape([1, *classes[1:]]), onnx_ir.Shape([1])
    for value in graph.inputs:
        assert value.shape is not None
        value.shape = onnx_ir.Shape([1, *value.shape[1:]])
    graph.opset_imports.update(models[0].opset_imports)
    model = onnx_ir.Model(graph, ir_version=models[0].ir_version)
    canonical(model)
    check(model)
    return model


def stage_prefix(place: int) -> str:
    """What every name of a stage's own begins with; stages are counted from 1 where a user reads."""
    return f"stage_{place + 1}."


def layer_name(name: str) -> str:
    """A cascade's layer as its file knows it: "blocks.1.conv" for "stages.0.blocks.1.conv", and which stage an exit ends.

    Other names stand as they are: a forecast makes a cascade of a model whose layers are still known by the model's own.
    """
    match name.split("."):
        case ["stages", _, *rest] if rest:
            return ".".join(rest)
        case ["exits", place, *rest] if place.isdecimal():
            return ".".join([f"{stage_prefix(int(place))}exit", *rest])
    return name


def _with_exit(stage: nn.Module, exit_: nn.Module, inputs: int) -> nn.Module:
    """A stage and its exit: what the next stage takes, the exit's logits, its confidence.

    A graph by hand, for torch.export takes no `*inputs`.
    """
    graph = torch.fx.Graph()
    features = graph.call_module("stage", tuple(graph.placeholder(f"input_{number}") for number in range(inputs)))
    logits = graph.call_module("exit", (features,))
    graph.output((features, logits, graph.call_function(confidence, (logits,))))
    return torch.fx.GraphModule({"stage": stage, "exit": exit_}, graph).eval()


def _fit(artifact: Artifact[Cascade], exit_name: str) -> None:
    specs = (*artifact.inputs, *artifact.outputs)
    free = {size for spec in specs for size in spec.shape if isinstance(size, str)}
    if len(free) != 1 or any(not spec.shape or isinstance(spec.shape[0], int) for spec in specs):
        raise ModelError(
            f"a cascade has one free size, the batch, first in every input and output; found {[s.shape for s in specs]}",
            do="give the model's other sizes as numbers, or leave the exits out",
        )
    if len(artifact.outputs) != 1:
        raise ModelError(
            f"a cascade has one output, its logits; this model has {len(artifact.outputs)}", do="leave the exits out"
        )
    if exit_name in {spec.name for spec in specs}:
        raise ModelError(
            f"the name {exit_name!r} is taken: a cascade's file tells by it which exit was used",
            do="give the model's inputs and output other names",
        )


def _outputs(step: nn.Module, inputs: Sequence[TensorSpec], own: str) -> tuple[TensorSpec, ...]:
    """What a stage gives, seen on zeros: every first size is the batch."""
    with torch.no_grad():
        tensors = step(*(example(spec, TRACE_BATCH) for spec in inputs))
    return tuple(
        TensorSpec(
            name=f"{own}{name}",
            shape=(inputs[0].shape[0], *tensor.shape[1:]),
            dtype=str(tensor.dtype).removeprefix("torch."),
        )
        for name, tensor in zip(("features", "logits", "confidence"), tensors, strict=True)
    )


def _cross_in_integers(before: onnx_ir.Model, after: onnx_ir.Model) -> None:
    """Where a stage ends in DequantizeLinear, give its integers to the next, which then dequantizes them itself.

    Runtimes fuse DequantizeLinear - Conv - QuantizeLinear within one graph only, and integers are a quarter of the bytes.
    Feature maps cross with their channels last, [batch, height, width, channels]: onnxruntime's integer convolutions work
    so, and would else transpose back in one graph and forth in the other (1.1 of 59 us, five convolutions on 28x28).
    """
    features, (taken,) = before.graph.outputs[0], after.graph.inputs
    node = features.producer()
    if node is None or node.op_type != "DequantizeLinear" or not taken.uses():
        return
    integers, *grid = node.inputs
    if integers is None or integers.producer() is None or not all(value and value.is_initializer() for value in grid):
        return
    name, shape, readers = features.name, features.shape, list(taken.uses())
    assert shape is not None
    given, read, added = integers, taken, []
    if len(shape) == 4:
        out = _node("Transpose", [integers], f"{name}.channels_last", {"perm": CHANNELS_LAST})
        back = _node("Transpose", [taken], f"{name}.channels_first", {"perm": CHANNELS_FIRST})
        before.graph.append(out)
        added.append(back)
        given, read = out.outputs[0], back.outputs[0]
        shape = onnx_ir.Shape([shape[axis] for axis in CHANNELS_LAST])
    copies = []
    for value in filter(None, grid):
        own = f"{name}.{value.name}"
        copies.append(onnx_ir.Value(name=own, type=value.type, shape=value.shape, const_value=value.const_value))
        after.graph.register_initializer(copies[-1])
    floats = _node("DequantizeLinear", [read, *copies], f"{name}.float", dict(node.attributes))
    after.graph.insert_before(after.graph[0], [*added, floats])
    for reader, index in readers:
        reader.replace_input_with(index, floats.outputs[0])
    features.name = f"{name}.float"
    before.graph.outputs[0] = given
    zero_point = node.inputs[2] if len(node.inputs) > 2 else None
    for value in (given, taken):
        value.name, value.shape = name, shape
        value.type = zero_point.type if zero_point else onnx_ir.TensorType(onnx_ir.DataType.UINT8)


def _node(
    kind: str, inputs: Sequence[onnx_ir.Value], name: str, attributes: dict[str, Any] | None = None
) -> onnx_ir.Node:
    """A node of one output, both of this name."""
    node = onnx_ir.node(kind, inputs, attributes, name=name)
    node.outputs[0].name = name
    return node


def _prefix(model: onnx_ir.Model, own: str, faces: set[str]) -> None:
    """Begin every name of a stage with its prefix, but those by which stages know each other."""
    taken = set(faces)
    for graph in model.graphs():
        for node in graph:
            node.name = _unique(node.name or node.op_type, own, taken)
        values = (*graph.initializers.values(), *(value for node in graph for value in node.outputs))
        for value in values:
            if value.name and value.name not in faces:
                value.name = _unique(value.name, own, taken)


def _unique(name: str, own: str, taken: set[str]) -> str:
    name = name if name.startswith(own) else own + name
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _graph(
    place: int,
    stage: onnx_ir.Graph,
    plan: dict[str, Any],
    seen: dict[str, onnx_ir.Value],
    rest: onnx_ir.Graph | None,
) -> onnx_ir.Graph:
    """A stage's graph with the choice behind it: logits and exit are its outputs. `rest` is that of the stages behind."""
    own, logits = stage_prefix(place), seen[plan["logits"]]
    nodes, constants = list(stage), list(stage.initializers.values())
    stage.remove(nodes)
    inputs = list(stage.inputs) if place == 0 else []
    stage.inputs.clear()
    stage.outputs.clear()
    stage.initializers.clear()
    if rest is None:
        number = _number(place, own)
        return onnx_ir.Graph(
            inputs, [logits, number.outputs[0]], nodes=[*nodes, number], initializers=constants, name="else"
        )
    # A branch's outputs are made in it: what comes from outside has to pass a node.
    answer = _node("Identity", [logits], f"{own}answer")
    number = _number(place, own)
    then = onnx_ir.Graph([], [answer.outputs[0], number.outputs[0]], nodes=[answer, number], name="then")
    threshold = onnx_ir.tensor(np.array(plan["threshold"], np.float32), name=f"{own}threshold")
    limit = onnx_ir.Value(
        name=threshold.name,
        type=onnx_ir.TensorType(onnx_ir.DataType.FLOAT),
        shape=onnx_ir.Shape([]),
        const_value=threshold,
    )
    sure = _node("GreaterOrEqual", [seen[plan["confidence"]], limit], f"{own}sure")
    branches = {"then_branch": then, "else_branch": rest}
    choice = onnx_ir.node("If", sure.outputs, branches, num_outputs=2, name=f"{own}choice")
    for value, name in zip(choice.outputs, ("choice", "exit_taken"), strict=True):
        value.name = own + name
    constants.append(limit)
    return onnx_ir.Graph(inputs, choice.outputs, nodes=[*nodes, sure, choice], initializers=constants, name="else")


def _number(place: int, own: str) -> onnx_ir.Node:
    value = onnx_ir.tensor(np.array([place], np.int64), name=f"{own}exit")
    return _node("Constant", [], f"{own}exit", {"value": value})
