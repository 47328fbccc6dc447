"""Few classes made many: each is split along the directions in which the teacher's embeddings of it vary.

With two classes a teacher's logits say one number an example. Its embeddings say more: a class's principal directions
make pseudo-subclasses of it, whose probabilities add up to those of the class. The student learns these with a head of
classes * subclasses logits by any objective of this package (`soft_targets`, with `subclass_logits` as the teacher's), and
`folded` gives the logits of the classes. In a recipe it is `lelp`, with that head beside the student's own
(`kdc.distill.subclass_policy`).

Source: Loo et al. 2024 (LELP), arXiv:2409.20449: principal directions of each class's embeddings, in the null space of the
head's weights, and pseudo-subclasses along them. That the split is a softmax of standardised projections is our choice:
the paper's equations could not be read.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from kdc.core.errors import DataError
from kdc.distill.objectives.distributions import log_probabilities


@dataclass(frozen=True)
class Directions:
    """`means` [classes, width]; `axes` [classes, subclasses, width], which give a class's own examples unit variance."""

    means: torch.Tensor
    axes: torch.Tensor


def subclass_directions(
    embeddings: torch.Tensor, labels: torch.Tensor, head: torch.Tensor, subclasses: int
) -> Directions:
    """The principal directions of each class's embeddings, the widest first, each with its largest entry positive.

    They are orthogonal to the head's weights: along those the logits tell already where an example lies.

    Args: embeddings: the teacher's, of the training split, [n, width]. labels: class numbers, [n]. head: weights of the
        linear layer that makes logits of them, [classes, width].
    Raises: DataError where a class has fewer examples than `subclasses` + 1, or its embeddings vary in fewer directions.
    """
    seen = torch.linalg.qr(head.T).Q
    hidden = embeddings - embeddings @ seen @ seen.T
    means, axes = [], []
    for number in range(len(head)):
        own = hidden[labels == number]
        free = own.shape[1] - seen.shape[1]
        if len(own) <= subclasses or free < subclasses:
            raise DataError(
                f"class {number} has {len(own)} examples, whose embeddings have {free} directions that the head does not "
                f"see; {subclasses} subclasses need {subclasses + 1} examples and {subclasses} directions or more",
                do="ask for fewer subclasses, or give more examples of this class",
            )
        mean = own.mean(0)
        _, widths, directions = torch.linalg.svd(own - mean, full_matrices=False)
        largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
        deviations = widths / (len(own) - 1) ** 0.5
        axes.append((directions * largest.sign() / deviations.clamp(min=1e-6).unsqueeze(1))[:subclasses])
        means.append(mean)
    return Directions(torch.stack(means), torch.stack(axes))


def subclass_logits(
    logits: torch.Tensor, embeddings: torch.Tensor, directions: Directions, sharpness: float
) -> torch.Tensor:
    """Log-probabilities of all subclasses, [batch, classes * subclasses]: of the class, plus of the subclass in it.

    Args: logits: the teacher's, [batch, classes]. embeddings: [batch, width]. sharpness: factor on the projections, >= 0;
        0 splits every class evenly.
    """
    offsets = embeddings.unsqueeze(1) - directions.means
    projections = torch.einsum("bcw,csw->bcs", offsets, directions.axes)
    within = (sharpness * projections).log_softmax(-1)
    return (log_probabilities(logits, 1.0).unsqueeze(-1) + within).flatten(1)


def folded(logits: torch.Tensor, subclasses: int) -> torch.Tensor:
    """A subclass head's logits, [..., classes * subclasses], as logits of the classes, [..., classes]."""
    return logits.reshape(*logits.shape[:-1], -1, subclasses).logsumexp(-1)
