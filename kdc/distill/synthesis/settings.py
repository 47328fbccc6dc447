"""Settings of samples that are synthesised from the teacher, readable without torch."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, Field, model_validator


class _Synthesis(BaseModel, frozen=True, extra="forbid"):
    """What both methods have."""

    samples: int = Field(
        default=4096, ge=32, description="synthetic samples; splits that are missing are taken of them"
    )
    batch: int = Field(default=256, ge=8, description="samples made together; BatchNorm's statistics are of a batch")
    limits: tuple[float, float] | None = Field(
        default=None,
        description="lowest and highest value of the teacher's inputs; default: inputs with mean 0 and variance 1",
    )

    @model_validator(mode="after")
    def _low_before_high(self) -> Self:
        if self.limits is not None and not self.limits[0] < self.limits[1]:
            raise ValueError(f"limits are {list(self.limits)}; expected the lowest value first, then the highest")
        return self


class InversionSettings(_Synthesis, frozen=True, extra="forbid"):
    """Inputs optimised from noise until the teacher is sure of a class and its BatchNorms see what they saw in training.

    Source: DeepInversion, Yin et al. 2020, arXiv:1912.08795, section 3.2. Learning rate, Adam and the weight of the
    total variation are the authors' for CIFAR-10 (NVlabs/DeepInversion, cifar10/); the number of steps, the cosine
    schedule, and the weight of BatchNorm's statistics are ours: the authors set it anew for each network, from 0.01
    (ResNet-50) to 100 (CIFAR-10).
    """

    method: Literal["inversion"] = "inversion"
    steps: int = Field(default=200, ge=1, description="of Adam, for each batch; the authors take 2000")
    learning_rate: float = Field(
        default=0.1, gt=0, description="of Adam at its peak, in standard deviations of an input"
    )
    batch_norm: float = Field(
        default=10.0, ge=0, description="weight of the distance to BatchNorm's running statistics"
    )
    first_batch_norm: float = Field(
        default=1.0, ge=0, description="that of the first BatchNorm is so many times as much; 10 for ImageNet's models"
    )
    total_variation: float = Field(default=4e-4, ge=0, description="weight of the differences between neighbours")
    l2: float = Field(default=0.0, ge=0, description="weight of a sample's norm; 1e-5 for ImageNet's models")
    jitter: int = Field(default=0, ge=0, description="largest shift, in positions, drawn anew each step; for images")
    flip: bool = Field(default=False, description="mirror every second step or so; for images that may be mirrored")


class GeneratorSettings(_Synthesis, frozen=True, extra="forbid"):
    """A generator trained until the teacher is sure of its samples, active on them, and sees all classes alike.

    Source: DAFL, Chen et al. 2019, arXiv:1904.01186, section 3.2. The first three weights are those of the authors'
    code (huawei-noah/Efficient-Computing, DAFL-train.py); it takes the entropy to base 10 with weight 5, which is 2.17
    in nats. BatchNorm's statistics, the learning rate (0.2 and 0.02 there), its cosine and the number of steps are
    ours. The generator is trained alone, and the student after it, not both together.
    """

    method: Literal["generator"] = "generator"
    steps: int = Field(default=2000, ge=1, description="of Adam; the authors take 24000")
    learning_rate: float = Field(default=2e-3, gt=0, description="of Adam at its peak")
    latent: int = Field(default=100, ge=1, description="random numbers that a sample is made of")
    width: int = Field(default=128, ge=2, description="channels of the generator's widest layer")
    one_hot: float = Field(default=1.0, ge=0, description="weight of the cross-entropy with the teacher's own choice")
    activation: float = Field(default=0.1, ge=0, description="weight of the size of the features before the head")
    information_entropy: float = Field(default=2.17, ge=0, description="weight of the entropy of the mean answer, nats")
    batch_norm: float = Field(
        default=1.0, ge=0, description="weight of the distance to BatchNorm's running statistics; DAFL has none: 0"
    )


Synthesis = Annotated[InversionSettings | GeneratorSettings, Field(discriminator="method")]
