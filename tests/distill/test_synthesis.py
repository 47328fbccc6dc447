"""Samples from a teacher alone: they look to it like its training data, and a student learns from them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from kdc.core.errors import ModelError
from kdc.core.observe import Progress, silent
from kdc.core.spec import TensorSpec
from kdc.distill.synthesis.domain import Domain, domains_of
from kdc.distill.synthesis.generator import Generator, drawn, train_generator
from kdc.distill.synthesis.inversion import invert
from kdc.distill.synthesis.settings import GeneratorSettings, InversionSettings
from kdc.distill.synthesis.statistics import WatchedStatistics, batch_norms
from kdc.distill.synthesis.synthesise import batch_sizes, synthesise
from kdc.distill.synthesis.terms import information_entropy, one_hot, total_variation

IMAGE = (TensorSpec(name="image", shape=("batch", 1, 8, 8)),)
DOMAINS = domains_of(IMAGE, None)
SHORT = InversionSettings(samples=128, batch=128, steps=40)


def network(width: int, norm: bool = True) -> nn.Module:
    def block(channels_in: int, channels: int) -> list[nn.Module]:
        norms = [nn.BatchNorm2d(channels)] if norm else []
        return [nn.Conv2d(channels_in, channels, 3, padding=1), *norms, nn.ReLU(inplace=True), nn.MaxPool2d(2)]

    return nn.Sequential(*block(1, width), *block(width, width), nn.Flatten(), nn.Linear(4 * width, 10))


def fit(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor, epochs: int) -> nn.Module:
    """By labels [n], or by logits [n, classes]."""
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3)
    order = torch.Generator().manual_seed(0)
    for _ in range(epochs):
        for index in torch.randperm(len(inputs), generator=order).split(64):
            found, wanted = model.train()(inputs[index]), targets[index]
            optimizer.zero_grad()
            functional.cross_entropy(found, wanted.softmax(1) if wanted.dim() > 1 else wanted).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, torch.Tensor]:
    """A teacher of sklearn's digits, and images that it has not seen."""
    images, labels = load_digits(return_X_y=True)
    pictures = torch.tensor((images - images.mean()) / images.std(), dtype=torch.float32).reshape(-1, 1, 8, 8)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = fit(network(16), pictures[:1200], torch.tensor(labels[:1200]), 6)
    return teacher.requires_grad_(False), pictures[1200:]


@torch.no_grad()
def distance(teacher: nn.Module, images: torch.Tensor) -> float:
    with WatchedStatistics(teacher) as statistics:
        teacher(images)
        return float(statistics.taken())


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def inverted(teacher: nn.Module, classes: torch.Tensor, **changed) -> torch.Tensor:
    return invert(teacher, DOMAINS, classes, SHORT.model_copy(update=changed), draws())[0]


CLASSES = torch.arange(128) % 10


def test_inversion_brings_batchnorms_statistics_near_those_of_training(digits):
    teacher, real = digits
    noise = torch.randn((128, 1, 8, 8), generator=draws())
    with_statistics, without = inverted(teacher, CLASSES), inverted(teacher, CLASSES, batch_norm=0.0)
    assert distance(teacher, with_statistics) < 0.2 * distance(teacher, noise)
    assert distance(teacher, with_statistics) < 0.2 * distance(teacher, without)
    assert distance(teacher, with_statistics) < 2 * distance(teacher, real)


def test_the_teacher_takes_inverted_samples_for_the_classes_asked_for(digits):
    logits = digits[0](inverted(digits[0], CLASSES))
    assert (logits.argmax(1) == CLASSES).float().mean() > 0.97
    assert functional.cross_entropy(logits, CLASSES) < 0.3  # nats; log(10) = 2.3 knows nothing


def test_the_priors_make_smoother_and_smaller_samples(digits):
    plain = inverted(digits[0], CLASSES, batch_norm=0.0, total_variation=0.0)
    smooth = inverted(digits[0], CLASSES, batch_norm=0.0, total_variation=0.1)
    small = inverted(digits[0], CLASSES, batch_norm=0.0, total_variation=0.0, l2=1.0)
    assert total_variation(smooth).mean() < 0.7 * total_variation(plain).mean()
    assert small.norm() < 0.7 * plain.norm()


def test_the_weight_of_the_first_batchnorm_is_its_alone(digits):
    teacher, images = digits
    with WatchedStatistics(teacher) as statistics:
        teacher(images)
        once = statistics.taken(1.0)
        teacher(images)
        thrice = statistics.taken(3.0)
    first = batch_norms(teacher)[0]
    seen = teacher[0](images)
    own = (seen.mean((0, 2, 3)) - first.running_mean).norm()
    own = own + (seen.var((0, 2, 3), unbiased=False) - first.running_var).norm()
    assert float(thrice - once) == pytest.approx(2 * float(own), rel=1e-4)


def test_jitter_and_flip_disturb_what_the_teacher_sees_and_not_the_shape(digits):
    found = inverted(digits[0], CLASSES, steps=10, jitter=2, flip=True)
    assert found.shape == (128, 1, 8, 8)
    assert not torch.equal(found, inverted(digits[0], CLASSES, steps=10))


def test_nothing_of_a_synthesis_is_left_on_the_teacher(digits):
    teacher = digits[0]
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    inverted(teacher, CLASSES, steps=2)
    train_generator(teacher, DOMAINS, GeneratorSettings(steps=2, batch=16, width=8), 0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert not any(module._forward_pre_hooks for module in teacher.modules())


def test_a_teacher_whose_weights_ask_for_gradients_gets_none():
    teacher = network(4).eval()
    inverted(teacher, CLASSES, steps=2)
    assert all(weight.grad is None for weight in teacher.parameters())


GENERATOR = GeneratorSettings(samples=256, batch=64, steps=80, width=32)


def losses(teacher: nn.Module, settings: GeneratorSettings) -> tuple[float, float, int]:
    """One-hot and information entropy of the generator's samples after a training, and how many classes they are of."""
    generator = train_generator(teacher, DOMAINS, settings, 0)
    logits = teacher(*drawn(generator, 256, settings.latent, draws()))
    return float(one_hot(logits).mean()), float(information_entropy(logits)), len(logits.argmax(1).unique())


DAFL = GENERATOR.model_copy(update={"batch_norm": 0.0})


def test_the_generators_loss_falls_and_its_samples_cover_the_classes_alike(digits):
    early, late = (losses(digits[0], DAFL.model_copy(update={"steps": steps})) for steps in (1, 80))
    weight = DAFL.information_entropy
    assert late[0] + weight * late[1] < early[0] + weight * early[1] - 0.3
    assert late[1] < -2.25  # -log(10) = -2.303 is of ten equal shares
    assert late[2] == 10


def test_each_weight_of_the_generator_lowers_its_own_term(digits):
    both = losses(digits[0], DAFL)
    unsure = losses(digits[0], DAFL.model_copy(update={"one_hot": 0.0}))
    uneven = losses(digits[0], DAFL.model_copy(update={"information_entropy": 0.0}))
    assert both[0] < 0.85 * unsure[0]
    assert both[1] < uneven[1] - 0.5
    assert both[2] > uneven[2]


def test_the_activation_term_makes_features_larger(digits):
    teacher = digits[0]

    def size(weight: float) -> float:
        settings = GENERATOR.model_copy(update={"activation": weight, "batch_norm": 0.0})
        (images,) = drawn(train_generator(teacher, DOMAINS, settings, 0), 128, settings.latent, draws())
        return float(teacher[:-1](images).abs().mean())

    assert size(1.0) > 1.1 * size(0.0)


@pytest.mark.parametrize("shape", [(), (7,), (2, 9), (3, 6, 5), (1, 5, 4, 3), (1, 2, 2, 2, 2)], ids=str)
def test_a_generator_gives_standardised_samples_of_any_shape_or_fills_the_limits(shape: tuple[int, ...]):
    latent = torch.randn((32, 10), generator=draws())
    free, bound = (Domain(shape, torch.float32, limits) for limits in (None, (2.0, 5.0)))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        one, two = (tensor.detach() for tensor in Generator([free, bound], 10, 8)(latent))
    assert one.shape == two.shape == (32, *shape)
    assert float(one.mean()) == pytest.approx(0, abs=1e-4)
    assert float(one.var(unbiased=False)) == pytest.approx(1, abs=0.01)
    assert two.min() >= 2
    assert two.max() <= 5


def test_inverted_samples_lie_within_their_limits(digits):
    (found,) = invert(digits[0], domains_of(IMAGE, (-1.0, 0.5)), CLASSES, SHORT, draws())
    assert found.min() >= -1
    assert found.max() <= 0.5


class Two(nn.Module):
    """A map and a vector in, three classes out; no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.rest = nn.Conv1d(2, 4, 3, padding=1), nn.Linear(9, 3)

    def forward(self, series: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        return self.rest(torch.cat([self.maps(series).relu().mean(2), vector], 1))


@pytest.mark.parametrize("settings", [SHORT, GENERATOR.model_copy(update={"steps": 20})], ids=lambda s: s.method)
def test_a_teacher_with_two_inputs_and_no_batchnorm_is_told_and_served(settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        teacher = Two().eval()
    specs = (TensorSpec(name="series", shape=("n", 2, 12)), TensorSpec(name="vector", shape=("n", 5)))
    found = synthesise(teacher, specs, 3, settings.model_copy(update={"batch": 50}), 0, None, silent)
    assert [tuple(tensor.shape[1:]) for tensor in found.split.inputs] == [(2, 12), (5,)]
    assert torch.equal(found.split.labels, teacher(*found.split.inputs).argmax(1))
    assert any("no BatchNorm" in note for note in found.notes)


METHODS: dict[str, Callable[[], InversionSettings | GeneratorSettings]] = {
    "inversion": lambda: InversionSettings(samples=512, batch=256, steps=60),
    "generator": lambda: GeneratorSettings(samples=512, batch=64, steps=100, width=32),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_student_of_synthetic_samples_alone_agrees_with_the_teacher_on_real_ones(digits, method: str):
    teacher, real = digits
    made = synthesise(teacher, IMAGE, 10, METHODS[method](), 0, None, silent).split
    with torch.random.fork_rng():
        torch.manual_seed(1)
        student = fit(network(6), made.inputs[0], teacher(made.inputs[0]), 25)
    agreement = (student(real).argmax(1) == teacher(real).argmax(1)).float().mean()
    assert agreement > 0.6  # chance is 0.1


def same(one, other) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.split.inputs, other.split.inputs, strict=True))


@pytest.mark.parametrize("settings", [SHORT, GENERATOR], ids=lambda s: s.method)
def test_a_seed_gives_the_same_samples_and_draws_nothing_from_the_global_generator(digits, settings):
    few = settings.model_copy(update={"steps": 3, "samples": 40, "batch": 20})
    state = torch.random.get_rng_state()
    first, again, other = (synthesise(digits[0], IMAGE, 10, few, seed, None, silent) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert same(first, again)
    assert not same(first, other)


def test_a_killed_inversion_goes_on_behind_its_last_batch_and_ends_with_the_same_samples(digits, tmp_path: Path):
    few = SHORT.model_copy(update={"steps": 3, "samples": 60, "batch": 20})
    whole = synthesise(digits[0], IMAGE, 10, few, 0, tmp_path / "a", silent)
    synthesise(digits[0], IMAGE, 10, few, 0, tmp_path / "b", silent)
    (tmp_path / "b" / "inverted-2.safetensors").unlink()
    again = synthesise(digits[0], IMAGE, 10, few, 0, tmp_path / "b", silent)
    assert same(whole, again)
    kept = (tmp_path / "b" / "inverted-0.safetensors").stat().st_mtime_ns
    assert kept < (tmp_path / "b" / "inverted-2.safetensors").stat().st_mtime_ns


def test_progress_counts_every_step(digits):
    events: list = []
    synthesise(digits[0], IMAGE, 10, SHORT.model_copy(update={"steps": 4, "batch": 64}), 0, None, events.append)
    assert isinstance(events[-1], Progress)
    assert (events[-1].done, events[-1].total) == (8, 8)


def test_batches_are_as_equal_as_they_can_be():
    assert batch_sizes(4097, 256) == [241] * 17
    assert batch_sizes(10, 4) == [4, 3, 3]
    assert batch_sizes(8, 8) == [8]


@pytest.mark.parametrize(
    ("shape", "dtype", "told"),
    [
        (("batch", 12), "int64", "floating point"),
        (("batch", 1, 8, 8), "uint8", "floating point"),
        (("batch", 1, "time"), "float32", "free sizes time"),
        ((1, 1, 8, 8), "float32", "the first size must be free"),
    ],
)
def test_inputs_that_no_gradient_reaches_are_refused_with_what_to_do(shape, dtype: str, told: str):
    with pytest.raises(ModelError, match=told) as caught:
        domains_of([TensorSpec(name="tokens", shape=shape, dtype=dtype)], None)
    assert "'tokens'" in str(caught.value)
    assert "→" in str(caught.value)


@pytest.mark.parametrize("method", ["inversion", "generator"])
def test_a_loss_that_is_no_number_stops_the_synthesis_at_its_step(method: str):
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    teacher[1].weight.data.fill_(float("nan"))
    settings = {"inversion": SHORT, "generator": GENERATOR}[method]
    with pytest.raises(ModelError, match=r"loss is nan at step 0 of \d+\n  → set a lower learning_rate"):
        synthesise(teacher, IMAGE, 10, settings, 0, None, silent)
