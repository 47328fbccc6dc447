"""`kdc plan`: what would be done, and whether it can be."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kdc.cli.flags import takes_recipe

if TYPE_CHECKING:
    from kdc.driver.recipe import Recipe


@takes_recipe
def plan(recipe: Recipe) -> None:
    """Show the passes, what each requires and destroys, and check the teacher's operators against the target."""
    from kdc.driver.plan import make
    from targets.device import load_device

    device = load_device(recipe.target)
    planned = make(recipe.passes, device)

    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title=f"plan for {device.name}: {device.summary}", title_justify="left", box=None, pad_edge=False)
    for column in ("step", "requires", "provides", "destroys", "what it does"):
        table.add_column(column)
    for one in (*planned.compress, *planned.lowering):
        contract = one.settings.contract(device)
        what = (type(one.settings).__doc__ or "").splitlines()[0]
        facts = (" ".join(sorted(f)) for f in (contract.requires, contract.provides, contract.destroys))
        table.add_row(one.label, *facts, what)
    console.print(table)
    limits = {name: value for name, value in recipe.budget.model_dump(by_alias=True).items() if value is not None}
    if not {"latency_ms", "latency_ms@cold"} & limits.keys():
        del limits["percentile"]  # of nothing
    console.print("budget: " + (", ".join(f"{name} {_shown(value)}" for name, value in limits.items()) or "none"))

    from kdc.driver.preview import preview

    found = preview(recipe, planned, device)
    console.print(f"teacher: {found.parameters:,} parameters, {found.macs / 1e6:,.1f} million MACs")
    for note in found.notes:
        console.print(f"data: {note}")
    console.print("operators: " + ", ".join(f"{name} {n}" for name, n in found.operators.items()))
    console.print(f"{device.runtime} loads the teacher's exported graph; every operator is there")


def _shown(limit: float | dict[str, Any]) -> str:
    if isinstance(limit, dict):
        return " ".join(f"{key} {value}" for key, value in limit.items())
    return f"{limit:g}"
