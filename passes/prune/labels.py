"""Channel labels: names for the indices of tensor dimensions, joined where two indices must live or die together.

A union-find forest (Tarjan 1975) whose trees are the channels. A frozen tree may not be removed, and says why.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.int64]
Dims = tuple[Array | None, ...]
"""One entry a dimension of a tensor: a label for each index, or None where nothing can ever be removed."""


class Labels:
    """The labels of one graph; a label is a small number."""

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._reasons: dict[int, str] = {}

    def fresh(self, count: int) -> Array:
        """`count` new labels, [count]."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count)

    def root(self, label: int) -> int:
        """The label that stands for this one's whole class."""
        parent = self._parent
        while parent[label] != label:
            parent[label] = parent[parent[label]]
            label = parent[label]
        return label

    def roots(self, labels: Array) -> Array:
        """`root` of each, in the same shape."""
        flat = [self.root(label) for label in labels.ravel().tolist()]
        return np.array(flat, dtype=np.int64).reshape(labels.shape)

    def unify(self, a: Array, b: Array) -> None:
        """Join a[i] with b[i] for each i; the arrays broadcast."""
        for x, y in zip(*(side.ravel().tolist() for side in np.broadcast_arrays(a, b)), strict=True):
            first, second = sorted((self.root(x), self.root(y)))
            if first != second:  # the older label stands for both, so that results do not depend on call order alone
                self._parent[second] = first
                reason = self._reasons.pop(second, None)
                if reason is not None:
                    self._reasons.setdefault(first, reason)

    def freeze(self, labels: Array, reason: str) -> None:
        """Forbid the removal of these; the first reason given to a class stays."""
        for label in labels.ravel().tolist():
            self._reasons.setdefault(self.root(label), reason)

    def reason(self, label: int) -> str | None:
        """Why this label's class may not be removed; None: it may."""
        return self._reasons.get(self.root(label))

    def match(self, a: Array | None, b: Array | None, reason: str) -> Array | None:
        """Two dimensions of one size that must keep the same indices: joined, or frozen where one of them is fixed."""
        if a is None or b is None:
            fixed = a if b is None else b
            if fixed is not None:
                self.freeze(fixed, reason)
            return fixed
        self.unify(a, b)
        return a

    def rows(self, labels: Array, count: int) -> Array:
        """The labels cut into `count` equal rows that keep the same positions, [count, size / count]."""
        rows = labels.reshape(count, -1)
        self.unify(rows, rows[:1])
        return rows

    def blocks(self, labels: Array, count: int) -> Array:
        """The labels cut into `count` equal blocks that are kept or removed whole, [count, size / count]."""
        blocks = labels.reshape(count, -1)
        self.unify(blocks, blocks[:, :1])
        return blocks
