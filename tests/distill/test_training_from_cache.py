"""A training ends with the same bytes whatever its cache: whole, bounded, none, broken, or half filled by a kill."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from kdc.core.contract import Context
from kdc.core.data import Split
from kdc.core.errors import ModelError
from kdc.distill.answer_settings import AnswerForm
from kdc.distill.answers import AnswerFile
from kdc.distill.logit_settings import ReverseKL
from kdc.distill.loop import train
from kdc.distill.policies import policies
from kdc.distill.predict_only import Apart
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.distill.strategy_settings.history import PastSelf
from kdc.distill.teacher_answers import digest_of, reading
from kdc.distill.teacher_settings import AskedSource

TRAINING = Training(epochs=4, batch=100, views=2, checkpoint_seconds=1e-6)


@pytest.fixture
def context(small_context: Context) -> Context:
    images = torch.randn((600, 1, 6, 6), generator=torch.Generator().manual_seed(5))
    data = dataclasses.replace(
        small_context.data,
        train=Split((images,), torch.arange(600) % 3),
        augment=lambda x, generator: x + 0.1 * torch.randn(x.shape, generator=generator),
    )
    return dataclasses.replace(small_context, data=data)


def student() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 3))
    generator = torch.Generator().manual_seed(6)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


def trained(context: Context, training: Training, place: Path, **changes: object) -> bytes:
    model = train(
        student(), dataclasses.replace(context, work=place / "work", cache=place / "cache", **changes), training
    )
    return b"".join(tensor.numpy().tobytes() for tensor in model.state_dict().values())


SPARSE = AnswerForm(kind="sparse", top=1, samples=2)


@pytest.mark.parametrize("form", [AnswerForm(), SPARSE], ids=["exact", "sparse"])
def test_the_cache_changes_no_student(context, tmp_path, form):
    training = TRAINING.model_copy(update={"answers": form})
    whole = trained(context, training, tmp_path / "whole")
    files = list((tmp_path / "whole" / "cache").glob("*.answers"))
    assert len(files) == 2
    one_view = files[0].stat().st_size
    assert trained(context, training, tmp_path / "none", cache_bytes=0) == whole
    assert trained(context, training, tmp_path / "half", cache_bytes=one_view) == whole
    assert len(list((tmp_path / "half" / "cache").glob("*.answers"))) == 1
    for path in files:  # a broken block of each
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    (tmp_path / "whole" / "work" / "training.safetensors").unlink()
    assert trained(context, training, tmp_path / "whole") == whole


@pytest.mark.parametrize("killed_after", [0, 1, 2, 4])
def test_a_training_killed_while_its_cache_is_filled_ends_with_the_same_bytes(
    context, tmp_path, monkeypatch, killed_after
):
    whole = trained(context, TRAINING, tmp_path / "whole")
    left = killed_after
    real = AnswerFile.write

    def killed(self: AnswerFile, *arguments: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        real(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(AnswerFile, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            trained(context, TRAINING, tmp_path / "killed")
    assert trained(context, TRAINING, tmp_path / "killed") == whole


def test_a_teacher_whose_answers_are_all_there_is_never_asked(context, tmp_path):
    trained(context, TRAINING, tmp_path / "first")

    def refuse(*_: object) -> None:
        raise AssertionError("asked")

    handle = context.teacher.register_forward_pre_hook(refuse)
    (tmp_path / "first" / "work" / "training.safetensors").unlink()
    trained(context, TRAINING, tmp_path / "first")
    handle.remove()


@pytest.mark.parametrize(
    ("parts", "form", "expected"),
    [
        ((HardLabels(), SoftTargets(temperature=4.0)), SPARSE, (4.0, "estimate")),
        ((SoftTargets(temperature=2.0), SoftTargets(temperature=2.0)), SPARSE, (2.0, "estimate")),
        ((PastSelf(), SoftTargets(temperature=2.0)), SPARSE, (2.0, "estimate")),
        ((SoftTargets(temperature=2.0), SoftTargets(temperature=1.0)), SPARSE, (1.0, "spread")),
        ((SoftTargets(), ReverseKL()), SPARSE, (1.0, "spread")),
        ((ReverseKL(),), SPARSE, (1.0, "spread")),
        ((SoftTargets(),), SPARSE.model_copy(update={"power": 0.5}), (1.0, "spread")),
    ],
)
def test_sparse_rows_are_estimates_where_every_reader_is_linear_in_the_probabilities(
    small_context, parts, form, expected
):
    made = policies(parts, student(), small_context)
    found, rebuilt = reading(form, made)
    assert (found.temperature, rebuilt) == expected


def test_a_teacher_that_can_only_be_asked_is_asked_all_before_the_first_step_and_let_go(context, tmp_path):
    plain = trained(context, TRAINING, tmp_path / "plain")
    loads = []

    def load() -> nn.Module:
        loads.append(list((tmp_path / "apart" / "work").glob("*")))
        return context.teacher

    teacher = Apart(digest_of(context.teacher), load)
    assert trained(context, TRAINING, tmp_path / "apart", teacher=teacher) == plain
    assert loads == [[]]  # once, and before any checkpoint
    assert teacher._loaded == []


def test_a_training_beyond_the_budget_stops_before_the_first_question(context, tmp_path):
    (tmp_path / "remote.py").write_text("def ask(images):\n    raise AssertionError('asked')\n")
    source = AskedSource(ask=f"{tmp_path / 'remote.py'}:ask", queries=1199)
    for beside in ((), ("own",)):
        settings = TRAINING.model_copy(update={"teachers": (*beside, source)})
        with pytest.raises(ModelError, match="1200 more samples are to be asked, .* 1 more are needed"):
            trained(context, settings, tmp_path / "asked")
