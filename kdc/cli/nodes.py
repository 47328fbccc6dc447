"""What `kdc profile --nodes` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from targets.nodes import NodeProfile

SHOWN = 15


def print_nodes(profile: NodeProfile) -> None:
    """The nodes that take most of the time, dearest first, and where nodes ran, in 80 columns."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, markup=False)
    title = f"{profile.path.name} by node, onnxruntime's profiler, {profile.runs} runs apart from the timed ones"
    several = len(profile.providers) > 1
    console.print(title)
    table = Table(box=None, pad_edge=False)
    table.add_column("module, or node", overflow="ellipsis", no_wrap=True, max_width=32)
    table.add_column("operator", overflow="ellipsis", no_wrap=True, max_width=16)
    for name in ("µs", "share", "kMACs"):
        table.add_column(name, justify="right", no_wrap=True)
    passes = any(node.made_by is not None for node in profile.nodes)
    if passes:
        table.add_column("pass", overflow="ellipsis", no_wrap=True, max_width=9)
    if profile.peaks is not None:
        table.add_column("bound by")
    if several:
        table.add_column("ran in", overflow="ellipsis", no_wrap=True, max_width=10)
    dearest = sorted(profile.nodes, key=lambda node: -node.share)
    for node in dearest[:SHOWN]:
        cells = [
            node.module or (node.covers[0] if node.covers else node.name),
            node.operator,
            f"{node.time_us:,.0f}",
            f"{node.share:.1%}",
            "?" if node.macs is None else f"{node.macs / 1e3:,.0f}" if node.macs else "",
        ]
        if passes:
            cells.append(node.made_by or "")
        if profile.peaks is not None:
            cells.append(node.bound or "?")
        if several:
            cells.append(node.provider.removesuffix("ExecutionProvider"))
        table.add_row(*cells)
    console.print(table)
    rest = dearest[SHOWN:]
    if rest:
        console.print(f"and {len(rest)} more nodes, {sum(node.share for node in rest):.1%} of the time")
    where = ", ".join(f"{count} in {name}" for name, count in profile.providers.items())
    console.print(f"nodes that ran: {where}")
    fallen = profile.fallback()
    if fallen:
        share = sum(node.share for node in fallen)
        console.print(f"note: {len(fallen)} nodes did not run in {profile.asked[0]}: {share:.1%} of the time")
