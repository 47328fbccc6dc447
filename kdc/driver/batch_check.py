"""Whether a model's outputs of a sample are a matter of that sample alone.

What is judged at one batch size is shipped for another: a model that mixes samples would be right in the report alone.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from kdc.core.errors import ModelError
from kdc.core.usercode import blamed, file_of
from kdc.driver.forward_record import Call, Tensors, first_unlike, recorded

BATCH = 8
TOLERANCE = 1e-3  # of the outputs' root mean square; float32 rounds by 1e-6 to 1e-4 in nets of hundreds of layers
_ALONE = "expected the same outputs of a sample in every company"


def check_batches(model: nn.Module, samples: Tensors, where: str) -> None:
    """Hold the outputs at batch 8 against those of the same samples at batch 1, in two companies.

    What differs in float32 is looked at again in float64: rounding can move a value over a threshold in the model.

    Args: model: in evaluation mode; one that may be changed. samples: unlike each other, one tensor [n, ...] for each of
        the model's inputs. where: how messages call the model.
    Raises: ModelError that names the module that mixes samples, and the user's line where it is known; and where the
        outputs change from one call to the next.
    """
    if len(samples[0]) < 2:
        return
    for tried, given in _in_two_types(model, samples):
        first, second = (_outputs(tried, _rows(given, slice(BATCH)), where) for _ in range(2))
        if first.dim() == 0 or len(first) != len(given[0][:BATCH]):
            raise ModelError(
                f"{where}: forward() gives {list(first.shape)} for {len(given[0][:BATCH])} samples",
                do="return one row of outputs for each sample: [batch, ...]",
            )
        unsteady = _difference(first, second)
        if unsteady <= TOLERANCE and _mixing(tried, given, first, where) <= TOLERANCE:
            return
    if unsteady > TOLERANCE:
        raise _unsteady(tried, given, where, unsteady)
    raise _mixes(tried, given, where, _mixing(tried, given, first, where))


def _in_two_types(model: nn.Module, samples: Tensors) -> Iterator[tuple[nn.Module, Tensors]]:
    """The model as it is, and in float64 if it runs so."""
    yield model, samples
    wide = copy.deepcopy(model).double()
    given = tuple(tensor.double() if tensor.is_floating_point() else tensor for tensor in samples)
    try:
        _outputs(wide, _rows(given, slice(2)), "in float64")
    except ModelError:  # a float32 of its own in forward(): then the first look has to do
        return
    yield wide, given


def _mixing(model: nn.Module, samples: Tensors, together: torch.Tensor, where: str) -> float:
    """How far the outputs of samples alone are from those in company, over the outputs' root mean square."""
    count = len(together)
    alone = torch.stack([_alone(model, _rows(samples, slice(i, i + 1)), together[i], where) for i in range(count)])
    largest = _difference(together, alone)
    half = count // 2
    other = [
        *range(count, len(samples[0])),
        *reversed(range(half)),
    ]  # at other places, beside others where there are any
    moved = _outputs(model, _rows(samples, torch.tensor(other)), where)[-half:].flip(0)
    return max(largest, _difference(moved, alone[:half]))


def _alone(model: nn.Module, sample: Tensors, expected: torch.Tensor, where: str) -> torch.Tensor:
    """The outputs of one sample, in the shape of a row of a batch.

    A forward() that cannot take one sample (`x.squeeze()` took the batch's own dimension away) is given it twice:
    exported, with a free batch, it may still be right.
    """
    try:
        found = _outputs(model, sample, f"{where}, a batch of one sample")
        if found.numel() == expected.numel():
            return found.reshape(expected.shape)
    except ModelError as error:
        if "more than 1 value per channel" in str(error):
            raise ModelError(
                f"{where}: a BatchNorm normalizes by the batch in evaluation mode{_named_norms(model)}, so that one sample "
                f"fails and others mix: {error.__cause__}",
                do="let eval() reach every BatchNorm, and give it running statistics",
            ) from error
    return _outputs(model, tuple(torch.cat([tensor, tensor]) for tensor in sample), where)[0]


def _mixes(model: nn.Module, samples: Tensors, where: str, size: float) -> ModelError:
    count = len(samples[0][:BATCH])
    for some in (slice(2), slice(count)):  # two samples are less to hold in memory, if they do
        given = _rows(samples, some)
        together = recorded(model, given)
        alone = [recorded(model, _rows(given, slice(i, i + 1))) for i in range(len(given[0]))]
        found = first_unlike(together, alone, _like_alone)
        if found is not None:
            break
    return ModelError(
        f"{where}: a sample's outputs change with the other samples of its batch, by {size:.2g} of the outputs' size "
        f"(batch {count} against 1, rounding is below {TOLERANCE:g}): {_blamed(model, found, 'mixes samples')}; {_ALONE}",
        do=_mend(model, found),
    )


def _unsteady(model: nn.Module, samples: Tensors, where: str, size: float) -> ModelError:
    given = _rows(samples, slice(2))
    one, other = (recorded(model, given) for _ in range(2))
    found = first_unlike(one, [other], lambda tensor, others: _difference(tensor, others[0]) <= TOLERANCE)
    return ModelError(
        f"{where}: two calls of forward() with the same samples in evaluation mode differ by {size:.2g} of the outputs' "
        f"size: {_blamed(model, found, 'draws random numbers or keeps a state')}; {_ALONE}",
        do="let nothing be random after eval(): F.dropout(x, training=self.training)",
    )


def _blamed(model: nn.Module, call: Call | None, does: str) -> str:
    """The module whose forward makes the call, what it does there, and the user's line."""
    if call is None:
        return f"{type(model).__name__} {does}{_at(_forward_line(model))}"
    module = model.get_submodule(call.module)
    name = f"{call.module} ({type(module).__name__})" if call.module else type(module).__name__
    return f"{name} {does}, in {call.function}{_at(call.place or _forward_line(module))}"


def _forward_line(module: nn.Module) -> str | None:
    function = inspect.unwrap(type(module).forward)
    try:
        return f"{inspect.getsourcefile(function)}:{inspect.getsourcelines(function)[1]}"
    except (OSError, TypeError):  # no source
        return None


def _at(place: str | None) -> str:
    return f" at {place}" if place else ""


def _mend(model: nn.Module, call: Call | None) -> str:
    module = model if call is None else model.get_submodule(call.module)
    if isinstance(module, _BatchNorm) and module.training:
        return "let eval() reach it: it is still in training mode"
    if isinstance(module, _BatchNorm):
        return "give it running statistics (track_running_stats=True), and train it again"
    if getattr(module, "batch_first", True) is False:
        return "it takes [length, batch, features]: build it with batch_first=True, or turn its inputs and outputs"
    return "let no mean, maximum, softmax or reshape run over the batch's dimension, and train it again"


def _named_norms(model: nn.Module) -> str:
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]
    return f" ({', '.join(names)})" if names else ""


def _like_alone(together: torch.Tensor, alone: Tensors) -> bool:
    """Whether a tensor of a batch holds, along one dimension, what the samples have alone.

    Of [batch * n, ...] a sample's part is n in a row, or every batch-th. What is of no such form is not judged.
    """
    one = alone[0]
    if together.dim() != one.dim():
        return True
    unlike = [axis for axis, sizes in enumerate(zip(together.shape, one.shape, strict=True)) if len(set(sizes)) > 1]
    if not unlike:
        return all(_difference(together, other) <= TOLERANCE for other in alone)
    if len(unlike) > 1:
        return False  # each sample with each other one
    axis, count = unlike[0], len(alone)
    if together.shape[axis] != count * one.shape[axis]:
        return True
    in_a_row = together.chunk(count, axis)
    turned = together.reshape(*together.shape[:axis], one.shape[axis], count, *together.shape[axis + 1 :]).unbind(
        axis + 1
    )
    return any(
        all(_difference(part, other) <= TOLERANCE for part, other in zip(parts, alone, strict=True))
        for parts in (in_a_row, turned)
    )


@torch.no_grad()
def _outputs(model: nn.Module, inputs: Tensors, where: str) -> torch.Tensor:
    with blamed(f"{where}: forward()", ModelError, file_of(model)):
        outputs: torch.Tensor = model(*(tensor.clone() for tensor in inputs))
    return outputs


def _rows(samples: Tensors, which: slice | torch.Tensor) -> Tensors:
    return tuple(tensor[which] for tensor in samples)


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest absolute difference over the root mean square of the finite values; infinite where one is not finite."""
    one, other = one.double(), other.double()
    finite = torch.isfinite(one)
    if one.shape != other.shape or not torch.equal(finite, torch.isfinite(other)):
        return float("inf")
    if not finite.any():
        return 0.0
    size = float(one[finite].square().mean().sqrt()) or 1.0
    return float((one - other)[finite].abs().max()) / size


def distinct(tensors: Sequence[torch.Tensor], count: int, generator: torch.Generator) -> Tensors:
    """Up to `count` samples drawn from these, no two with the same values."""
    seen: set[bytes] = set()
    chosen: list[int] = []
    for index in itertools.islice(torch.randperm(len(tensors[0]), generator=generator).tolist(), 20 * count):
        row = b"".join(tensor[index].contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors)
        if row not in seen:
            seen.add(row)
            chosen.append(index)
        if len(chosen) == count:
            break
    return tuple(tensor[torch.tensor(chosen)] for tensor in tensors)
