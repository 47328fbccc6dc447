"""Whether a pruned model computes what the model computes without the channels that left: by values, node by node.

Both graphs run side by side on the same inputs. In the model's own graph a removed channel of an activation is zero as
soon as an operator has made it, as if nothing were left of it. What depends on parameters alone is not touched: the
weights of the layers that stay must come out as they are. At each operator the pruned graph must find the other's values,
at the indices that stay. It then goes on with exactly these, so that rounding does not add up and a difference is told
where it arises.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx import Node, map_arg

from kdc.core.artifact import example
from kdc.core.spec import TensorSpec
from kdc.core.trace import TRACE_BATCH
from passes.prune.flow import operator

if TYPE_CHECKING:
    from passes.prune.channels import ChannelGraph, Mask, Seen

ROUNDING = 1000
"""In units of the type's epsilon: what two orders of one operator's sums may differ by, relative to its outputs. One
channel of 8,000 moves a mean by more."""

WITHOUT_EFFECT = ("_assert", "sym_constrain")
"""Operators that only check values begin so: they are made for real inputs and could refuse random ones."""

UNREPEATABLE = frozenset({"empty", "empty_like", "new_empty", "empty_strided", "empty_permuted"})
"""Whose values are whatever was in memory."""


def difference(graph: ChannelGraph, pruned: ChannelGraph, kept: Mask, inputs: Sequence[TensorSpec]) -> str | None:
    """What the first operator is that computes other values in the pruned graph; None where none does.

    Both graphs must have the same operators and the shapes that the labels foretell. A norm over channels is passed over
    where it loses some (see `norms.py`): its statistics are those of the channels that stay.
    """
    for make in (_random, example):  # random inputs do not suit a model that looks things up by them; zeros ran before
        try:
            return _difference(graph, pruned, kept, [make(spec, TRACE_BATCH) for spec in inputs])
        except _CannotRunError:
            continue
    return None


class _CannotRunError(Exception):
    """The model itself fails on these inputs."""


def _difference(graph: ChannelGraph, pruned: ChannelGraph, kept: Mask, inputs: Sequence[torch.Tensor]) -> str | None:
    full, cut = _Run(graph.program, inputs), _Run(pruned.program, inputs)
    with torch.no_grad():
        for node, twin, seen in zip(_calls(graph.program), _calls(pruned.program), graph.seen, strict=True):
            try:
                expected = full.run(node)
            except (IndexError, RuntimeError) as error:
                raise _CannotRunError from error
            found = cut.run(twin)
            for place, dims in enumerate(seen.dims):
                mine, its = _tensor(expected, place), _tensor(found, place)
                if mine is None or its is None:
                    continue
                stay = {d: graph.kept_of(units, kept) for d, units in enumerate(dims) if not isinstance(units, int)}
                stay = {d: mask for d, mask in stay.items() if not mask.all()}
                if _renormalized(graph, seen, kept):
                    full.put(node, place, _spread(its, stay, mine))
                    continue
                wanted = _within(mine, stay)
                if not torch.equal(wanted, its):
                    if _repeatable(node) and not _close(wanted, its):
                        return f"{seen.operator} computes other values without it"
                    cut.put(twin, place, wanted)
                if stay and not seen.constant:
                    full.put(node, place, _spread(wanted, stay, mine))
    return None


class _Run:
    """A graph on the way through its nodes; each value is forgotten behind its last reader."""

    def __init__(self, program: ExportedProgram, inputs: Sequence[torch.Tensor]) -> None:
        self.program = program
        self.values: dict[str, Any] = {}
        self.last: dict[str, str] = {}
        for node in program.graph.nodes:
            for source in node.all_input_nodes:
                self.last[source.name] = node.name
        given, tensors = iter(inputs), {**program.state_dict, **program.constants}
        for spec in program.graph_signature.input_specs:
            # Cloned: an operator that works in place must change neither the model nor what the other graph is given.
            tensor = next(given) if spec.kind is InputKind.USER_INPUT else tensors[str(spec.target)]
            self.values[spec.arg.name] = tensor.detach().clone()

    def run(self, node: Node) -> Any:
        """What an operator makes of what was made before."""
        if operator(node).startswith(WITHOUT_EFFECT):
            return None
        args, kwargs = map_arg((node.args, dict(node.kwargs)), self._value)
        target = node.target
        assert callable(target)
        self.values[node.name] = result = target(*args, **kwargs)
        for source in node.all_input_nodes:
            if self.last[source.name] == node.name:
                self.values.pop(source.name, None)
        return result

    def put(self, node: Node, place: int, value: torch.Tensor) -> None:
        """Another value for one of an operator's outputs: in place, so that views of it see the change as well."""
        old = _tensor(self.values[node.name], place)
        assert old is not None
        if not any(stride == 0 and size > 1 for stride, size in zip(old.stride(), old.shape, strict=True)):
            old.copy_(value)
        elif isinstance(self.values[node.name], torch.Tensor):
            self.values[node.name] = value
        else:
            self.values[node.name] = [value if i == place else own for i, own in enumerate(self.values[node.name])]

    def _value(self, node: Node) -> Any:
        if node.op == "get_attr":  # the body of an operator that has one
            return getattr(self.program.graph_module, str(node.target))
        return self.values[node.name]


def _calls(program: ExportedProgram) -> list[Node]:
    return [node for node in program.graph.nodes if node.op == "call_function"]


def _tensor(value: Any, place: int) -> torch.Tensor | None:
    if isinstance(value, (list, tuple)):
        value = value[place] if place < len(value) else None
    return value if isinstance(value, torch.Tensor) else None


def _renormalized(graph: ChannelGraph, seen: Seen, kept: Mask) -> bool:
    return seen.renormalized is not None and not graph.kept_of(seen.renormalized, kept).all()


def _within(value: torch.Tensor, stay: Mapping[int, Mask]) -> torch.Tensor:
    """The part of a tensor that stays."""
    for dim, mask in stay.items():
        value = value.index_select(dim, torch.from_numpy(np.flatnonzero(mask)).to(value.device))
    return value


def _spread(part: torch.Tensor, stay: Mapping[int, Mask], like: torch.Tensor) -> torch.Tensor:
    """The part where it stood in the whole, and zeros elsewhere."""
    indices = [
        torch.from_numpy(np.flatnonzero(stay[dim])) if dim in stay else torch.arange(size)
        for dim, size in enumerate(like.shape)
    ]
    result = torch.zeros_like(like)
    result[torch.meshgrid(*indices, indexing="ij")] = part
    return result


def _repeatable(node: Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded not in tags and operator(node) not in UNREPEATABLE


def _close(wanted: torch.Tensor, found: torch.Tensor) -> bool:
    if not (wanted.is_floating_point() or wanted.is_complex()):
        return False  # they are not equal
    finite = wanted[wanted.isfinite()]
    allowed = min(ROUNDING * torch.finfo(wanted.dtype).eps, 0.05)
    size = float(finite.abs().double().square().mean().sqrt()) if finite.numel() else 0.0
    return bool(torch.isclose(found, wanted, rtol=allowed, atol=allowed * size, equal_nan=True).all())


def _random(spec: TensorSpec, batch: int) -> torch.Tensor:
    """Normal numbers of a spec's shape; integers and truth values are zeros, which every table has an entry for."""
    zeros = example(spec, batch)
    if not zeros.is_floating_point():
        return zeros
    return torch.randn(zeros.shape, dtype=zeros.dtype, generator=torch.Generator().manual_seed(0))
