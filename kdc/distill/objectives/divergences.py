"""Divergences between the teacher's distribution p and the student's q, other than Hinton's KL(p || q).

All take logits [batch, ..., classes] and give nats, [batch]: the mean over the dimensions between, times temperature²
as in `soft_targets`. They are 0 where p = q, and above 0 elsewhere. A mixture is taken in logarithms, so that none of
them divides by a probability that has underflowed. All raise ModelError where the shapes differ.
"""

from __future__ import annotations

import math

import torch

from kdc.distill.objectives.distributions import kl, log_probabilities, matched, per_example

_LIMIT = 1e-3  # nearer to 0 or 1 than this, alpha's limit is taken: the formula divides by alpha (alpha - 1)


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """KL(q || p): the student may leave out modes of the teacher's, and pays for mass where the teacher has none.

    Args: student, teacher: logits, [batch, ..., classes]. temperature: > 0.
    Source: Gu et al. 2024 (MiniLLM), arXiv:2306.08543: there over sequences, here over classes.
    """
    log_p, log_q = _logs(student, teacher, temperature)
    return per_example(kl(log_q, log_p)) * temperature**2


def jensen_shannon(
    student: torch.Tensor, teacher: torch.Tensor, temperature: float, teacher_share: float
) -> torch.Tensor:
    """b KL(p || m) + (1 - b) KL(q || m) with the mixture m = b p + (1 - b) q, where b is `teacher_share`.

    Bounded by ln 2 (before the factor temperature²) at b = 1/2, where it is symmetric.

    Args: student, teacher: logits, [batch, ..., classes]. temperature: > 0. teacher_share: between 0 and 1.
    Source: Lin 1991, IEEE Transactions on Information Theory 37(1); Agarwal et al. 2024, arXiv:2306.13649, for
    distillation. Neither text was at hand; the formula is `js_distance` of jongwooko/distillm, whose `lam` is 1 - b.
    """
    log_p, log_q = _logs(student, teacher, temperature)
    mixture = _mixture(log_p, log_q, teacher_share)
    value = teacher_share * kl(log_p, mixture) + (1 - teacher_share) * kl(log_q, mixture)
    return per_example(value) * temperature**2


def skew_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float, skew: float) -> torch.Tensor:
    """KL(p || a p + (1 - a) q), where a is `skew`: at most ln(1/a), where KL itself has no bound.

    Args: student, teacher: logits, [batch, ..., classes]. temperature: > 0. skew: between 0 (KL) and 1 (nothing).
    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898; formula and skew 0.1 as in its official code (`distillm/losses.py`).
    """
    log_p, log_q = _logs(student, teacher, temperature)
    return per_example(kl(log_p, _mixture(log_p, log_q, skew))) * temperature**2


def skew_reverse_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float, skew: float) -> torch.Tensor:
    """KL(q || (1 - a) p + a q), where a is `skew`: the reverse divergence with the same bound.

    Args: student, teacher: logits, [batch, ..., classes]. temperature: > 0. skew: between 0 (reverse KL) and 1.
    Source: Ko et al. 2024 (DistiLLM), arXiv:2402.03898; formula and skew 0.1 as in its official code (`distillm/losses.py`).
    """
    log_p, log_q = _logs(student, teacher, temperature)
    return per_example(kl(log_q, _mixture(log_q, log_p, skew))) * temperature**2


def alpha_divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float, alpha: float) -> torch.Tensor:
    """(sum of p^a q^(1-a) - 1) / (a (a - 1)), where a is `alpha`: KL(p || q) at a = 1 and KL(q || p) at a = 0.

    Finite for every p and q only for a from 0 to 1; `adaptive_alpha` clips, and takes others too.

    Args: student, teacher: logits, [batch, ..., classes]. temperature: > 0. alpha: 0 to 1.
    Source: Wang et al. 2021 (AlphaNet), arXiv:2102.07954, formula as in its official code
    (`f_divergence`); Minka 2005, MSR-TR-2005-173.
    """
    log_p, log_q = _logs(student, teacher, temperature)
    if abs(alpha - 1) < _LIMIT:
        value = kl(log_p, log_q)
    elif abs(alpha) < _LIMIT:
        value = kl(log_q, log_p)
    else:
        log_sum = torch.logsumexp(alpha * log_p + (1 - alpha) * log_q, dim=-1)
        value = torch.expm1(log_sum) / (alpha * (alpha - 1))
    return per_example(value) * temperature**2


def adaptive_alpha(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float,
    alpha_low: float,
    alpha_high: float,
    clip: float,
) -> torch.Tensor:
    """The larger of two alpha-divergences, example by example, their importance ratios clipped.

    A negative alpha punishes a student that is less sure than its teacher (mass where the teacher has none), a positive
    one a student that is surer (none where the teacher has some); the larger says which of the two it is. (p/q)^alpha is
    cut at `clip`, or one class would be all of the gradient.

    The gradient is not that of the clipped value, whose sign is wrong where a class is clipped. It is the paper's: the
    expectation over q of -rho grad log q, with rho = (p/q)^alpha / alpha clipped. The two are one where nothing is clipped.

    Args: student, teacher: logits, [batch, ..., classes]. temperature: > 0. alpha_low, alpha_high: the two orders.
        clip: largest (p/q)^alpha, > 1.
    Source: Wang et al. 2021 (AlphaNet), arXiv:2102.07954, as in its official code (`AdaptiveLossSoft`: -1, 1 and
    clip 5; alpha = 1 is not clipped there, for its ratio is weighted by q and cannot grow). Temperature is ours.
    """
    log_p, log_q = _logs(student, teacher, temperature)
    low, high = (_clipped(log_p, log_q, alpha, clip) for alpha in (alpha_low, alpha_high))
    return per_example(torch.where(low > high, low, high)) * temperature**2


def balanced_kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float, emphasis: float) -> torch.Tensor:
    """KL(p || q) + KL(q || p), the one weighted by `emphasis` that mends the student's confidence, example by example.

    A student with less entropy than its teacher is too sure: the forward divergence, which spreads it over the
    teacher's modes, weighs more. One with more entropy is not sure enough: the reverse one does.

    Args: student, teacher: logits, [batch, ..., classes]. temperature: > 0. emphasis: weight of the one, >= 1, where
        the other weighs 1.
    Source: Amara et al. 2022 (BD-KD), arXiv:2212.12965, the student's loss, as in the abstract: forward and reverse
    divergence weighted sample by sample. That the entropies choose between two fixed weights is our reading.
    """
    log_p, log_q = _logs(student, teacher, temperature)
    entropy_p, entropy_q = (-(logs.exp() * logs).sum(-1) for logs in (log_p, log_q))
    too_sure = (entropy_q < entropy_p).to(log_p.dtype)
    forward, reverse = kl(log_p, log_q), kl(log_q, log_p)
    value = forward * (1 + (emphasis - 1) * too_sure) + reverse * (1 + (emphasis - 1) * (1 - too_sure))
    return per_example(value) * temperature**2


def _logs(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and log q."""
    student, teacher = matched(student, teacher)
    return log_probabilities(teacher, temperature), log_probabilities(student, temperature)


def _mixture(log_a: torch.Tensor, log_b: torch.Tensor, share: float) -> torch.Tensor:
    """log(share a + (1 - share) b)."""
    return torch.logaddexp(log_a + math.log(share), log_b + math.log1p(-share))


def _clipped(log_p: torch.Tensor, log_q: torch.Tensor, alpha: float, clip: float) -> torch.Tensor:
    """[..., classes] -> [...]: the clipped alpha-divergence, with the paper's gradient."""
    if abs(alpha - 1) < _LIMIT:
        return kl(log_p, log_q)
    q = log_q.exp().detach()
    log_ratio = (log_p - log_q).detach()
    if abs(alpha) < _LIMIT:
        log_ratio = log_ratio.clamp(max=math.log(clip))
        value, rho = -(q * log_ratio).sum(-1), log_ratio
    else:
        ratio = (alpha * log_ratio).clamp(max=math.log(clip)).exp()
        value, rho = (q * (ratio - 1)).sum(-1) / (alpha * (alpha - 1)), ratio / alpha
    surrogate = -(q * rho * log_q).sum(-1)
    return value + surrogate - surrogate.detach()
