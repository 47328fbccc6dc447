"""What the previous release answers, so that a new one is seen with the users' eyes: which answers change."""

from __future__ import annotations

from pathlib import Path

from kdc.core.data import Split
from kdc.core.errors import ModelError
from kdc.core.spec import DeviceFile
from kdc.driver.evaluate import Array, engines, run_over
from targets.device import load_device
from targets.door.admit import admit
from targets.runtime import Port

ANYWHERE = "cpu-ort"  # ONNX Runtime is always there; what a release answers is a matter of its graph, not of the device


def answers_of_release(path: Path, classes: int, split: Split) -> Array:
    """The answers of a release's ONNX file on a split, [n, classes].

    Raises: ModelError where it takes other inputs than the data have, or gives other outputs than the teacher.
    """
    admit(path)
    device = load_device(ANYWHERE)
    loaded = engines(DeviceFile(path, device.runtime), device, len(split))
    own = [Port("", ("batch", *t.shape[1:]), str(t.dtype).removeprefix("torch.")) for t in split.inputs]
    if len(own) != len(loaded[0].inputs) or not all(map(_fits, loaded[0].inputs, own)):
        raise ModelError(
            f"{path}: the previous release takes {_told(loaded[0].inputs)} a sample; the data hold {_told(own)}",
            do="name a release that takes the same inputs, or leave `previous` out",
        )
    found, _ = run_over(loaded, split, device.batch)
    if found.ndim != 2 or found.shape[1] != classes:
        raise ModelError(
            f"{path}: the previous release gives {list(found.shape[1:])} numbers a sample; the teacher gives [{classes}]",
            do="name a release that tells the same classes, or leave `previous` out",
        )
    return found


def _fits(port: Port, own: Port) -> bool:
    sizes = zip(port.shape[1:], own.shape[1:], strict=False)
    return (
        port.dtype == own.dtype
        and len(port.shape) == len(own.shape)
        and all(isinstance(theirs, str) or theirs == size for theirs, size in sizes)
    )


def _told(ports: list[Port] | tuple[Port, ...]) -> str:
    return ", ".join(f"{port.dtype}{list(port.shape[1:])}" for port in ports)
