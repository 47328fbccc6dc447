"""A training in lower precision, in parts, compiled, with workers, or with too little memory: what stays the same."""

import dataclasses
import sys

import pytest
import torch
from moving import step
from networks import normal
from torch import nn

from kdc.core.errors import ModelError
from kdc.core.observe import Note
from kdc.distill import forward, views
from kdc.distill.devices import placed
from kdc.distill.loop import train
from kdc.distill.parts import out_of_memory, parts
from kdc.distill.policy import Policy
from kdc.distill.settings import HardLabels, Hints, SoftTargets, Training
from kdc.distill.stepping import Stepper
from kdc.distill.strategy_settings.mixing import StudentMixup
from kdc.distill.strategy_settings.views import Mixup
from kdc.distill.views import view

SHORT = Training(epochs=2, batch=32, views=2, checkpoint_seconds=1e-6, calibrate=False)
LONE = {"objectives": (HardLabels(), SoftTargets())}  # each example's loss is its own


def network(norm: bool = False, seed: int = 6) -> nn.Module:
    middle = [nn.BatchNorm2d(4)] if norm else []
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), *middle, nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    return normal(model, seed)


@pytest.fixture
def trained(small_context, tmp_path):
    """A training of settings, in a work folder of its own; its notes are in `trained.notes`."""
    count = 0

    def run(student: nn.Module | None = None, extra=(), data=None, **settings) -> nn.Module:
        nonlocal count
        count += 1
        run.notes = []
        context = dataclasses.replace(
            small_context, work=tmp_path / f"work{count}", cache=tmp_path / f"cache{count}",
            emit=lambda event: run.notes.append(event.text) if isinstance(event, Note) else None,
            data=data or small_context.data,
        )  # fmt: skip
        return train(student or network(), context, SHORT.model_copy(update=settings), extra)

    return run


def distance(a: nn.Module, b: nn.Module) -> float:
    return max(
        float((x - y).abs().max()) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def test_parts_are_neighbours_that_cover_the_batch_and_are_of_nearly_one_size():
    for count, of in [(32, 3), (7, 7), (5, 2), (1, 1)]:
        found = parts(count, of)
        assert [i for where in found for i in range(where.start, where.stop)] == list(range(count))
        sizes = [where.stop - where.start for where in found]
        assert len(sizes) == of
        assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("accumulate", [2, 3])
def test_parts_that_are_seen_one_after_another_have_the_gradient_of_the_whole_batch(small_context, accumulate):
    gradients = []
    for count in (1, accumulate):
        context, student = small_context, network()
        training = SHORT.model_copy(update={"accumulate": count, **LONE})
        gathered = {}

        class Seen(Stepper):
            def move(self, progress: float) -> None:
                gathered.update({n: p.grad.clone() for n, p in self.trained.named_parameters()})  # noqa: B023
                raise StopIteration

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kdc.distill.batch_step.Stepper", Seen)
            with pytest.raises(StopIteration):
                train(student, context, training)
        gradients.append(gathered)
    for name, whole in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], whole, rtol=1e-4, atol=1e-6)


def test_a_policy_learns_from_a_step_once_and_from_the_whole_of_it(trained):
    class Watching(Policy):
        reads_teacher = False
        seen: list[int] = []
        after_steps: list[tuple[int, int, int]] = []

        def loss(self, batch):
            self.seen.append(len(batch.index))

        def after(self, batch):
            self.after_steps.append((batch.number, len(batch.index.unique()), len(batch.student)))

    trained(extra=[Watching()], accumulate=4, epochs=1)
    assert Watching.seen == [8] * 12
    assert Watching.after_steps == [(step, 32, 32) for step in range(3)]


def test_each_part_of_a_step_has_draws_of_its_own(trained):
    class Watching(Policy):
        reads_teacher = False
        shares: dict[str, torch.Tensor] = {}

        def change(self, drawn):
            Watching.shares[drawn.name] = drawn.share
            return drawn

    trained(extra=[Watching()], accumulate=2, epochs=1, strategies=(StudentMixup(),))
    assert [*Watching.shares] == ["0.0", "0.1", "1.0", "1.1", "2.0", "2.1"]
    assert len({tuple(share.tolist()) for share in Watching.shares.values()}) == 6


def test_a_moving_target_moves_as_fast_in_parts_as_in_one(trained):
    from kdc.distill.logit_settings import MovingTarget

    objectives = (MovingTarget(rate=0.2),)
    whole, cut = (trained(objectives=objectives, accumulate=count) for count in (1, 4))
    assert distance(whole, cut) < 1e-4


def test_more_parts_than_samples_are_refused(trained):
    with pytest.raises(ModelError, match="a batch of 32 cannot be seen in 33 parts"):
        trained(accumulate=33)


class Narrow(nn.Module):
    """Fails as torch does above a number of samples: in its forward, or in the backward of it."""

    def __init__(self, inner: nn.Module, most: int, backward: bool = False, on_cpu: bool = True) -> None:
        super().__init__()
        self.inner, self.most, self.backward, self.on_cpu = inner, most, backward, on_cpu

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = self.inner(x)
        if self.training and len(x) > self.most:
            if not self.backward:
                self.refuse()
            outputs.register_hook(lambda gradient: self.refuse())
        return outputs

    def refuse(self, *_: object) -> None:
        if self.on_cpu:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
            )
        raise torch.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("on_cpu", [False, True])
def test_a_step_without_memory_is_done_again_in_smaller_parts_as_if_it_had_begun_so(trained, backward, on_cpu):
    whole = trained(network(norm=True), accumulate=4)
    scarce = trained(Narrow(network(norm=True), 8, backward, on_cpu)).inner
    assert distance(whole, scarce) == 0
    assert len(trained.notes) == 2  # from 32 to 16, and to 8; then never again
    assert "out of memory at step 0 with 16 samples at once" in trained.notes[1]
    assert "8 at a time, in 4 parts" in trained.notes[1]


def test_a_training_that_ran_out_of_memory_goes_on_after_a_kill_as_it_was(small_context, tmp_path):
    whole = train(Narrow(network(True), 16), dataclasses.replace(small_context, work=tmp_path / "whole"), SHORT)

    class Killed(BaseException):
        pass

    class Killing(Policy):
        def after(self, batch):
            if batch.number == 3:
                raise Killed

    with pytest.raises(Killed):
        train(Narrow(network(True), 16), small_context, SHORT, [Killing()])
    notes: list[object] = []
    again = train(Narrow(network(True), 16), dataclasses.replace(small_context, emit=notes.append), SHORT)
    assert distance(whole, again) == 0
    assert not any(isinstance(note, Note) for note in notes)


def test_a_model_of_which_not_one_sample_fits_is_refused(trained):
    with pytest.raises(ModelError, match="out of memory at step 0 of 6, with one sample at a time"):
        trained(Narrow(network(), 0))


def test_other_failures_of_a_step_come_out_as_they_are(trained):
    def fail(*_: object) -> None:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    student = network()
    student[0].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="mat1"):
        trained(student)
    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(ValueError("DefaultCPUAllocator"))


@pytest.mark.parametrize(("precision", "lower"), [("bf16-mixed", torch.bfloat16), ("16-mixed", torch.float16)])
def test_mixed_precision_computes_in_less_and_learns_in_float32(trained, precision, lower):
    inside, losses = set(), set()

    class Watching(Policy):
        def loss(self, batch):
            losses.add(batch.student.dtype)

    student = network()
    handle = student[3].register_forward_hook(lambda module, given, output: inside.add((module.training, output.dtype)))
    hints = {"objectives": (SoftTargets(), Hints(layers={"3": "1"}))}
    mixed = trained(student, [Watching()], precision=precision, **hints)
    handle.remove()
    assert (True, lower) in inside
    assert losses == {torch.float32}
    assert {parameter.dtype for parameter in mixed.parameters()} == {torch.float32}
    plain = trained(**hints)
    start = distance(network(), plain)
    assert 0 < distance(plain, mixed) < 0.2 * start


def test_a_scaled_loss_gives_the_plain_step_and_skips_one_that_overflows():
    training = Training(precision="16-mixed", clip_norm=1e9)
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    steppers = [Stepper(models[0], training), Stepper(models[1], Training(clip_norm=1e9))]
    x = torch.randn((4, 3), generator=torch.Generator().manual_seed(0))
    for model, stepper in zip(models, steppers, strict=True):
        step(stepper, None, model(x).square().mean(), 0.5)
    torch.testing.assert_close(models[0].weight, models[1].weight)
    scale, before = steppers[0].scaler.get_scale(), models[0].weight.detach().clone()
    assert scale > 1
    step(steppers[0], None, (models[0](x) * 3e38).mean(), 0.5)
    assert torch.equal(models[0].weight, before)
    assert steppers[0].scaler.get_scale() == scale / 2
    again = Stepper(models[0], training)
    again.load(dict(steppers[0].state()))
    assert again.scaler.get_scale() == scale / 2
    assert again.scaler.state_dict() == steppers[0].scaler.state_dict()


def test_a_compiled_student_learns_the_same_with_the_hooks_of_its_objectives(trained, monkeypatch):
    monkeypatch.setattr(forward, "COMPILER", "aot_eager")
    hints = {"objectives": (SoftTargets(), Hints(layers={"3": "1"})), "epochs": 1}
    plain, compiled = (trained(network(norm=True), compile=c, **hints) for c in (False, True))
    assert not trained.notes or all("pairs" in note for note in trained.notes)
    start = distance(network(norm=True), plain)
    assert distance(plain, compiled) < 1e-4 * start
    assert [*compiled.state_dict()] == [*network(norm=True).state_dict()]


def test_a_compiler_that_fails_is_told_and_changes_nothing(trained, monkeypatch):
    def missing(*_: object) -> None:
        raise RuntimeError("no C++ compiler found")

    monkeypatch.setattr(forward, "COMPILER", missing)
    plain = trained(network(norm=True), epochs=1)
    compiled = trained(network(norm=True), epochs=1, compile=True)
    assert distance(plain, compiled) == 0
    assert [note for note in trained.notes if "torch.compile failed" in note and "no C++ compiler" in note]


@pytest.fixture
def augmented(small_context, monkeypatch):
    monkeypatch.setattr(views, "VIEW_BLOCK", 16)
    return dataclasses.replace(
        small_context.data,
        augment=lambda images, generator: images + 0.1 * torch.randn(images.shape, generator=generator),
    )


def test_any_number_of_workers_gives_the_same_bytes(trained, augmented):
    students = [trained(data=augmented, workers=count, epochs=4, transforms=(Mixup(),)) for count in (0, 1, 3)]
    assert distance(students[0], students[1]) == distance(students[0], students[2]) == 0
    assert distance(students[0], trained(epochs=4, transforms=(Mixup(),))) > 0  # the augmentation counts


def test_workers_make_the_next_view_while_one_is_trained_on(small_context, augmented):
    from kdc.distill.drawing import Views

    context = dataclasses.replace(small_context, data=augmented)
    with Views(context, SHORT.model_copy(update={"workers": 2, "epochs": 3})) as made:
        for epoch in range(3):
            seen = made.of(epoch)
            assert torch.equal(seen.samples.inputs[0], view(augmented, 0, epoch % 2).samples.inputs[0])
            if epoch < 2:
                number, ahead = made._next
                assert number == (epoch + 1) % 2
                assert ahead.result().key == f"{number}"
        assert made._next is None


def test_what_breaks_in_a_worker_breaks_the_training(trained, augmented):
    calls = []

    def breaks(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        calls.append(1)
        if len(calls) > 8:  # in the second view
            raise ValueError("a bad image")
        return images

    with pytest.raises(ValueError, match="a bad image"):
        trained(data=dataclasses.replace(augmented, augment=breaks), workers=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused_and_auto_does_without(trained):
    with pytest.raises(ModelError, match=r"takes a GPU for each process; found 0"):
        trained(devices="cuda")
    assert distance(trained(devices="auto"), trained()) == 0


def test_a_model_is_back_on_the_cpu_with_the_same_tensors_whatever_happens():
    model = nn.BatchNorm1d(3)
    held = [*model.parameters(), *model.buffers()]
    with pytest.raises(StopIteration), placed([model], torch.device("cpu")):
        raise StopIteration
    assert all(a is b for a, b in zip(held, [*model.parameters(), *model.buffers()], strict=True))


def test_one_process_on_the_cpu_needs_no_accelerate(trained, small_context, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    trained(epochs=1, precision="bf16-mixed", accumulate=2, workers=1)
    context = dataclasses.replace(small_context, again=lambda training, folder: pytest.fail("it was started"))
    with pytest.raises(ModelError, match=r"pip install 'kdc\[processes\]'"):
        train(network(), context, SHORT.model_copy(update={"processes": 2}))


def test_a_policy_that_must_see_a_batch_at_once_is_not_given_parts(trained):
    class Whole(Policy):
        kind = "whole"
        undivided = True

    with pytest.raises(ModelError, match=r"whole must see a batch at once; found training.accumulate 2"):
        trained(extra=[Whole()], accumulate=2)
    with pytest.raises(ModelError, match=r"out of memory at step 0 of 6 with 32 samples at once, and whole must"):
        trained(Narrow(network(), 8), [Whole()])


def test_an_optimizer_without_memory_is_told_and_not_tried_again(trained, monkeypatch):
    def refuse(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Stepper, "move", refuse)
    with pytest.raises(ModelError, match="out of memory for the optimizer, at step 0 of 6"):
        trained()
