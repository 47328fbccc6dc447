"""Exit heads, and a model in stages with heads behind them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional as F

from kdc.core.artifact import Artifact
from kdc.core.cascade import Cascade
from kdc.core.contract import named_seed
from kdc.core.errors import ModelError
from passes.route.stages import LEAVE_OUT, Cut, cuts, find, graph_of, split

if TYPE_CHECKING:
    from passes.route import Exit, Exits

_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_NORMS: dict[int, type[nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


class Head(nn.Module):
    """Turns a feature into logits: a mean over all its positions and one linear layer, so that asking costs little.

    Args: after: the place in the model that it stands behind. shape: of the feature without the batch: [channels],
    [channels, ...], or [..., channels] where `channels_last`. classes: how many logits. kind: "conv" puts a 3x3
    convolution with stride 2, BatchNorm and ReLU before the mean where the feature has positions. channels: of that
    convolution; None: as many as come in.

    The logits are divided by `temperature`, which calibration sets (Guo et al. 2017, arXiv:1706.04599): the confidence
    is then near the share of right answers.
    """

    def __init__(
        self,
        after: str,
        shape: Sequence[int],
        classes: int,
        *,
        kind: Literal["linear", "conv"] = "linear",
        channels: int | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.after, self.temperature = after, 1.0
        self.positions, self.channels_last = len(shape) - 1, channels_last
        width = shape[-1] if channels_last else shape[0]
        self.conv: nn.Module | None = None
        self.norm: nn.Module | None = None
        if kind == "conv" and self.positions:
            if self.positions not in _CONVOLUTIONS:
                raise ModelError(
                    f"no convolution goes over a feature of shape {['batch', *shape]}", do="set `head: linear` in route"
                )
            channels = channels or width
            make_convolution: Any = _CONVOLUTIONS[self.positions]
            self.conv = make_convolution(width, channels, 3, 2, 1, bias=False)
            self.norm = _NORMS[self.positions](channels)
            width = channels
        self.linear = nn.Linear(width, classes)

    def pooled(self, x: torch.Tensor) -> torch.Tensor:
        """What the linear layer reads: [batch, channels, ...] (or [batch, ..., channels]) -> [batch, width]."""
        channels_last = self.channels_last
        if self.conv is not None:
            x = self.conv(x.movedim(-1, 1) if channels_last else x)
            x = F.relu(x if self.norm is None else self.norm(x))
            channels_last = False
        if self.positions == 2 and not channels_last:
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)  # one operator in every runtime, in integers too
        elif self.positions:
            first = 1 if channels_last else 2
            x = x.mean(list(range(first, first + self.positions)))
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[batch, channels, ...] (or [batch, ..., channels]) -> logits [batch, classes]."""
        logits: torch.Tensor = self.linear(self.pooled(x))
        return logits if self.temperature == 1 else logits / self.temperature

    def extra_repr(self) -> str:
        """Its place, and what decides what it computes beside its layers."""
        last = ", channels_last=True" if self.channels_last else ""
        return f"after={self.after!r}, temperature={self.temperature}{last}"

    @torch.no_grad()
    def lowered(self) -> nn.Module:
        """The same head with the temperature in its linear layer and BatchNorm in its convolution: fewer operators.

        Source of the folding: Jacob et al. 2017, arXiv:1712.05877, section 3.2.
        """
        head = copy.deepcopy(self).eval()
        for tensor in (head.linear.weight, head.linear.bias):
            tensor.copy_(
                (tensor.double() / self.temperature).float()
            )  # in float64: the nearest floats to the true ones
        head.temperature = 1.0
        conv, norm = head.conv, head.norm
        if conv is not None and norm is not None:
            norm_any: Any = norm
            weight: Any = conv.weight
            gain = norm_any.weight.double() / torch.sqrt(norm_any.running_var.double() + norm_any.eps)
            shift = norm_any.bias.double() - norm_any.running_mean.double() * gain
            weight.copy_((weight.double() * gain.reshape(-1, *(1 for _ in weight.shape[1:]))).float())
            conv.bias = nn.Parameter(shift.float())
            head.norm = None
        return head


def head_behind(cut: Cut, settings: Exit, classes: int) -> Head:
    """A new head behind a cut; its first weights belong to the cut's name alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(named_seed("route", cut.name))
        head = Head(
            cut.name,
            cut.shape,
            classes,
            kind=settings.head,
            channels=settings.channels,
            channels_last=cut.channels_last,
        )
    head.temperature = settings.temperature
    return head


def assemble(
    graph: fx.GraphModule, artifact: Artifact[nn.Module], found: Sequence[Cut], exits: Sequence[Exit]
) -> Cascade:
    """The graph in stages with new heads behind these cuts, on weights of its own, in evaluation mode.

    Raises: ModelError where an exit names no cut of the model, or the exits are not in the model's order.
    """
    classes = classes_of(artifact)
    chosen = [find(found, exit_.after) for exit_ in exits]
    in_order = [cut for cut in found if cut in chosen]
    if chosen != in_order:  # not sorted here: whoever reads the decision takes its order for the cascade's
        raise ModelError(
            f"the exits are not in the model's order, each once: {', '.join(exit_.after for exit_ in exits)}",
            do=f"give them in the order {', '.join(cut.name for cut in in_order)}",
        )
    return Cascade(
        split(graph, [cut.node for cut in chosen], artifact.inputs),
        [head_behind(cut, exit_, classes) for cut, exit_ in zip(chosen, exits, strict=True)],
        [exit_.threshold for exit_ in exits],
    ).eval()


def build(artifact: Artifact[nn.Module], decision: Exits) -> nn.Module:
    """The model with the decision's exits, their heads untrained; a copy of the model where there are none.

    Raises: ModelError where an exit names no place of the model.
    """
    if not decision.exits:
        return copy.deepcopy(artifact.model)
    graph = graph_of(artifact.model, artifact.inputs)
    return assemble(graph, artifact, cuts(graph, artifact.inputs), decision.exits)


def classes_of(artifact: Artifact[Any]) -> int:
    """How many logits the model gives. Raises: ModelError where it gives no logits [batch, classes]."""
    shapes = [spec.shape for spec in artifact.outputs]
    if len(shapes) != 1 or len(shapes[0]) != 2 or not isinstance(shapes[0][1], int):
        raise ModelError(
            f"early exits need one output of logits [batch, classes]; the model's outputs are {shapes}", do=LEAVE_OUT
        )
    return shapes[0][1]
