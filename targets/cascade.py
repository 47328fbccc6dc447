"""A cascade in stages as one engine: each stage is loaded by the target's runtime, the loop is the one that ships."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kdc.core.devicefile import DeviceFile
from kdc.core.errors import TargetError
from targets import run_cascade
from targets.runtime import Array, Engine, Port


class CascadeEngine:
    """A cascade's stages as an Engine: its outputs are logits [batch, classes] and exit [batch], int64."""

    def __init__(self, stages: Sequence[Engine], plan: dict[str, Any]) -> None:
        last = plan["stages"][-1]
        name, exit_name = plan["outputs"]
        self.inputs = tuple(_named(stages[0].inputs, plan["inputs"]))
        (answer,) = _named(stages[-1].outputs, [last["logits"]])
        self.outputs = (answer._replace(name=name), Port(exit_name, answer.shape[:1], "int64"))
        self._cascade = run_cascade.Cascade(
            [_ordered(*pair) for pair in zip(stages, plan["stages"], strict=True)], plan
        )

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run one batch: one array for each input, in call order.

        Raises: TargetError where the runtime refuses them, or they are not of one length.
        """
        try:
            return list(self._cascade.run(inputs))
        except ValueError as error:
            raise TargetError(f"the cascade cannot be run: {error}") from error


def is_cascade(path: Path) -> bool:
    """Whether this path is that of a cascade's plan."""
    return path.name == run_cascade.PLAN


def stage_files(path: Path) -> tuple[Path, ...]:
    """The plan itself, then the file of each stage.

    Raises: TargetError where one is missing or was changed.
    """
    return (path, *(path.parent / stage["file"] for stage in _plan(path)["stages"]))


def load_cascade(path: Path, load_one: Callable[[DeviceFile], Engine], runtime: str) -> CascadeEngine:
    """Load the stages that a cascade.json names, each by `load_one`.

    Raises: TargetError where one is missing, was changed or cannot be loaded.
    """
    _, *files = stage_files(path)
    return CascadeEngine([load_one(DeviceFile(file, runtime)) for file in files], _plan(path))


def _plan(path: Path) -> dict[str, Any]:
    try:
        return run_cascade.read(path)
    except FileNotFoundError as error:
        raise TargetError(f"{path}: there is no such file", do="check the path") from error
    except ValueError as error:
        raise TargetError(str(error), do="build the cascade again, or copy all of its folder") from error


def _named(ports: Sequence[Port], names: Sequence[str]) -> list[Port]:
    by_name = {port.name: port for port in ports}
    return [by_name[name] for name in names]


def _ordered(engine: Engine, step: dict[str, Any]) -> run_cascade.Stage:
    """An engine takes and gives arrays in the order of its own ports, a plan's stage in the plan's."""
    given, wanted = [port.name for port in engine.outputs], [port.name for port in engine.inputs]

    def run(inputs: Sequence[Array]) -> list[Array]:
        values = dict(zip(step["inputs"], inputs, strict=True))
        outputs = dict(zip(given, engine.run([values[name] for name in wanted]), strict=True))
        return [outputs[name] for name in step["outputs"]]

    return run
