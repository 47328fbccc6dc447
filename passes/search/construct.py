"""From a structure to its network, with the same first weights for the same structure and seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.utils import _pytree as pytree

from kdc.core.artifact import Artifact, example
from kdc.core.contract import named_seed
from kdc.core.errors import ModelError
from kdc.core.trace import TRACE_BATCH
from kdc.core.usercode import call, load_callable
from kdc.distill.input_copies import copy_inputs_if_changed
from passes.search import families
from passes.search.shrink import Shrinker, shrink
from passes.search.spaces import OwnStudent, PlainStudent, ResidualStudent, ShrunkStudent, Student, key

if TYPE_CHECKING:
    from kdc.core.spec import TensorSpec


@dataclass(frozen=True)
class Image:
    """What a convolutional family takes and gives."""

    channels: int
    height: int
    width: int
    classes: int

    @property
    def reductions(self) -> int:
        """How often the map may be halved before it falls below one pixel."""
        return int(log2(min(self.height, self.width)))

    @staticmethod
    def of(artifact: Artifact[nn.Module], family: str) -> Image:
        """Raises: ModelError where the model takes or gives anything else."""
        inputs, outputs = artifact.inputs, artifact.outputs
        sizes = inputs[0].shape[1:] if inputs else ()
        fits = len(inputs) == 1 and inputs[0].dtype.startswith("float") and len(sizes) == 3
        whole = [size for size in sizes if isinstance(size, int)]
        classes = outputs[0].shape[-1] if len(outputs) == 1 and len(outputs[0].shape) == 2 else None
        if not fits or len(whole) != 3 or not isinstance(classes, int):
            raise ModelError(
                f"search.spaces: {family}: the model takes {_told(inputs)} and gives {_told(outputs)}; expected one "
                "floating image [batch, channels, height, width] in and [batch, classes] out",
                do="take it out of search.spaces, or use shrunk or own",
            )
        return Image(whole[0], whole[1], whole[2], classes)


def _told(specs: Sequence[TensorSpec]) -> str:
    return " and ".join(f"{s.name} {s.dtype} [{', '.join(map(str, s.shape))}]" for s in specs) or "nothing"


def build(student: Student, artifact: Artifact[nn.Module], seed: int, shrinker: Shrinker | None = None) -> nn.Module:
    """The network of a structure, in evaluation mode: the same weights for the same structure and seed.

    torch's global generator is left as it was.

    Args: artifact: the incoming model; its ends are the student's too.
        shrinker: of this artifact, where many are built; without it a shrunk model is compared with its own trace.
    Raises: ModelError where the structure does not fit the incoming model, or the user's callable fails, returns no
        nn.Module, or one that does not run on the inputs or gives outputs of another shape.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed(seed, key(student)))
        if isinstance(student, ShrunkStudent):
            model = shrink(artifact, student) if shrinker is None else shrinker.build(student)
        elif isinstance(student, OwnStudent):
            model = _own(student, artifact)
        else:
            image = Image.of(artifact, student.family)
            ends = image.channels, image.classes
            if isinstance(student, PlainStudent):
                model = families.plain(student, *ends)
            elif isinstance(student, ResidualStudent):
                model = families.residual(student, *ends)
            else:
                model = families.mobile(student, *ends)
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return model.eval()


def _own(student: OwnStudent, artifact: Artifact[nn.Module]) -> nn.Module:
    what = f"search {student.build}"
    function = load_callable(student.build, Path.cwd(), "search", ModelError)
    model = call(function, student.arguments, what, ModelError)
    given = ", ".join(f"{name}={value!r}" for name, value in student.arguments.items())
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"{what}({given}) returned a {type(model).__name__}; expected a torch.nn.Module", do="return the network"
        )
    model.eval()
    samples = tuple(example(spec, TRACE_BATCH) for spec in artifact.inputs)
    copy_inputs_if_changed(model, samples)
    try:
        with torch.no_grad():
            outputs = model(*samples)
    except Exception as error:  # whatever a user's forward raises
        raise ModelError(
            f"{what}({given}): the network fails on {_told(artifact.inputs)}: {type(error).__name__}: {error}",
            do="make it take what the teacher takes, for every value of the choices",
        ) from error
    found = [tuple(leaf.shape) for leaf in pytree.tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
    expected = [tuple(example(spec, TRACE_BATCH).shape) for spec in artifact.outputs]
    if found != expected:
        raise ModelError(
            f"{what}({given}): the network's outputs have shapes {found} for a batch of {TRACE_BATCH}; expected "
            f"{expected}, as the incoming model's",
            do="make it give what the teacher gives, for every value of the choices",
        )
    return model
