"""Training samples made from the teacher alone, in batches that are kept as they are made."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from kdc.core.contract import named_seed
from kdc.core.data import Split
from kdc.core.errors import ModelError
from kdc.core.observe import Emit, Progress
from kdc.core.spec import TensorSpec
from kdc.core.weights import load_checkpoint, save_checkpoint
from kdc.distill.synthesis.domain import Domain, domains_of
from kdc.distill.synthesis.generator import drawn, train_generator
from kdc.distill.synthesis.inversion import invert
from kdc.distill.synthesis.settings import GeneratorSettings, InversionSettings
from kdc.distill.synthesis.statistics import batch_norms
from kdc.distill.teacher import predict

PROGRESS_SECONDS = 0.5


@dataclass(frozen=True)
class Synthetic:
    """Samples with the teacher's answers for labels, and what the user should know of them."""

    split: Split
    notes: tuple[str, ...]


def synthesise(
    teacher: nn.Module,
    inputs: Sequence[TensorSpec],
    classes: int,
    settings: InversionSettings | GeneratorSettings,
    seed: int,
    work: Path | None,
    emit: Emit,
) -> Synthetic:
    """`settings.samples` samples that the teacher takes for those of its classes, all classes alike.

    Args: teacher: in evaluation mode. inputs: what it takes. classes: how many logits it gives. work: a folder for the
        batches that are done, so that a run that was killed goes on behind them; None: they are kept nowhere.
    Returns: inputs [n, ...], and labels [n]: the teacher's own choices, not those that were asked for.
    Raises: ModelError for inputs that no gradient reaches (see `domains_of`).
    """
    domains = domains_of(inputs, settings.limits)
    sizes = batch_sizes(settings.samples, settings.batch)
    asked = torch.arange(settings.samples) % classes
    notes = []
    if isinstance(settings, InversionSettings):
        parts = _inverted(teacher, domains, torch.split(asked, sizes), settings, seed, work, emit)
    else:
        parts = _generated(teacher, domains, sizes, settings, seed, emit)
    made = tuple(torch.cat(column) for column in zip(*parts, strict=True))
    labels = predict(teacher, Split(made, asked)).argmax(1)
    if not torch.isfinite(torch.stack([tensor.float().abs().amax() for tensor in made])).all():
        raise ModelError("data.synthesise: the samples are not finite", do="set `limits`, or a lower learning_rate")
    found = len(torch.unique(labels))
    told = f"{len(labels)} samples were synthesised from the teacher by {settings.method}; its answers are the labels"
    if isinstance(settings, InversionSettings):
        told += f", {100 * float((labels == asked).float().mean()):.1f}% of them as asked for"
    notes.append(f"{told}; {found} of {classes} classes are among them")
    if settings.batch_norm and not batch_norms(teacher):
        notes.append(
            "the teacher has no BatchNorm with running statistics, which tell most about its training data: "
            "the synthetic samples come from the other terms alone"
        )
    return Synthetic(Split(made, labels), tuple(notes))


def batch_sizes(samples: int, batch: int) -> list[int]:
    """The fewest batches of at most `batch` samples, as equal as can be: a small last one has other statistics."""
    number = -(-samples // batch)
    return [samples // number + (index < samples % number) for index in range(number)]


def _inverted(
    teacher: nn.Module,
    domains: Sequence[Domain],
    asked: Sequence[torch.Tensor],
    settings: InversionSettings,
    seed: int,
    work: Path | None,
    emit: Emit,
) -> list[tuple[torch.Tensor, ...]]:
    report = _reporter("inverting the teacher", settings.steps * len(asked), emit)
    parts: list[tuple[torch.Tensor, ...]] = []
    for number, classes in enumerate(asked):
        path = None if work is None else work / f"inverted-{number}.safetensors"
        kept = None if path is None else load_checkpoint(path)
        if kept is not None:
            parts.append(tuple(kept[0][str(index)] for index in range(len(domains))))
            report(settings.steps)
            continue
        draws = torch.Generator().manual_seed(named_seed(seed, "synthesis", "inversion", number))
        part = invert(teacher, domains, classes, settings, draws, lambda: report(1))
        if path is not None:
            save_checkpoint({str(index): tensor for index, tensor in enumerate(part)}, path)
        parts.append(part)
    return parts


def _generated(
    teacher: nn.Module,
    domains: Sequence[Domain],
    sizes: Sequence[int],
    settings: GeneratorSettings,
    seed: int,
    emit: Emit,
) -> list[tuple[torch.Tensor, ...]]:
    report = _reporter("training a generator of samples", settings.steps, emit)
    generator = train_generator(teacher, domains, settings, seed, lambda: report(1))
    draws = torch.Generator().manual_seed(named_seed(seed, "synthesis", "samples"))
    return [drawn(generator, size, settings.latent, draws) for size in sizes]


def _reporter(what: str, total: int, emit: Emit) -> Callable[[int], None]:
    """Counts steps, and tells of them now and then and at the end."""
    done, told = 0, time.monotonic()

    def report(steps: int) -> None:
        nonlocal done, told
        done += steps
        if time.monotonic() - told > PROGRESS_SECONDS or done == total:
            told = time.monotonic()
            emit(Progress(what, done, total))

    return report
