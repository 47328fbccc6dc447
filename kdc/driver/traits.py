"""What is cheap to know of a task before anything is trained: by it, evidence of other data sets is near or far."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import nn
from torch.nn.modules.conv import _ConvNd

from kdc.core.artifact import Artifact
from kdc.core.contract import Task
from kdc.core.data import Split, Splits
from kdc.distill.attention_layers import attention_layers
from kdc.distill.teacher import predict
from passes.prune.channels import ChannelGraph

SAMPLES = 2000  # of a split; enough to tell a teacher's accuracy within two points

Family = Literal["convolutional", "transformer", "tokens", "dense"]


class Traits(BaseModel, frozen=True):
    """A task in numbers. Points are the headline metric's, 0 to 100."""

    task: str
    classes: int
    train_samples: int
    sample_size: int = Field(description="numbers in one sample's inputs")
    family: Family = Field(description="of the teacher; tokens: its inputs are numbers of a vocabulary")
    teacher_train_points: float = Field(description=f"on at most {SAMPLES} samples")
    teacher_points: float = Field(description="on the validation split")
    teacher_entropy: float = Field(description="of its answers on the validation split, as a share of log(classes)")
    teacher_macs: int
    student_macs: int
    student_parameters: int

    @property
    def samples_per_class(self) -> float:
        """Of the training split."""
        return self.train_samples / self.classes


def traits_of(
    teacher: Artifact[nn.Module], student: Artifact[nn.Module], data: Splits, task: Task, answers: torch.Tensor
) -> Traits:
    """The traits of a teacher, a student and their data.

    Args: student: as its training begins. answers: the teacher's outputs on the validation split, [n, classes].
    """
    few = data.train[:SAMPLES]
    return Traits(
        task=task.name,
        classes=int(answers.shape[1]),
        train_samples=len(data.train),
        sample_size=sum(math.prod(tensor.shape[1:]) for tensor in data.train.inputs),
        family=family_of(teacher.model, data.train),
        teacher_train_points=_points(task, predict(teacher.model, few), few),
        teacher_points=_points(task, answers, data.validation),
        teacher_entropy=entropy_share(answers),
        teacher_macs=macs_of(teacher),
        student_macs=macs_of(student),
        student_parameters=sum(tensor.numel() for tensor in student.model.parameters()),
    )


def family_of(model: nn.Module, split: Split) -> Family:
    """What kind of network this is, by its parts."""
    if not split.inputs[0].is_floating_point():
        return "tokens"
    if attention_layers(model):
        return "transformer"
    return "convolutional" if any(isinstance(module, _ConvNd) for module in model.modules()) else "dense"


def entropy_share(logits: torch.Tensor) -> float:
    """The mean entropy of softmax(logits) over log(classes): 0 sure, 1 knows nothing. Logits: [n, classes]."""
    log_p = torch.log_softmax(logits.double(), 1)
    return float(-(log_p.exp() * log_p).sum(1).mean() / math.log(logits.shape[1]))


def macs_of(artifact: Artifact[nn.Module]) -> int:
    """Multiply-accumulates of convolutions and linear layers for one sample."""
    graph = ChannelGraph.of(artifact.model, artifact.inputs)
    return graph.macs(graph.without([]))


def _points(task: Task, outputs: torch.Tensor, split: Split) -> float:
    return 100.0 * float(task.scores(outputs.numpy(), split.labels.numpy()).mean())
