"""Teacher and student that number their outputs differently: other classes, other tokenizers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

from kdc.core.errors import ModelError
from kdc.distill.objectives.distributions import labelled, log_probabilities, per_example, wide

Range = tuple[int, int]
_BELOW_ONE = 1e-6  # log-probabilities stay this far below 0: log(1 - 1) is infinite


def uld(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """Sum of |difference| of the two distributions, each sorted by falling probability, the shorter padded with 0.

    It pairs the likeliest with the likeliest and asks for no class to be the same, so that vocabularies may differ in
    order and in size. It is the Wasserstein distance between them when it costs 1 to go from any class to any other.

    Args: student, teacher: logits, [batch, ..., classes] with dimensions between that are equal, classes that need not
        be. temperature: > 0.
    Returns: [batch], 0 to 2; the mean over the dimensions between, if any.
    Raises: ModelError where another dimension than the last differs.
    Source: Boizard et al. 2024 (ULD), arXiv:2402.12030; sum, sorting, padding and mean as in its official code
    (Nicolas-BZRD/llm-recipes, `DistillationLoss`).
    """
    if student.shape[:-1] != teacher.shape[:-1]:
        raise ModelError(
            f"the student's logits are {list(student.shape)}, the teacher's {list(teacher.shape)}; "
            "all dimensions but the last must be equal",
            do="cut both answers to one length, or take aligned spans (`approximate_likelihood`)",
        )
    q, p = ((wide(logits) / temperature).softmax(-1).sort(-1, descending=True).values for logits in (student, teacher))
    missing = q.shape[-1] - p.shape[-1]
    q, p = F.pad(q, (0, max(0, -missing))), F.pad(p, (0, max(0, missing)))
    return per_example((q - p).abs().sum(-1))


def aligned_spans(student_ends: Sequence[int], teacher_ends: Sequence[int]) -> list[tuple[Range, Range]]:
    """Pairs of token ranges (student's, teacher's), first to one past the last, that cover the same bytes.

    A span ends where both tokenizations have a boundary, so that spans are as short as they can be.

    Args: the byte at which each token ends, never falling (a token without bytes ends where the one before it does).
    Raises: ModelError where the two do not end at one byte.
    """
    if list(student_ends[-1:]) != list(teacher_ends[-1:]):
        raise ModelError(
            f"the student's tokens end at byte {student_ends[-1:]}, the teacher's at {teacher_ends[-1:]}",
            do="give both tokenizations of one text",
        )
    after_s, after_t = ({end: place + 1 for place, end in enumerate(ends)} for ends in (student_ends, teacher_ends))
    shared = sorted(after_s.keys() & after_t.keys())
    spans, begun = [], (0, 0)
    for end in shared:
        reached = after_s[end], after_t[end]
        spans.append(((begun[0], reached[0]), (begun[1], reached[1])))
        begun = reached
    return spans


def span_log_likelihoods(logits: torch.Tensor, tokens: torch.Tensor, span_of: torch.Tensor, spans: int) -> torch.Tensor:
    """Log-likelihood of each span: the sum over its tokens.

    Args: logits: [batch, positions, vocabulary], each for the token at its own place in `tokens` [batch, positions].
        span_of: number of the span that a token belongs to, -1 for none, [batch, positions].
    Returns: nats, [batch, spans]; 0 for a span without tokens.
    Raises: ModelError where there is not one token for each position.
    """
    own = log_probabilities(wide(logits), 1.0).gather(-1, labelled(logits, tokens)).squeeze(-1)
    sums = own.new_zeros((len(own), spans + 1))  # the last column takes the tokens of no span
    return sums.scatter_add(1, span_of.where(span_of >= 0, spans), own)[:, :spans]


def approximate_likelihood(
    student: torch.Tensor, teacher: torch.Tensor, present: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean over aligned spans of KL between coins that fall on the span: p^(1/temperature) against 1 - p^(1/temperature).

    What both models can be asked, whatever their tokens, is how likely a stretch of text is. The temperature keeps the
    likelihood of a long span away from 0, where the coin would say nothing.

    Args: student, teacher: log-likelihoods of spans, nats, [batch, spans] (`span_log_likelihoods`). present: whether
        there is such a span, [batch, spans]. temperature: > 0.
    Returns: nats, [batch]; 0 where all likelihoods are equal, and for an example without a span.
    Raises: ModelError where the shapes differ.
    Source: Minixhofer et al. 2025, arXiv:2503.20083, the binarised objective; 1e-6 as in its official code, which has
    cross-entropy, where the constant entropy of the teacher's coin is taken away here.
    """
    if not student.shape == teacher.shape == present.shape:
        raise ModelError(
            f"likelihoods of spans are {list(student.shape)} of the student, {list(teacher.shape)} of the teacher, and "
            f"{list(present.shape)} tell which are there; expected one shape",
            do="give the likelihoods of the same spans for both (`aligned_spans`)",
        )
    log_q, log_p = (wide(values) / temperature - _BELOW_ONE for values in (student, teacher))
    value = log_p.exp() * (log_p - log_q) - torch.expm1(log_p) * (_log1mexp(log_p) - _log1mexp(log_q))
    return (value * present).sum(1) / present.sum(1).clamp(min=1)


def likelihoods_of_labels(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, span: int, temperature: float
) -> torch.Tensor:
    """`approximate_likelihood` where both models read the same tokens: spans of `span` labels, one behind the other.

    The loop gives both models one input, so that spans are of the same tokens; between tokenizers, `aligned_spans` tells
    which are of the same bytes.

    Args: student, teacher: logits, [batch, tokens, vocabulary]; the vocabularies may have other sizes where they share the
        labels. labels: token numbers that the logits are for, [batch, tokens]; below 0: none. span: tokens, >= 1.
        temperature: > 0.
    Returns: nats, [batch]; 0 where the labels' likelihoods are equal, whatever the other tokens'.
    Raises: ModelError where the outputs are not of that shape, or a label is outside a vocabulary.
    """
    if student.dim() != 3 or teacher.dim() != 3 or student.shape[:2] != teacher.shape[:2]:
        raise ModelError(
            f"likelihoods of spans need outputs [batch, tokens, vocabulary]; the student gives {list(student.shape)}, the "
            f"teacher {list(teacher.shape)}",
            do="to classify, take `kd`: one output has no spans",
        )
    if labels.numel() and int(labels.max()) >= min(student.shape[2], teacher.shape[2]):
        raise ModelError(
            f"a label is {int(labels.max())}; the student has {student.shape[2]} tokens, the teacher {teacher.shape[2]}",
            do="give labels that both vocabularies have, or take `uld`, which pairs no tokens",
        )
    there = labels >= 0
    number = torch.arange(labels.shape[1], device=labels.device) // span
    span_of = number.expand_as(labels).where(there, -1)
    spans = -(-labels.shape[1] // span)
    tokens = labels.clamp_min(0)
    sums = [span_log_likelihoods(logits, tokens, span_of, spans) for logits in (student, teacher)]
    present = torch.zeros((len(labels), spans + 1), dtype=torch.bool, device=labels.device)
    present = present.scatter(1, span_of.where(there, spans), True)[:, :spans]
    return approximate_likelihood(sums[0], sums[1], present, temperature)


def _log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 - e^x) for x < 0, by whichever of two forms does not cancel. Source: Mächler 2012, Rmpfr's log1mexp note."""
    return torch.where(x > -0.6931472, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))
