"""From measured graphs to a table of kernels' times.

What is measured is a graph's time as a whole, for a profiler costs as much as a small kernel. It is the sum of its kernels'
times and of what a run itself costs, so the kernels' times are found from many graphs together, in two steps.

1. A roofline for each kind: a kernel's time is a sum of a cost for the node, for its multiply-accumulates, for the bytes
   that it reads and writes and for those of its constants, none of them below zero (least squares of relative errors).
   Widths are counted in steps of the vector: the step of each kind is the one that explains the measured times best.
2. What a roofline cannot know, by Gaussian processes on the logarithm of the ratio to it, one for each kind, smooth over
   the logarithms of the kernel's sizes. Near a graph's measured time, that time's logarithm is linear in its kernels'
   logarithms, with each one's share of the time as the factor; so all kinds have one posterior in closed form. Far from
   all that was measured a ratio falls back to 1, which is the roofline.

Source: Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, section 2.2 (the posterior) and 5.4.1 (the
marginal likelihood that chooses length scales and noise).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.optimize import minimize, nnls

from targets.predictor.kernels import Kernel
from targets.predictor.table import (
    COSTS,
    LEAST_NS,
    PLAUSIBLE,
    Curve,
    Floats,
    Smoothness,
    Table,
    place,
    squared_distances,
    terms,
)

ROUNDS = 3  # of linearizing: the shares change with the corrections
SHARE_LEAST = 0.003  # a kernel that takes less of a graph's time learns nothing from it
RIDGE = 0.03
RUN_PLAUSIBLE = 50_000.0  # ns
TIMER_NS = 300.0  # what a short time is uncertain by, however often it is measured
OUTLIER = 3.0  # standard deviations: what lies farther out counts for less


@dataclass(frozen=True)
class Measured:
    """One graph: its kernels, and the time of a run."""

    kernels: tuple[Kernel, ...]
    ns: float


@dataclass(frozen=True)
class _Kind:
    """The different kernels of one kind: columns of what is learned."""

    name: str
    sizes: tuple[str, ...]
    terms: Floats
    places: Floats


class _Problem:
    """All graphs as one system: `counts` [graphs, kernels] says how often each different kernel is in each graph."""

    def __init__(self, graphs: Sequence[Measured]) -> None:
        found: dict[tuple[str, tuple[str, ...]], dict[tuple[float, ...], Kernel]] = {}
        for graph in graphs:
            for kernel in graph.kernels:
                key = kernel.kind, tuple(sorted(kernel.sizes))
                found.setdefault(key, {}).setdefault(_identity(kernel), kernel)
        self.kinds = [
            _Kind(name, sizes, np.stack([terms(k) for k in same.values()]), np.stack([place(k) for k in same.values()]))
            for (name, sizes), same in found.items()
        ]
        columns: dict[tuple[str, tuple[str, ...], tuple[float, ...]], int] = {}
        start = 0
        self.slices: list[slice] = []
        for (name, sizes), same in found.items():
            self.slices.append(slice(start, start + len(same)))
            columns |= {(name, sizes, identity): start + place for place, identity in enumerate(same)}
            start += len(same)
        self.counts = np.zeros((len(graphs), start))
        for row, graph in enumerate(graphs):
            for kernel in graph.kernels:
                self.counts[row, columns[kernel.kind, tuple(sorted(kernel.sizes)), _identity(kernel)]] += 1
        self.times = np.array([graph.ns for graph in graphs])

    def rooflines(self) -> tuple[list[Floats], float]:
        """Costs of each kind and of a run, by least squares of relative errors under non-negativity."""
        blocks = [self.counts[:, part] @ kind.terms for kind, part in zip(self.kinds, self.slices, strict=True)]
        matrix = np.concatenate([*blocks, np.ones((len(self.times), 1))], axis=1) / self.times[:, None]
        scale = np.maximum(np.linalg.norm(matrix, axis=0), 1e-300)
        size = matrix.shape[1]
        # A ridge in the costs' own units: one on scaled columns would let a rarely seen cost grow without end
        ridge = np.diag(
            [
                RIDGE / (cost * one)
                for cost, one in zip([*PLAUSIBLE * len(self.kinds), RUN_PLAUSIBLE], scale, strict=True)
            ]
        )
        stacked = np.concatenate([matrix / scale, ridge])
        found = nnls(stacked, np.concatenate([np.ones(len(self.times)), np.zeros(size)]), maxiter=30 * size)[0] / scale
        width = len(COSTS)
        return [found[width * index : width * (index + 1)] for index in range(len(self.kinds))], float(found[-1])


def _identity(kernel: Kernel) -> tuple[float, ...]:
    return (*terms(kernel), *place(kernel))


def fit(graphs: Sequence[Measured]) -> Table:
    """The table that explains these graphs' times best.

    Args: graphs: a few hundred, of varied kernels; the same graph may be there more than once.
    """
    problem, costs, model = _begun(graphs)
    smoothness, noise = model.choose()
    weights, _ = model.solve(smoothness, noise)
    run = model.run
    curves = {}
    for kind, part, cost in zip(problem.kinds, problem.slices, costs, strict=True):
        used = np.abs(weights[part]) > 0
        curves[kind.name] = Curve(
            sizes=kind.sizes,
            costs=tuple(cost.tolist()),
            places=tuple(map(tuple, kind.places[used].round(4).tolist())),
            weights=tuple(weights[part][used].tolist()),
        )
    return Table(run_ns=run, smoothness=smoothness, noise=noise, curves=curves)


def doubtful(graphs: Sequence[Measured], share: float) -> list[int]:
    """The graphs whose times the others confirm least: this share of all, by their place.

    Something may have disturbed their measurement; or they are unlike the others, and then a second time helps too.
    """
    _, _, model = _begun(graphs)
    _, apart = model.solve(Smoothness(), float(np.exp(_START[4])))
    return [int(place) for place in np.argsort(-apart)[: round(share * len(graphs))]]


def _begun(graphs: Sequence[Measured]) -> tuple[_Problem, list[Floats], _Corrections]:
    problem = _Problem(graphs)
    costs, run = problem.rooflines()
    base = np.concatenate(
        [np.maximum(LEAST_NS, kind.terms @ cost) for kind, cost in zip(problem.kinds, costs, strict=True)]
    )
    return problem, costs, _Corrections(problem, base, run)


class _Corrections:
    """The posterior of all kinds' corrections together."""

    def __init__(self, problem: _Problem, base: Floats, run: float) -> None:
        self.problem, self.base, self.run = problem, base, run
        self.corrections = np.zeros(len(base))
        self.trust = np.ones(len(problem.times))
        self._linearize()

    def _linearize(self) -> None:
        """Shares of each kernel in each graph's time, and the logarithms that are still to be explained."""
        parts = self.problem.counts * (self.base * np.exp(self.corrections))
        total = parts.sum(1) + self.run
        shares = parts / total[:, None]
        shares[shares < SHARE_LEAST] = 0
        self.shares = shares
        # Most kinds are in few graphs: each kind's share in the covariance is worked out for its own graphs alone
        self._parts: list[tuple[NDArray[np.int64], Floats, Floats]] = []
        for kind, part in zip(self.problem.kinds, self.problem.slices, strict=True):
            rows, used = np.flatnonzero(shares[:, part].any(1)), shares[:, part].any(0)
            places = kind.places[used]
            self._parts.append((rows, shares[rows, part][:, used], squared_distances(places, places)))
        # as if all corrections were zero: the line through the present ones, read there
        self.residual = np.log(self.problem.times / total) + shares @ self.corrections

    def _covariance(self, smoothness: Smoothness) -> Floats:
        size = len(self.problem.times)
        found = np.zeros((size, size))
        for rows, shares, squared in self._parts:
            found[np.ix_(rows, rows)] += shares @ smoothness.apart(squared) @ shares.T
        return found

    def _spread(self, noise: float) -> Floats:
        return (noise**2 + (TIMER_NS / self.problem.times) ** 2) / self.trust

    def choose(self) -> tuple[Smoothness, float]:
        """Smoothness and noise of the greatest marginal likelihood."""

        def loss(logs: Floats) -> float:
            values = np.exp(np.clip(logs, -5, 3))
            smoothness = Smoothness(smooth=values[0], smooth_reach=values[1], rough=values[2], rough_reach=values[3])
            matrix = self._covariance(smoothness) + np.diag(self._spread(values[4]))
            factor = cho_factor(matrix, lower=True)
            fitted = float(self.residual @ cho_solve(factor, self.residual))
            # priors on the logarithms, wide: without them a part that explains nothing drifts off
            prior = float((((logs - _START) / 1.5) ** 2).sum())
            return 0.5 * (fitted + prior) + float(np.log(np.diag(factor[0])).sum())

        found = minimize(loss, _START, method="Nelder-Mead", options={"maxfev": 160, "xatol": 0.05, "fatol": 0.5})
        values = np.exp(np.clip(found.x, -5, 3)).tolist()
        return Smoothness(smooth=values[0], smooth_reach=values[1], rough=values[2], rough_reach=values[3]), values[4]

    def solve(self, smoothness: Smoothness, noise: float) -> tuple[Floats, Floats]:
        """Weights of all kernels' places, and how many deviations each graph's time is off from what the others say.

        The shares are brought up to date, and outliers lose their say.
        """
        weights, apart = np.zeros(len(self.base)), np.zeros(len(self.problem.times))
        for _ in range(ROUNDS):
            spread = self._spread(noise)
            factor = cho_factor(self._covariance(smoothness) + np.diag(spread), lower=True)
            inverse = cho_solve(factor, np.eye(len(spread)))
            alpha = inverse @ self.residual
            # what each graph's time is off from what all others say of it: Rasmussen and Williams, equation 5.12
            apart = np.abs(alpha / np.sqrt(np.diag(inverse)))
            weights = self.shares.T @ alpha
            for kind, part in zip(self.problem.kinds, self.problem.slices, strict=True):
                self.corrections[part] = smoothness.between(kind.places, kind.places) @ weights[part]
            self.trust = np.where(apart > OUTLIER, self.trust * (OUTLIER / np.maximum(apart, OUTLIER)) ** 2, self.trust)
            self._linearize()
        return weights, apart


_START = np.log([0.4, 3.0, 0.15, 1.0, 0.02])
