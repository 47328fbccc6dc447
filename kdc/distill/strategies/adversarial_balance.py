"""Two teachers, one for clean samples and one for adversarial ones, neither of which drowns the other."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from kdc.core.contract import Context, named_seed
from kdc.core.errors import ModelError
from kdc.distill.attack import Bounds, attacked
from kdc.distill.objectives.distributions import log_probabilities, wide
from kdc.distill.policy import Batch, Drawn, Policy
from kdc.distill.several import several
from kdc.distill.strategies.adversarial import both, halves, label_loss
from kdc.distill.strategy_settings.adversarial import TwoTeachers


class BalancedTeachers(Policy):
    """Half of each batch is clean, with the clean teacher's answers, half adversarial, with the robust teacher's.

    Entropies: each teacher's logits are divided by a temperature, from 1 on, that falls by `temperature_rate` a step while
    the mean entropy of its answers is above the other's, and rises while it is below, within 1 to the highest.
    Losses: the two halves of what the objectives take from the teacher weigh w and 1 - w; w goes, by `weight_rate` a step,
    to r_clean / (r_clean + r_robust), where r is the half's mean loss over what it was at the first step. The half that
    learns more slowly weighs more. The objectives' own temperature is to be 1.

    Source: MTARD, Zhao et al. 2022 (ECCV) and 2023, arXiv:2306.16170, and both official codes; these lower the two rates
    tenfold with the learning rate at three epochs, here they stay. There the halves are two forwards, here one.
    """

    runs_teacher = True

    def __init__(self, settings: TwoTeachers, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.student, self.context = settings, settings.kind, student, context
        teachers = several(context, self.kind).teachers
        if max(settings.clean, settings.robust) >= len(teachers):
            raise ModelError(
                f"{self.kind}: the recipe takes teachers {settings.clean} (clean) and {settings.robust} (robust); there "
                f"are {len(teachers)}, numbered from 0",
                do="set clean and robust to two of their numbers",
            )
        self.teachers = teachers[settings.clean], teachers[settings.robust]
        self.bounds = Bounds.of(context.data.train, settings.attack)
        memory = nn.Module()
        memory.register_buffer("temperatures", torch.ones(2, dtype=torch.float64))
        memory.register_buffer("first", torch.zeros(2, dtype=torch.float64))  # losses; 0: there was no step yet
        memory.register_buffer("share", torch.tensor(0.5, dtype=torch.float64))  # weight of the clean half
        self.trained: nn.Module | None = memory
        self.temperatures, self.first = memory.get_buffer("temperatures"), memory.get_buffer("first")
        self.share = memory.get_buffer("share")

    @torch.no_grad()
    def change(self, drawn: Drawn) -> Drawn:
        seed = named_seed(self.context.seed, self.context.step, self.kind, drawn.name)
        generator = torch.Generator().manual_seed(seed)
        loss = label_loss(drawn, self.student, self.context)
        changed = attacked(self.student, drawn.inputs, loss, self.settings.attack, self.bounds, generator)
        seen = zip(self.teachers, (drawn.inputs, changed), self.temperatures.tolist(), strict=True)
        cooled = [wide(teacher(*inputs)) / temperature for teacher, inputs, temperature in seen]
        self._balance_entropies([mean_entropy(answer) for answer in cooled])
        return both(drawn, changed, torch.cat(cooled))

    def weigh(self, batch: Batch, losses: Mapping[Policy, torch.Tensor]) -> Mapping[Policy, torch.Tensor]:
        of_teacher = {policy: values for policy, values in losses.items() if not policy.of_labels}
        if not of_teacher:
            return losses
        clean, adversarial = torch.stack(list(of_teacher.values())).detach().sum(0).chunk(2)
        now = torch.stack([clean.mean(), adversarial.mean()]).double().to(self.first.device)
        if not self.first.any():
            self.first.copy_(now)
        self.share.copy_(balanced(self.share, now, self.first, self.settings.weight_rate))
        share = float(self.share)
        return {**losses, **{policy: halves(values, share, 1 - share) for policy, values in of_teacher.items()}}

    def _balance_entropies(self, entropies: list[float]) -> None:
        rate, highest = self.settings.temperature_rate, self.settings.highest_temperature
        excess = torch.tensor([entropies[0] - entropies[1], entropies[1] - entropies[0]], dtype=torch.float64)
        self.temperatures.sub_(rate * excess.sign().to(self.temperatures.device)).clamp_(1.0, highest)


def mean_entropy(logits: torch.Tensor) -> float:
    """Mean entropy of the softmax, in nats: [batch, ..., classes]."""
    log_p = log_probabilities(logits, 1.0)
    return float(-(log_p.exp() * log_p).sum(-1).mean())


def balanced(share: torch.Tensor, now: torch.Tensor, first: torch.Tensor, rate: float) -> torch.Tensor:
    """The next weight of the first of two losses: w - rate (w - r_1 / (r_1 + r_2)), r = now / first.

    Args: share: w, a scalar. now, first: the losses now and at the first step, [2].
    Source: MTARD, arXiv:2306.16170, normalisation loss balance, with its exponent 1, as in the official code.
    """
    rates = now / first.clamp_min(torch.finfo(first.dtype).tiny)
    total = rates.sum()
    goal = torch.where(total > 0, rates[0] / total, share)
    return share + rate * (goal - share)
