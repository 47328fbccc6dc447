"""The incoming model made smaller: modules that keep a tensor's shape left out, and the channels that matter least."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils import _pytree as pytree

from kdc.core.artifact import Artifact, example
from kdc.core.errors import ModelError
from kdc.core.spec import TensorSpec
from kdc.core.trace import TRACE_BATCH, trace
from passes.prune.channels import ChannelGraph, Group
from passes.prune.decision import kept_channels, kept_units
from passes.prune.importance import Scores, magnitude
from passes.prune.probe import probe, verify
from passes.prune.selection import Limits
from passes.prune.surgery import check, remove, run
from passes.search.spaces import ShrunkStudent

MOST_OF_MODEL = 0.5
"""A module that holds a larger share of the weights is the model's trunk, and its inner modules are the parts."""


@dataclass
class _Call:
    """What went in and out of a module that keeps the shape; the tensors are held so that their identities last."""

    source: torch.Tensor
    result: torch.Tensor


class LeftOut(nn.Identity):
    """The identity in place of a block, which may be called with masks and flags besides its tensor."""

    def forward(self, input: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        """The tensor as it came."""
        return input


def parts(model: nn.Module, inputs: Sequence[TensorSpec]) -> tuple[str, ...]:
    """Modules that can be left out: their paths, in the model's order. The model is left as it was.

    Such a module holds a weight of two dimensions and more (a norm alone saves nothing), is called once, takes one
    tensor and gives one of the same shape and type; without it the model runs, keeps its outputs' shapes and can be
    traced. Of nested ones the outermost counts; but a stack of such modules, and a module that holds more than half of
    the model's weights, are opened: a whole trunk is no useful part.
    """
    calls = _calls(model, inputs)
    return tuple(path for path in _outermost(model, calls) if _can_go(model, path, inputs))


def _outermost(model: nn.Module, calls: Mapping[str, _Call]) -> Iterator[str]:
    """Paths of `calls` of which none holds another, stacks and trunks opened."""
    weights = sum(p.numel() for p in model.parameters())
    blocks = [path for path in calls if next(model.get_submodule(path).children(), None) is not None]
    taken: list[str] = []
    for path, module in model.named_modules():  # a module comes before what it holds
        if path not in calls or any(path.startswith(f"{outer}.") for outer in taken):
            continue
        inner = _members(path, blocks)
        stack = bool(inner) and calls[inner[-1]].result is calls[path].result
        if len(inner) > 1 and (stack or sum(p.numel() for p in module.parameters()) > MOST_OF_MODEL * weights):
            continue
        taken.append(path)
        yield path


def _members(path: str, blocks: Sequence[str]) -> list[str]:
    """The outermost blocks inside a module, in the order they ran; a single one is looked into."""
    inner = [name for name in blocks if name.startswith(f"{path}.")]
    tops = [name for name in inner if not any(name.startswith(f"{other}.") for other in inner)]
    return _members(tops[0], blocks) if len(tops) == 1 else tops


@torch.no_grad()
def _calls(model: nn.Module, inputs: Sequence[TensorSpec]) -> dict[str, _Call]:
    """Every inner module that has weights, ran once, and turned one tensor into one of the same shape and type."""
    seen: dict[str, list[_Call | None]] = {}

    def hook(path: str, module: nn.Module, args: Any, named: Any, output: Any) -> None:
        tensors = [leaf for leaf in pytree.tree_leaves((args, named)) if isinstance(leaf, torch.Tensor)]
        one = len(tensors) == 1 and bool(args) and args[0] is tensors[0] and isinstance(output, torch.Tensor)
        keeps = one and output.shape == tensors[0].shape and output.dtype == tensors[0].dtype
        seen.setdefault(path, []).append(_Call(tensors[0], output) if keeps else None)

    named = [(path, module) for path, module in model.named_modules() if path]
    handles = [
        module.register_forward_hook(partial(hook, path), with_kwargs=True)
        for path, module in named
        if any(p.dim() >= 2 for p in module.parameters())
    ]
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        model(*(example(spec, TRACE_BATCH) for spec in inputs))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return {path: calls[0] for path, calls in seen.items() if len(calls) == 1 and calls[0] is not None}


def _can_go(model: nn.Module, path: str, inputs: Sequence[TensorSpec]) -> bool:
    """Whether the model runs, keeps its outputs' shapes and can be traced without this module."""
    less = _without(model, (path,))
    try:
        check(model, less, inputs)
        trace(less, inputs)
    except ModelError:
        return False
    return True


def _without(model: nn.Module, paths: Sequence[str]) -> nn.Module:
    """A deep copy with the identity in place of these modules."""
    less = copy.deepcopy(model)
    for path in paths:
        less.set_submodule(path, LeftOut())
    return less


@dataclass
class Shrinker:
    """Shrinks one model. Graphs and scores are kept for each tuple of modules left out: a trace takes a second.

    The models without them are not kept: a hundred copies of a large model would not fit the memory.
    """

    artifact: Artifact[nn.Module]
    _graphs: dict[tuple[str, ...], ChannelGraph] = field(default_factory=dict, init=False, repr=False)
    _probed: dict[tuple[str, ...], ChannelGraph] = field(default_factory=dict, init=False, repr=False)
    _scores: dict[tuple[str, ...], Scores] = field(default_factory=dict, init=False, repr=False)
    _parts: tuple[str, ...] | None = field(default=None, init=False, repr=False)
    _shaped: tuple[str, ...] | None = field(default=None, init=False, repr=False)

    @property
    def parts(self) -> tuple[str, ...]:
        """What can be left out, in the model's order: see `parts`."""
        if self._parts is None:
            self._parts = parts(self.artifact.model, self.artifact.inputs)
        return self._parts

    def groups(self, without: tuple[str, ...] = ()) -> tuple[Group, ...]:
        """The groups of channels that can be pruned once these modules are left out.

        Raises: ModelError where a path is no part, or the model cannot be traced.
        """
        return tuple(group for group in self._prunable(without).groups if group.prunable)

    def kept_for(
        self, shares: Mapping[str, float], alignment: int | None = None, without: tuple[str, ...] = ()
    ) -> dict[str, tuple[int, ...]]:
        """The channels that stay when each group keeps this share of its units, those of the largest magnitude.

        Args: shares: above 0 and up to 1, by the group's name; a group that is not named keeps all of its units.
            alignment: kept channels are a multiple of it, in layers that are wider than it; rounded up.
            without: modules that are left out first.
        Returns: by layer, for every layer that loses channels.
        Raises: ModelError where a path is no part, or the model cannot be traced.
        """
        graph, scores = self._prunable(without), self._score(without)
        gone: list[int] = []
        for group in self.groups(without):
            ranked = sorted(group.units, key=lambda unit: (-scores[unit], unit))
            gone += ranked[count(group, shares.get(group.name, 1.0), alignment) :]
        return kept_channels(graph, graph.without(gone))

    def counts(self, student: ShrunkStudent) -> dict[str, int]:
        """How many units of each prunable group the student keeps, by the group's name.

        Raises: ModelError where the student does not fit the model.
        """
        kept = kept_units(self._prunable(student.without), student.kept)
        return {group.name: int(kept[list(group.units)].sum()) for group in self.groups(student.without)}

    def build(self, student: ShrunkStudent, *, traced: bool = False) -> nn.Module:
        """The model without what the student leaves out, with the weights that are left; a copy.

        Args: traced: whether the result's own trace is compared with what the channels foretell, besides being run.
        Raises: ModelError where the student does not fit the model, or what is left does not run.
        """
        graph = self._graph(student.without)
        kept = kept_units(graph, student.kept)
        less = _without(self.artifact.model, student.without)
        shrunk = remove(less, graph, kept)
        if traced:
            verify(less, shrunk, graph, kept, self.artifact.inputs)
        else:
            check(less, shrunk, self.artifact.inputs)
        return shrunk

    def _graph(self, without: tuple[str, ...]) -> ChannelGraph:
        """Where the channels of the model without these modules go."""
        if without not in self._graphs:
            self._refuse(without)
            model, inputs = self.artifact.model, self.artifact.inputs
            less = _without(model, without)
            if without and run(model, inputs) != run(less, inputs):
                raise ModelError(
                    f"search: without {', '.join(without)} the model's outputs have another shape",
                    do="leave fewer modules out of the structure",
                )
            self._graphs[without] = ChannelGraph.of(less, inputs)
        return self._graphs[without]

    def _prunable(self, without: tuple[str, ...]) -> ChannelGraph:
        """The same with the groups frozen that cannot really be pruned.

        The whole model is probed, once; a group of a smaller one is frozen where any of its layers is there. What is
        built is run besides, so that a wrong guess is an error and no wrong model.
        """
        if without not in self._probed:
            graph = self._graph(without)
            if without:
                whole = self._prunable(()).groups
                frozen = {layer: group.reason for group in whole if group.reason for layer in group.layers}
                reasons = {
                    place: reason
                    for place, group in enumerate(graph.groups)
                    for layer in group.layers
                    if (reason := frozen.get(layer)) is not None
                }
                self._probed[without] = graph.with_reasons(reasons)
            else:
                self._probed[without] = probe(self.artifact.model, graph, self.artifact.inputs)
        return self._probed[without]

    def _score(self, without: tuple[str, ...]) -> Scores:
        if without not in self._scores:
            self._scores[without] = magnitude(_without(self.artifact.model, without), self._prunable(without))
        return self._scores[without]

    def _refuse(self, without: tuple[str, ...]) -> None:
        """Raises: ModelError where a path is no module that keeps its tensor's shape, or lies inside another one."""
        if not without:
            return
        model = self.artifact.model
        if self._shaped is None:
            self._shaped = tuple(_calls(model, self.artifact.inputs))
        known = {path for path, _ in model.named_modules()}
        for path in without:
            do = f"name some of {', '.join(self._shaped)}" if self._shaped else "leave `without` empty"
            if path not in known or not path:
                raise ModelError(f"search: the structure leaves out {path!r}, which the model does not have", do=do)
            if path not in self._shaped:
                raise ModelError(
                    f"search: the structure leaves out {path!r}; expected a module with weights that runs once and gives "
                    "one tensor of the shape of the one it takes",
                    do=do,
                )
            if sum(path == other or path.startswith(f"{other}.") for other in without) > 1:
                raise ModelError(
                    f"search: the structure leaves out {path!r} twice, by itself or with a module that holds it",
                    do="name it once, or the outer module alone",
                )


def count(group: Group, share: float, alignment: int | None = None) -> int:
    """How many units a group keeps for a share of them: rounded up to what the alignment allows, at least one."""
    allowed = np.array(Limits(alignment or 1, 1, 1.0).counts(group))
    return int(allowed[np.searchsorted(allowed, ceil(group.size * share - 1e-9))])


def shrink(artifact: Artifact[nn.Module], student: ShrunkStudent) -> nn.Module:
    """The artifact's model without what the student leaves out; a copy, compared with its own trace.

    Raises: ModelError where a path does not exist or cannot be left out, the channels do not fit the model, or what is
        left does not run.
    """
    return Shrinker(artifact).build(student, traced=True)
