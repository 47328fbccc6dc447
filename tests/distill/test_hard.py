"""Images changed to where teacher and student disagree."""

import dataclasses

import pytest
import torch
from killing import same_bytes, whole_and_gone_on
from torch import nn

from kdc.core.data import Split
from kdc.core.errors import DataError
from kdc.distill.loop import train
from kdc.distill.objectives.logits import soft_targets
from kdc.distill.policies import policies
from kdc.distill.policy import Drawn
from kdc.distill.settings import HardLabels, SoftTargets, Training
from kdc.distill.strategies.hard import augmented, hardened
from kdc.distill.strategy_settings.hard import HardAugmentation


def network(seed: int = 6) -> nn.Module:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 3)
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


def drawn(context, n: int = 20, number: int = 0) -> Drawn:
    samples = context.data.train[torch.arange(n)]
    return Drawn(number=number, index=torch.arange(n), inputs=samples.inputs, labels=samples.labels, teacher=None)


def picture(height: int, width: int) -> torch.Tensor:
    """One soft spot, to the upper left of the middle."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.exp(-((rows - height / 2 + 3.5) ** 2 + (columns - width / 2 + 4.5) ** 2) / 4)[None, None]


def spot(image: torch.Tensor) -> tuple[float, float]:
    """Where the spot is, in pixels from the middle: down, to the right."""
    weights = image[0, 0] / image.sum()
    rows = torch.arange(image.shape[2]) + 0.5 - image.shape[2] / 2
    columns = torch.arange(image.shape[3]) + 0.5 - image.shape[3] / 2
    return float((weights.sum(1) * rows).sum()), float((weights.sum(0) * columns).sum())


BOUNDS = HardAugmentation(translation=0.25, rotation=90.0, scale=1.5, brightness=0.5)
FULL = 20.0  # tanh(20) is 1 in float32


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ((0, 0, 0, 0), (-3.0, -4.0)),
        ((FULL, 0, 0, 0), (-3.0, 4.0)),  # a quarter of 32 columns to the right
        ((0, FULL, 0, 0), (3.0, -4.0)),  # a quarter of 24 rows down
        ((0, 0, FULL, 0), (-4.0, 3.0)),  # a quarter turn with the clock, in pixels on an image that is no square
        ((0, 0, -FULL, 0), (4.0, -3.0)),
        ((0, 0, 0, FULL), (-4.5, -6.0)),
        ((FULL, 0, FULL, 0), (-4.0, 11.0)),  # first turned, then moved
    ],
)
def test_an_image_moves_turns_and_grows_as_its_parameters_say(which, expected):
    parameters = torch.tensor([[*which, 0.0]])
    image = picture(24, 32)
    found = spot(augmented(image, parameters, BOUNDS))
    assert found == pytest.approx(expected, abs=0.1)


def test_light_is_in_standard_deviations_of_the_pixels():
    image = picture(10, 10)
    found = augmented(image, torch.tensor([[0, 0, 0, 0, FULL]]), BOUNDS)
    torch.testing.assert_close(found, image + 0.5 * image.std())


def test_gradients_of_the_parameters_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(0)
    smooth = picture(9, 7).double()
    parameters = (torch.randn((1, 5), generator=generator).double() * 0.2).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: augmented(smooth, p, BOUNDS), (parameters,), eps=1e-7, atol=1e-3)


def disagreement(images: torch.Tensor, teacher: nn.Module, student: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return soft_targets(student(images), teacher(images), 1.0)


def test_the_models_disagree_more_with_every_step_and_on_no_image_less_than_at_the_start(small_context):
    teacher, student = small_context.teacher, network().eval()
    images = drawn(small_context, 64).inputs[0]
    settings = HardAugmentation()
    generator = torch.Generator().manual_seed(0)
    start = augmented(images, torch.randn((64, 5), generator=generator) * settings.start, settings)
    values = [disagreement(start, teacher, student)]
    for steps in (1, 2, 4, 8):
        changed = settings.model_copy(update={"steps": steps})
        made = hardened(images, teacher, student, changed, torch.Generator().manual_seed(0))
        assert not made.requires_grad
        values.append(disagreement(made, teacher, student))
        assert (values[-1] >= values[-2] - 1e-5).all()
        assert values[-1].mean() > values[-2].mean()
    assert values[-1].mean() > 1.2 * values[0].mean()
    assert values[-1].mean() > 1.2 * disagreement(images, teacher, student).mean()


def test_models_that_agree_leave_images_at_the_start(small_context):
    teacher, images = small_context.teacher, drawn(small_context).inputs[0]
    made = hardened(images, teacher, teacher, HardAugmentation(start=0.0), torch.Generator().manual_seed(0))
    torch.testing.assert_close(made, images, rtol=1e-4, atol=1e-4)


def test_no_gradient_and_no_statistic_reaches_the_models_and_every_module_keeps_its_mode(small_context):
    student = network().train()
    student[1].eval()  # as the loop keeps a frozen module
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    small_context.teacher.requires_grad_(True)
    (policy,) = policies([HardAugmentation(portion=0.5)], student, small_context)
    plain = drawn(small_context)
    changed, again = policy.change(plain), policy.change(plain)
    small_context.teacher.requires_grad_(False)
    assert all(p.grad is None for model in (student, small_context.teacher) for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in student.state_dict().items())
    assert [module.training for module in student] == [True, False, True, True, True, True]
    assert torch.equal(changed.inputs[0], again.inputs[0])
    assert torch.equal(changed.inputs[0][10:], plain.inputs[0][10:])
    assert (changed.inputs[0][:10] != plain.inputs[0][:10]).flatten(1).any(1).all()
    assert changed.teacher is None
    assert changed.labels is plain.labels


def test_the_student_is_trained_on_hard_images_with_the_teachers_answers_to_them(small_context):
    student, seen, asked = network(), [], []

    def keep(place: list[torch.Tensor]):
        return lambda _, inputs: place.append(inputs[0].detach().clone())

    student[0].register_forward_pre_hook(lambda m, i: keep(seen)(m, i) if m.training else None)
    small_context.teacher.register_forward_pre_hook(keep(asked))
    train(student, small_context, Training(epochs=1, batch=48, strategies=(HardAugmentation(portion=1.0, steps=1),)))
    assert len(seen) == 2
    for images in seen:
        assert any(torch.equal(images, other) for other in asked)


@pytest.mark.parametrize("killed_after", [1, 4])
def test_a_training_on_hard_images_that_was_killed_ends_with_the_same_bytes(small_context, tmp_path, killed_after):
    training = Training(
        epochs=2, batch=32, checkpoint_seconds=1e-6, strategies=(HardAugmentation(steps=1),),
        objectives=(SoftTargets(), HardLabels()),
    )  # fmt: skip
    whole, again = whole_and_gone_on(network, small_context, training, tmp_path, killed_after)
    assert same_bytes(whole, again)


def test_hard_augmentation_is_of_images_only(small_context):
    tokens = Split((torch.ones((4, 3)),), torch.zeros(4, dtype=torch.int64))
    context = dataclasses.replace(small_context, data=dataclasses.replace(small_context.data, train=tokens))
    with pytest.raises(DataError, match="expected one input of images"):
        policies([HardAugmentation()], network(), context)


class Shifted:
    """A bar, upright or lying, alone in the middle of the picture or anywhere in it."""

    def __init__(self, n: int, anywhere: bool, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.images = torch.randn((n, 1, 12, 12), generator=generator) * 0.1
        self.labels = torch.arange(n) % 2
        for image, label in zip(self.images[:, 0], self.labels.tolist(), strict=True):
            down, right = torch.randint(2, 10, (2,), generator=generator).tolist() if anywhere else (6, 6)
            bar = (slice(down - 2, down + 3), right) if label else (down, slice(right - 2, right + 3))
            image[bar] += 1


class Detector(nn.Module):
    """Finds the bars wherever they are: it moves with its input, as its student need not."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bars = torch.zeros((2, 1, 5, 5))
        bars[0, 0, 2], bars[1, 0, :, 2] = 1, 1
        return nn.functional.conv2d(images, bars, padding=2).flatten(2).amax(2) * 3


def test_what_the_teacher_does_everywhere_the_student_learns_where_it_never_saw_a_sample(small_context):
    train_on, elsewhere = Shifted(128, anywhere=False, seed=0), Shifted(400, anywhere=True, seed=1)
    split = Split((train_on.images,), train_on.labels)
    data = dataclasses.replace(small_context.data, train=split, validation=split[torch.arange(8)])
    found = {}
    bounds = {"translation": 0.35, "rotation": 0.0, "scale": 1.0, "brightness": 0.0}
    for name, strategies in (("plain", ()), ("hard", (HardAugmentation(portion=1.0, start=1.0, **bounds),))):
        context = dataclasses.replace(
            small_context, data=data, teacher=Detector().eval(), work=small_context.work / name
        )
        student = nn.Sequential(nn.Flatten(), nn.Linear(144, 48), nn.ReLU(), nn.Linear(48, 2))
        with torch.no_grad():
            generator = torch.Generator().manual_seed(2)
            for parameter in student.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        training = Training(
            epochs=40, batch=64, learning_rate=5e-3, objectives=(SoftTargets(weight=1.0, temperature=1.0),),
            strategies=strategies,
        )  # fmt: skip
        student = train(student, context, training)
        with torch.no_grad():
            found[name] = float((student(elsewhere.images).argmax(1) == elsewhere.labels).double().mean())
    assert found["hard"] > found["plain"] + 0.15, found
