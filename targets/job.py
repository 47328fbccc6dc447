"""What a measuring process is asked, and what it answers: plain values that travel as JSON.

The process that measures may stand on a device that has Python, numpy and the runtime, and nothing else. So these are
dataclasses of the standard library, and a field that is added to one of them travels without further code.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from kdc.core.devicefile import DeviceFile
from kdc.numerics.stats import REPEATS

if TYPE_CHECKING:  # pydantic's, which the process that measures may lack
    from kdc.core.device import Device

LIMIT_SECONDS = 600.0  # for one process: minutes more than it takes for a model of ten seconds a run


@dataclass(frozen=True)
class Job:
    """What one process does. `inputs` is an .npz with arrays "0", "1", ...: samples [n, ...] in call order.

    device: a Device's fields. mode: "time" times blocks of batches back to back, "cold" each batch after the caches were
    swept, "memory" finds the peak of one file, "placement" which provider has its nodes, "inputs" times every input at
    batch 1, `repeats` times, "answers" runs one file on all inputs and gives its outputs, "stream" runs one file chunk
    after chunk with its states carried. skips: for each file whether its work depends on its input; empty where none's
    does. limit_seconds: the process is killed when it has taken this long.

    Of a stream: `chunk_ns` is the time that a chunk covers; paced: whether each chunk waits until it is due; states:
    outputs, each with the input that takes it; names decide where None.
    """

    device: Mapping[str, Any]
    files: tuple[DeviceFile, ...]
    inputs: Path | None
    seed: tuple[int, ...]
    cores: tuple[int, ...] | None
    slice_seconds: float = 0.0
    rounds_max: int = 20
    mode: Literal["time", "cold", "memory", "placement", "inputs", "answers", "stream"] = "time"
    skips: tuple[bool, ...] = ()
    repeats: int = REPEATS
    limit_seconds: float = LIMIT_SECONDS
    chunk_ns: int = 0
    paced: bool = False
    states: tuple[tuple[str, str], ...] | None = None

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), default=str)

    @staticmethod
    def from_json(text: str) -> Job:
        """What `as_json` gave."""
        given = json.loads(text)
        fields = {**_tupled(given), "device": given["device"]}
        fields["files"] = tuple(DeviceFile(Path(file["path"]), file["runtime"]) for file in fields["files"])
        fields["inputs"] = None if fields["inputs"] is None else Path(fields["inputs"])
        return Job(**fields)


@dataclass(frozen=True)
class FileTiming:
    """One file in one process: blocks_ns is [rounds][runs].

    Where its work depends on its input, a block runs all its inputs, then all again: `REPEATS` times over.
    """

    load_ns: int
    first_ns: int
    warm_up_runs: int
    steady: bool
    blocks_ns: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Done:
    """What one process found, by the job's mode, or an error.

    `timings` in the job's order of files, `peak_bytes` and `mapped_bytes` or `placed` (a provider, an operator, how many
    nodes) of its one file, `inputs_ns` [file][input], or `answers`: each output [n, ...] of its one file as the bytes of a
    .npy file in base64. `swept_bytes` is what was read and written before each cold run, for each core.

    Of a stream's chunks: `spent_ns` each took, `answered_ns` from when it was due until it was done; `states` that were
    carried (output, input), `broken` those that are no numbers at the end.
    """

    timings: tuple[FileTiming, ...] = ()
    inputs_ns: tuple[tuple[int, ...], ...] = ()
    peak_bytes: int = 0
    mapped_bytes: int | None = None
    placed: tuple[tuple[str, str, int], ...] = ()
    answers: tuple[str, ...] = ()
    swept_bytes: int = 0
    spent_ns: tuple[int, ...] = ()
    answered_ns: tuple[int, ...] = ()
    load_ns: int = 0
    first_ns: int = 0
    states: tuple[tuple[str, str], ...] = ()
    broken: tuple[str, ...] = ()
    pinned: bool = False
    error: str | None = None

    def as_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Done:
        """What `as_json` gave."""
        fields = _tupled(json.loads(text))
        fields["timings"] = tuple(FileTiming(**timing) for timing in fields["timings"])
        return Done(**fields)


def packed(array: NDArray[Any]) -> str:
    """An array as text that JSON can carry."""
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode()


def unpacked(text: str) -> NDArray[Any]:
    """What `packed` was given."""
    array: NDArray[Any] = np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)
    return array


def fields_of(device: Device) -> dict[str, Any]:
    """A Device as a job carries it."""
    return device.model_dump(mode="json")


def device_of(fields: Mapping[str, Any]) -> Device:
    """A job's device, to be read as a Device: its fields, without the class that checked them."""
    return cast("Device", _plain(fields))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return SimpleNamespace(**{name: _plain(inner) for name, inner in value.items()})
    return _tupled(value)


def _tupled(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    if isinstance(value, list):
        return tuple(_tupled(one) for one in value)
    return {name: _tupled(inner) for name, inner in value.items()} if isinstance(value, dict) else value
