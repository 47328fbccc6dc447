"""Candidates as measuring leaves them, made of a few figures."""

from dataclasses import dataclass, replace

from kdc.driver.limits import Judged
from kdc.numerics.stats import Drop
from targets.latency import Latency
from targets.measured import Profile
from targets.ratio import Ratio


@dataclass
class Label:
    label: str


def verdict_of(low: float, high: float) -> str:
    return "faster" if low >= 1.01 else "slower" if high <= 1 / 1.01 else "no detectable difference"


def judged(ratio: float, drop: float = 0.0, size_mb: float = 0.1, half: float = 0.02, drop_half: float = 1.0) -> Judged:
    latency = Latency(
        n=10, processes=5, median_ms=1 / ratio, low_ms=0.99 / ratio, high_ms=1.01 / ratio,
        p90_ms=None, p99_ms=None, load_ms=1, first_ms=1,
    )  # fmt: skip
    profile = Profile(
        path="x.onnx", sha256="0", size_mb=size_mb, latency=latency, peak_memory_mb=1, parameters=1, macs=1
    )
    low, high = (1 - half) * ratio, (1 + half) * ratio
    band = Ratio(ratio=ratio, low=low, high=high, verdict=verdict_of(low, high))
    blocks = tuple((tuple([int(1e6 / ratio)] * 4),) for _ in range(5))
    return Judged(Label("x"), profile, band, Drop(drop, drop - drop_half, drop + drop_half, None), blocks)


def emulated(one: Judged) -> Judged:
    latency = one.profile.latency.model_copy(update={"emulated": True})
    return replace(one, profile=one.profile.model_copy(update={"latency": latency}))
