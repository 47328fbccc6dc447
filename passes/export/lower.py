"""From a torch model to an `onnx_ir.Model` whose bytes depend on nothing but the model."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import onnx
import onnx_ir
import torch
from onnx_ir.passes import common
from onnxscript import opset18 as op
from torch import nn
from torch.export import ExportedProgram

from kdc.core.artifact import Artifact
from kdc.core.errors import LawError, ModelError
from kdc.core.origins import origins_of, write_origins
from kdc.core.spec import TensorSpec
from kdc.core.trace import trace

STANDARD_DOMAINS = frozenset({"", "ai.onnx", "ai.onnx.ml"})


@runtime_checkable
class Lowerable(Protocol):
    """A module that stands in the file as something else than it is in training, such as a quantizer."""

    def lowered(self) -> nn.Module:
        """The module that is traced in its place."""


def lower(artifact: Artifact[nn.Module], opset: int) -> onnx_ir.Model:
    """The model in ONNX operators of this opset, its free sizes named as in the artifact's specs.

    Two calls give the same bytes, in any process and any folder. The artifact is left as it was.
    Raises: ModelError where torch cannot trace or export it; LawError where something of training is left.
    """
    program = trace(_lowered(artifact.model), artifact.inputs)
    try:
        with _quiet():
            exported = torch.onnx.export(
                program,
                input_names=[spec.name for spec in artifact.inputs],
                output_names=[spec.name for spec in artifact.outputs],
                opset_version=opset,
                custom_translation_table=_translations(program),
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # torch.onnx raises a dozen types of its own
        reason = str(error).strip().splitlines()
        raise ModelError(
            f"the model cannot be written as ONNX: {type(error).__name__}: {reason[0] if reason else ''}",
            do="keep to operators that torch.onnx.export(dynamo=True) knows",
        ) from error
    assert exported is not None
    model = exported.model
    found = model.opset_imports[""]
    if found != opset:
        raise ModelError(
            f"the model cannot be written in ONNX opset {opset}: torch.onnx wrote opset {found}",
            do="name another `opset` in the target's profile or in the export pass",
        )
    _name_free_sizes(model, artifact.inputs, artifact.outputs)
    canonical(model)
    check(model)
    return model


def check(model: onnx_ir.Model) -> None:
    """Raises: LawError where the file is no valid ONNX, or holds an operator that only training or kdc itself knows."""
    for node in _nodes(model):
        if node.domain not in STANDARD_DOMAINS:
            raise LawError(f"operator {node.domain}::{node.op_type} ({node.name}) is no standard ONNX operator")
        mode = node.attributes.get("training_mode")
        if node.op_type == "Dropout" or (mode is not None and mode.as_int()):
            raise LawError(f"operator {node.op_type} ({node.name}) belongs to training and was left in the export")
    try:
        onnx.checker.check_model(onnx_ir.to_proto(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise LawError(f"the exported model is no valid ONNX: {error}") from error


def canonical(model: onnx_ir.Model) -> None:
    """Take out, in place, all that depends on where and by what the file was made: traces, paths, names of symbols.

    Which pass each layer is of stays: it depends on the model's way alone.
    """
    origins = origins_of(model)
    common.ClearMetadataAndDocStringPass()(model)
    model.metadata_props.clear()
    write_origins(model, origins)
    model.doc_string = None
    model.producer_name, model.producer_version = "kdc", None
    graph = model.graph
    graph.metadata_props.clear()  # the pass above skips a graph without nodes
    graph.name, graph.doc_string = "kdc", None
    faces = {*graph.inputs, *graph.outputs}
    constants = [value for part in model.graphs() for value in part.initializers.values()]
    for value in (*graph.inputs, *constants, *(v for node in _nodes(model) for v in node.outputs)):
        value.metadata_props.clear()
        value.doc_string = None
        if value not in faces and not value.is_initializer():
            value.shape = value.type = None  # a runtime infers them; torch's carry its own symbols' names


def _nodes(model: onnx_ir.Model) -> Iterator[onnx_ir.Node]:
    yield from onnx_ir.traversal.RecursiveGraphIterator(model.graph)
    for function in model.functions.values():
        yield from onnx_ir.traversal.RecursiveGraphIterator(function)


def _lowered(model: nn.Module) -> nn.Module:
    if not any(isinstance(module, Lowerable) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    # All are made before any is put in place: one may read another's settings (a bias its input's scale).
    made = [(name, module.lowered()) for name, module in model.named_modules() if isinstance(module, Lowerable)]
    for name, module in made:
        model.set_submodule(name, module)
    return model


def _name_free_sizes(model: onnx_ir.Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    for value, spec in zip((*model.graph.inputs, *model.graph.outputs), (*inputs, *outputs), strict=True):
        value.shape = onnx_ir.Shape(spec.shape)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints, warns and logs about itself (torchvision is absent, and more): nothing a user could mend."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _translations(program: ExportedProgram) -> dict[Callable[..., Any], Callable[..., Any]]:
    """torch decomposes pooling to size 1 into ReduceMean, which runtimes do not have in int8: keep it one operator."""
    target = torch.ops.aten.adaptive_avg_pool2d.default
    sizes = [list(node.args[1]) for node in program.graph.nodes if node.target is target]
    # The table goes by operator: where one pools to another size, all are left to torch.
    return {target: lambda x, output_size: op.GlobalAveragePool(x)} if all(s == [1, 1] for s in sizes) else {}
