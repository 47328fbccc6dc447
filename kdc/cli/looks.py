"""What `kdc profile` looks at besides time: memory by the graph, and where the time goes by node."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from kdc.core.device import Device
    from kdc.core.spec import DeviceFile
    from targets.measured import Comparison
    from targets.nodes import NodeProfile
    from targets.on_paper import OnPaper
    from targets.roofline import Peaks


class Looks(NamedTuple):
    """For each file that was named, in that order; `nodes` is empty where they were not asked for."""

    names: tuple[str, ...]
    paper: tuple[OnPaper, ...]
    nodes: tuple[NodeProfile, ...]


def looks(
    files: Sequence[DeviceFile],
    asked: Sequence[Path],
    device: Device,
    inputs: Sequence[Any] | None,
    *,
    nodes: bool,
    peaks: Peaks | None,
    seed: int,
) -> Looks:
    """Look at files that were timed. Args: files: that were measured. asked: as they were typed."""
    from targets.nodes import profile_nodes
    from targets.on_paper import on_paper
    from targets.runtime import runtime_of

    runtime = runtime_of(device)
    return Looks(
        tuple(path.name for path in asked),
        tuple(on_paper(file, runtime) for file in files),
        tuple(
            profile_nodes(file, device, inputs, peaks=peaks, seed=seed).model_copy(update={"path": name})
            for file, name in zip(files, asked, strict=True)
        )
        if nodes
        else (),
    )


def with_looks(comparison: Comparison, looked: Looks) -> dict[str, Any]:
    """For JSON: the comparison, with `graph` and `nodes` beside its own fields, a file each."""
    found = comparison.model_dump(mode="json")
    found["graph"] = [one.model_dump(mode="json") for one in looked.paper]
    found["nodes"] = [one.model_dump(mode="json") for one in looked.nodes]
    return found


def print_looks(looked: Looks) -> None:
    """Below the table of figures."""
    from rich.console import Console

    from kdc.cli.nodes import print_nodes
    from targets.on_paper import sentence

    console = Console(highlight=False, markup=False)
    for name, paper in zip(looked.names, looked.paper, strict=True):
        console.print(f"{name} {sentence(paper)}" if len(looked.names) > 1 else sentence(paper))
    for nodes in looked.nodes:
        console.print()
        print_nodes(nodes)


def write_page(page: Path, comparison: Comparison, target: str, looked: Looks) -> None:
    """The picture of it all, beside what is printed.

    Raises: FolderError where it cannot be written.
    """
    from targets.on_paper import sentence
    from targets.page.page import render

    said = [f"{name} {sentence(paper)}" for name, paper in zip(looked.names, looked.paper, strict=True)]
    files = (comparison.candidate, comparison.baseline)
    said += [
        f"{one.path.name} {one.placement.sentence()}" for one in files if one is not None and one.placement is not None
    ]
    put_page(page, render(comparison, target=target, nodes=looked.nodes, remarks=said))


def put_page(page: Path, content: str) -> None:
    """Write a page.

    Raises: FolderError where it cannot be written.
    """
    from kdc.core.errors import FolderError
    from kdc.core.writing import write_text

    try:
        if page.exists() and not page.is_file():  # a pipe or a terminal
            page.write_text(content, encoding="utf-8")
        else:
            write_text(page, content)
    except OSError as error:
        raise FolderError(
            f"{page}: cannot be written: {error.strerror}", do="name another file after --html"
        ) from error
