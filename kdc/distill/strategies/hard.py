"""Images changed, within bounds, to where teacher and student disagree."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import nn

from kdc.core.contract import Context
from kdc.distill.modes import differentiable
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.policy import Drawn, Policy
from kdc.distill.strategies.mixing import only_images
from kdc.distill.strategies.regions import warped
from kdc.distill.strategy_settings.hard import HardAugmentation

PARAMETERS = 5  # of an image: to the right, down, turn, scale, light
Model = Callable[[torch.Tensor], torch.Tensor]


class Hardened(Policy):
    """The first `portion` of each batch, whose order is a draw, hardened by `hardened`; the teacher is asked on the result.

    Both models are in evaluation mode meanwhile, so that no statistics of BatchNorm move, and no gradient reaches a
    weight of either. Labels stay: the bounds are to be such that an image keeps its class.
    Source: HARD, Nix et al. 2023, arXiv:2305.14890, as in the abstract (spatial transformations found by gradients, for
        which the models disagree); no code of theirs was found. That each image has parameters of its own, found anew at
        each step of the training, is ours; theirs may be of a generator that is trained along.
    """

    runs_teacher = True

    def __init__(self, settings: HardAugmentation, student: nn.Module, context: Context) -> None:
        self.settings, self.kind, self.student, self.context = settings, settings.kind, student, context
        only_images(context.data.train.inputs, self.kind)

    def change(self, drawn: Drawn) -> Drawn:
        (images,) = drawn.inputs
        count = math.ceil(self.settings.portion * len(images))
        generator = self.context.generator(f"{self.kind}.{drawn.name}")
        with differentiable(self.student):
            made = hardened(images[:count], self.context.teacher, self.student, self.settings, generator)
        return dataclasses.replace(drawn, inputs=(torch.cat([made, images[count:]]),), teacher=None)


def hardened(
    images: torch.Tensor, teacher: Model, student: Model, settings: HardAugmentation, generator: torch.Generator
) -> torch.Tensor:
    """Each image where, on the way up the gradient of KL(teacher || student), the two disagreed the most.

    Each parameter is bound * tanh(u), u drawn from N(0, start²). A step is u + rate * g / |g|, g the gradient for u of the
    image's divergence; of the start and all steps the one with the largest divergence is taken, so that no image is ever
    easier than its start.

    Args: images: [n, channels, height, width]. teacher, student: give logits [n, classes], in evaluation mode.
    Returns: as images, without a gradient.
    """
    parameters = torch.randn((len(images), PARAMETERS), generator=generator).to(images) * settings.start
    hardest, made = torch.full_like(parameters[:, 0], -math.inf), images
    for step in range(settings.steps + 1):
        parameters.requires_grad_()
        with torch.enable_grad():
            changed = augmented(images, parameters, settings)
            values = soft_targets(student(changed).float(), teacher(changed).float(), 1.0)
        harder = values.detach() > hardest
        hardest = torch.where(harder, values.detach(), hardest)
        made = torch.where(harder[:, None, None, None], changed.detach(), made)
        if step < settings.steps:
            (gradient,) = torch.autograd.grad(values.sum(), parameters)
            length = gradient.norm(dim=1, keepdim=True).clamp_min(torch.finfo(gradient.dtype).tiny)
            parameters = parameters.detach() + settings.rate * gradient / length
    return made


def augmented(images: torch.Tensor, parameters: torch.Tensor, settings: HardAugmentation) -> torch.Tensor:
    """Images moved, turned, scaled about their middle and lightened, each bound * tanh(parameter).

    Beyond an image its border goes on. Differentiable in the parameters.

    Args: images: [n, channels, height, width]. parameters: to the right and down (in shares of the sides), turn (with the
        clock), scale (of the logarithm), light (in standard deviations of all pixels), [n, 5]; 0: the images as they are.
    Returns: as images.
    """
    right, down, turn, scale, light = torch.tanh(parameters).unbind(1)
    angle = math.radians(settings.rotation) * turn
    zoom = torch.exp(-math.log(settings.scale) * scale)
    sine, cosine = zoom * angle.sin(), zoom * angle.cos()
    shape = images.shape[2] / images.shape[3]  # a turn is one of pixels, and the places of the map are shares of sides
    # The map goes from a place of the result to one of the image: backwards.
    right, down = -2 * settings.translation * right, -2 * settings.translation * down
    rows = [
        torch.stack([cosine, sine * shape, cosine * right + sine * shape * down], 1),
        torch.stack([-sine / shape, cosine, -sine / shape * right + cosine * down], 1),
    ]
    lighter = settings.brightness * images.std() * light
    return warped(images, torch.stack(rows, 1)) + lighter[:, None, None, None]
