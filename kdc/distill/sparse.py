"""Rows of very many classes as a few pairs: the largest logits to the bit, and an unbiased sample of the rest.

Of the distribution p = softmax(logits / temperature) over the classes, a row keeps

- the `top` largest logits, exact, with their classes;
- `samples` draws x_1 ... x_N from q(x) ∝ p(x)^power over all other classes, each with the weight p(x) / (N q(x));
- the logarithm of Σ exp(logits / temperature), and the `rest`: how much of p lies outside the top.

The estimate p̂ has the exact probabilities of the top, and for any other class the sum of its draws' weights. Each
weight's mean over the draws is p(x) / N · N = p(x) for one class, whatever q is, as long as q > 0 where p > 0: E[p̂] = p.
Keeping the top alone and making it sum to one is biased, and the student learns to be too sure.

What is unbiased under it: everything linear in p. That is the cross-entropy -Σ p log s of a student s, and with it the
forward Kullback-Leibler divergence at this temperature up to the teacher's entropy, a constant; so its gradient, too,
is right on average. With power 1 each weight is rest / N, so that p̂ sums to one in each single draw: a row of logits
whose softmax is p̂ then goes through any implementation of that divergence (`estimated`). With another power p̂ sums to
one on average alone; a softmax would divide by the sum, a bias of the order 1/N: use the pairs (`pairs`,
`sampled_cross_entropy`). Every other objective (another temperature, reverse KL, ranks, distances of logits) is not
linear in p, and would take classes that were not drawn for impossible: it is given `spread` rows, exact in the top and in
the mass of the rest, which is shared out evenly. Those are biased, and the same in every draw.

Source: Anshumann et al. 2025, "Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs", arXiv:2503.16870:
draws with importance weights, as in the abstract. Ours: the exact top beside the sample, draws that are stratified
(one uniform number in each N-th part of the unit interval, which leaves the means as they are and lowers the variance),
a temperature, and both dense rows. The paper's own code was not found.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from kdc.distill.answer_settings import AnswerForm
from kdc.distill.objectives.distributions import per_example

NOTHING = -200.0  # nats: exp of it is 0 in float32, and 0 times it is no NaN


@dataclass(frozen=True)
class SparseRows:
    """The estimate as pairs, [rows, top + samples]: classes, and weights whose mean over the draws is p.

    A class may be there several times: its weights add up.
    """

    classes: torch.Tensor
    weights: torch.Tensor


def row_type(form: AnswerForm, classes: int) -> np.dtype[np.void]:
    """The bytes of one row: 6 for each class of the top and each draw where there are up to 65536 classes, else 8; and 8."""
    number = "<u2" if classes <= 1 << 16 else "<u4"
    return np.dtype(
        [
            ("top", "<f4", (form.top,)),
            ("weight", "<f4", (form.samples,)),
            ("log_total", "<f4"),
            ("rest", "<f4"),
            ("top_class", number, (form.top,)),
            ("class", number, (form.samples,)),
        ]
    )


def sparse_rows(
    logits: torch.Tensor, form: AnswerForm, generator: torch.Generator
) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    """Rows of logits [rows, classes] in their sparse form, with draws from the generator.

    Raises: ValueError where there are no classes beside the top.
    """
    count, classes = logits.shape
    if classes <= form.top:
        raise ValueError(f"{classes} classes, and a top of {form.top}: nothing is left to draw from")
    rows = np.zeros(count, row_type(form, classes))
    top, top_class = logits.float().topk(form.top, dim=1)
    scaled = logits.double() / form.temperature
    log_total = scaled.logsumexp(1, keepdim=True)
    others = (scaled - log_total).scatter(1, top_class, -torch.inf)  # log p outside the top
    drawn, weight = _drawn(others, form, generator)
    rows["top"], rows["top_class"] = top.numpy(), top_class.numpy()
    rows["class"], rows["weight"] = drawn.numpy(), weight.numpy()
    rows["log_total"] = log_total.squeeze(1).numpy()
    rows["rest"] = others.exp().sum(1).numpy()
    return rows


def _drawn(others: torch.Tensor, form: AnswerForm, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes and weights, both [rows, samples], of log p outside the top, [rows, classes]."""
    # Relative to the likeliest of the rest: far below the top, exp of log p itself would underflow.
    highest = others.amax(1, keepdim=True)
    share = (form.power * (others - highest)).exp()
    if form.power == 0:
        share = torch.where(others.isneginf(), torch.zeros_like(share), torch.ones_like(share))
    ends = share.cumsum(1)
    total = ends[:, -1:]
    places = torch.rand((len(others), form.samples), generator=generator, dtype=torch.float64)
    places = (places + torch.arange(form.samples, dtype=torch.float64)) / form.samples * total
    places = torch.minimum(places, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(ends, places, right=True).clamp(max=others.shape[1] - 1)
    probability, proposal = others.gather(1, drawn).exp(), share.gather(1, drawn) / total
    return drawn, probability / (form.samples * proposal)


def pairs(rows: np.ndarray[tuple[int], np.dtype[np.void]], form: AnswerForm) -> SparseRows:
    """The estimate p̂ of each row as classes and weights; the top's are exact."""
    top = torch.from_numpy(rows["top"].astype(np.float64)) / form.temperature
    log_total = torch.from_numpy(rows["log_total"].astype(np.float64)).unsqueeze(1)
    classes = np.concatenate([rows["top_class"], rows["class"]], 1).astype(np.int64)
    weights = torch.cat([(top - log_total).exp().float(), torch.from_numpy(rows["weight"].copy())], 1)
    return SparseRows(torch.from_numpy(classes), weights)


def estimated(rows: np.ndarray[tuple[int], np.dtype[np.void]], form: AnswerForm, classes: int) -> torch.Tensor:
    """Logits [rows, classes] whose softmax at the form's temperature is p̂; the top's are those of the teacher, to the bit.

    What was not drawn is `NOTHING` below the sum of all: its probability is 0 in float32, and every value is finite.
    """
    found = torch.from_numpy(rows["class"].astype(np.int64))
    mass = torch.zeros((len(rows), classes)).scatter_add_(1, found, torch.from_numpy(rows["weight"].copy()))
    return _logits(mass.log(), rows, form)


def spread(rows: np.ndarray[tuple[int], np.dtype[np.void]], form: AnswerForm, classes: int) -> torch.Tensor:
    """Logits [rows, classes], exact in the top; all other classes share the rest of p evenly. No draw is in it."""
    share = torch.from_numpy(rows["rest"] / (classes - form.top))
    return _logits(share.log().unsqueeze(1).expand(-1, classes), rows, form)


def _logits(log_mass: torch.Tensor, rows: np.ndarray[tuple[int], np.dtype[np.void]], form: AnswerForm) -> torch.Tensor:
    log_total = torch.from_numpy(rows["log_total"].copy()).unsqueeze(1)
    logits = form.temperature * (log_mass.clamp_min(NOTHING) + log_total)
    return logits.scatter(1, torch.from_numpy(rows["top_class"].astype(np.int64)), torch.from_numpy(rows["top"].copy()))


def sampled_cross_entropy(student: torch.Tensor, teacher: SparseRows, temperature: float = 1.0) -> torch.Tensor:
    """-Σ p̂ log softmax(student / temperature), whose mean over the draws is the cross-entropy to p, for any power.

    Args: student: logits, [batch, classes]. teacher: the estimate, made at this temperature. temperature: > 0.
    Returns: nats, [batch]; at its least over the students, on average over the draws, the teacher's entropy.
    Source: arXiv:2503.16870, as in the abstract.
    """
    log_s = torch.log_softmax(student.float() / temperature, 1).gather(1, teacher.classes)
    return per_example(-(teacher.weights * log_s).sum(1))
