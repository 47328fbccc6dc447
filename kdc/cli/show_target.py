"""`kdc targets show NAME`: every field of a profile with its unit, what this machine has of it, and the sources."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from kdc.core.device import Device

UNKNOWN = "unknown"
NOT_OF_IT = "–"
_LINK = re.compile(r"https?://\S+")


def show_target(console: Console, device: Device) -> None:
    """Print a profile in the console's width; links stand below, each whole on a line of its own."""
    from rich.table import Table
    from rich.text import Text

    console.print(f"{device.name}: {device.summary}\n")
    links: list[str] = []
    sections = {
        "here": _here(device),
        "profile": _fields(device),
        "quantization": _quantization(device),
        "sources": [(name, _numbered(text, links) if text else "none given") for name, text in _sources(device)],
    }
    for title, rows in sections.items():
        table = Table(
            box=None, pad_edge=False, show_header=False, title=title, title_justify="left", title_style="bold"
        )
        table.add_column(no_wrap=True, min_width=24)
        table.add_column(overflow="fold")
        for name, text in rows:
            table.add_row(f"  {name}", text)
        console.print(table)
    for number, link in enumerate(links, start=1):
        # not wrapped: a link that is broken over two lines can be neither clicked nor copied
        console.print(Text.assemble(f"  [{number}] ", (link, f"link {link}")), soft_wrap=True)


def _here(device: Device) -> Iterator[tuple[str, str]]:
    """What this machine has of it: the runtime, its providers, and whether files can be run."""
    from kdc.core.errors import TargetError
    from targets.proc import cpu_features
    from targets.runtime import NONE, Offers, runtime_of, why_not_here

    if device.runtime == NONE:
        yield "runtime", "none: kdc has no runtime for it; its limits can be the budget of another target"
        yield "runs here", "no"
        return
    try:
        runtime = runtime_of(device)
    except TargetError as error:
        found, _, command = str(error).removeprefix(f"target {device.name}: ").partition("\n  → ")
        yield "runtime", f"{found}: {command}"
        yield "runs here", "no, as long as it is not installed"
        return
    yield "runtime", f"{device.runtime} {runtime.version()} is installed"
    if device.address is not None:
        yield "runs here", f"no: it runs at {device.address}, and what is installed there was not asked"
    else:
        reason = why_not_here(device, runtime)
        yield "runs here", "yes" if reason is None else f"no: {reason}"
        yield "features here", ", ".join(cpu_features() or ()) or UNKNOWN
    if isinstance(runtime, Offers):
        yield "providers there are", ", ".join(runtime.providers()) or "none"


def _fields(device: Device) -> Iterator[tuple[str, str]]:
    yield "runtime", device.runtime
    yield "providers", ", ".join(device.providers) or "the runtime's default"
    yield "architecture", device.architecture or _this_machines(device)
    yield "compute_capabilities", ", ".join(device.compute_capabilities) or NOT_OF_IT
    yield "address", device.address or "none: `--device` can give one"
    yield "emulated", "yes: its times meet no budget" if device.emulated else "no"
    yield "threads", str(device.threads)
    yield "batch", _counted(device.batch, "sample")
    yield "memory_mb", _megabytes(device.memory_mb)
    yield "storage_mb", _megabytes(device.storage_mb)
    yield "floats", device.floats
    yield "opset", f"{device.opset} (of ONNX)"
    yield "unsupported_operators", ", ".join(device.unsupported_operators) or "none known"
    aligned = "any number of channels" if device.channel_alignment == 1 else "kept channels are a multiple of it"
    yield "channel_alignment", f"{device.channel_alignment} ({aligned})"


def _quantization(device: Device) -> Iterator[tuple[str, str]]:
    from kdc.numerics.affine import highest_weight

    scheme = device.quantization
    if scheme is None:
        yield "scheme", "none known: the pass `quantize` is refused"
        return
    high = highest_weight(scheme.weight_bits)
    yield "weights", "int8, zero point 0"
    yield "weight_bits", f"{scheme.weight_bits} (-{high} to {high})"
    yield "activations", scheme.activations
    yield "symmetric_activations", "yes (one zero point)" if scheme.symmetric_activations else "no (any zero point)"
    yield (
        "per_channel",
        "yes (a scale for each output channel)" if scheme.per_channel else "no (a scale for each tensor)",
    )
    yield "linear_outputs", "in integers" if scheme.linear_outputs else "in floats"
    yield "int32_bias", "yes (DequantizeLinear of int32)" if scheme.int32_bias else "no (biases stay float)"
    yield "requires_any_feature", _one_of(scheme.requires_any_feature) or "none: right on every processor of the target"


def _sources(device: Device) -> Iterator[tuple[str, str]]:
    yield "profile", device.source
    yield "memory", device.memory_source
    if device.channel_alignment != 1:
        yield "channel_alignment", device.alignment_source
    if device.quantization is not None:
        yield "quantization", device.quantization.source


def _one_of(features: Sequence[str]) -> str:
    return " or ".join(features)


def _this_machines(device: Device) -> str:
    from targets.runtime import NONE

    return UNKNOWN if device.runtime == NONE else f"this machine's ({platform.machine()})"


def _megabytes(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:g} MB (10^6 bytes)"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _numbered(text: str, links: list[str]) -> str:
    """The text with a number in each link's place; new links go to the end of `links`."""

    def number(match: re.Match[str]) -> str:
        link = match.group().rstrip(".,;:)")
        if link not in links:
            links.append(link)
        return f"[{links.index(link) + 1}]{match.group()[len(link) :]}"

    # the sources put a space behind a link, so that what follows is not taken for a part of it
    return re.sub(r"(\[\d+\]) (?=[.,;:])", r"\1", _LINK.sub(number, text))
