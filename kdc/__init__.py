"""kdc: a trained teacher, data, a target and a budget in; a student that is proven faster, smaller and still right out.

The public names load what they need when they are first used, so that `import kdc` stays cheap.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdc.core import telemetry

if TYPE_CHECKING:
    from kdc.api import compress as compress
    from kdc.api import profile as profile
    from kdc.core.errors import KdcError as KdcError
    from kdc.driver.recipe import Recipe as Recipe
    from kdc.driver.report import Report as Report

_WHERE = {
    "compress": "kdc.api",
    "profile": "kdc.api",
    "KdcError": "kdc.core.errors",
    "Recipe": "kdc.driver.recipe",
    "Report": "kdc.driver.report",
}
__all__ = ["KdcError", "Recipe", "Report", "compress", "profile"]

telemetry.turn_off()


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'kdc' has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
