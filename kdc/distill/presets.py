"""Whole trainings that the literature recommends, as settings: start from one, and change what you know better."""

from __future__ import annotations

from kdc.distill.logit_settings import JensenShannon
from kdc.distill.settings import SoftTargets, Training
from kdc.distill.strategy_settings.unlabelled import Unlabelled
from kdc.distill.strategy_settings.views import AnyTransform, Crops, Mixup

PATIENT_CROP = 0.25  # the paper's crops are of photographs; a part this small of a small image may show nothing


def patient(
    epochs: int = 300, *, batch: int = 128, temperature: float = 1.0, crops: bool = False, views: int | None = None
) -> Training:
    """Function matching: teacher and student see one and the same aggressively mixed view, for very long, and no label.

    Every epoch has a view of its own unless `views` says less; the teacher's answers are kept for each, so that their
    place on disk grows with the epochs (samples * classes * 4 bytes a view).

    Args: epochs: the paper's are 300 to 9600 on ImageNet-1k. temperature: > 0; 1 in the authors' configuration. crops:
        for photographs, boxes of each image too, with left and right exchanged by chance. views: how many.
    Source: Beyer et al. 2022, arXiv:2106.05237, section 3; shares of mixup drawn uniformly, clipping at 1 and weight
        decay 3e-4 as in the authors' configuration (google-research/big_vision, configs/proj/distill/bit_i1k.py). The
        optimizer, its rate and the average of the weights are this loop's own.
    """
    cropped: tuple[AnyTransform, ...] = (Crops(smallest=PATIENT_CROP, flip=0.5),) if crops else ()
    return Training(
        epochs=epochs,
        batch=batch,
        views=views or max(epochs, 1),
        transforms=(*cropped, Mixup(alpha=1.0)),
        objectives=(SoftTargets(weight=1.0, temperature=temperature),),
        clip_norm=1.0,
        weight_decay=3e-4,
    )


def ssld(epochs: int = 360, *, batch: int = 128, share: float = 0.5, per_class: int | None = None) -> Training:
    """No labels at all: Jensen-Shannon divergence from the teacher, on the training split and unlabelled samples alike.

    Needs an unlabeled split. The paper then trains once more on the training split alone, at a rate a hundred times
    smaller: give this as one of the `stages` of the pass `distill`, and that as its `training`.

    Args: epochs: over the training split. share: of unlabelled samples in a batch; the authors' set has about three for
        each of ImageNet-1k. per_class: take only that many of each class, those of which the teacher is
        surest.
    Source: SSLD, Cui et al. 2021, arXiv:2103.05959, with the loss and the selection as PaddleClas documents them.
    """
    return Training(
        epochs=epochs,
        batch=batch,
        objectives=(JensenShannon(weight=1.0, temperature=1.0),),
        strategies=(Unlabelled(share=share, per_class=per_class),),
    )


def unlabelled_only(epochs: int = 300, *, batch: int = 128, temperature: float = 1.0) -> Training:
    """The third step of SimCLRv2: the teacher's answers to unlabelled samples alone, no label and no training sample.

    Needs an unlabeled split. The teacher is the network that was made ready with few labels, which is the paper's second
    step and the user's; an epoch has as many steps as one over the labelled split.

    Args: temperature: of both models, > 0.
    Source: Chen et al. 2020, arXiv:2006.10029, as in the abstract. With labels too: `labels` beside `kd` in the
        objectives, and a `share` below 1.
    """
    return Training(
        epochs=epochs,
        batch=batch,
        objectives=(SoftTargets(weight=1.0, temperature=temperature),),
        strategies=(Unlabelled(share=1.0),),
    )
