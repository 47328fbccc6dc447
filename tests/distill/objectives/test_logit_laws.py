"""What every objective on outputs must obey, in one table: adding an objective is adding a row."""

from dataclasses import dataclass, field
from typing import Any, get_args

import logit_references as references
import numpy as np
import pytest
import torch
from pydantic import ValidationError

from kdc.core.errors import ModelError
from kdc.distill.logit_settings import OnOutputs, OutputObjective
from kdc.distill.policies import function_of
from kdc.distill.settings import Training

KINDS = {kind.model_fields["kind"].default: kind for kind in get_args(OutputObjective)}
BATCH, CLASSES = 7, 6
WITH_TESTS_OF_THEIR_OWN = {"alm", "mekd"}  # no functions of one batch of logits [batch, classes]


@dataclass(frozen=True)
class Law:
    """One objective. `settings`: other than its defaults, where a test of the defaults would say less."""

    kind: str
    reference: Any  # None: the value is that of the batch as a whole, and has a test of its own
    settings: dict[str, Any] = field(default_factory=dict)
    zero_at_equality: bool = True
    shift: bool = True  # a number added to all logits of the student changes nothing
    across: bool = False  # the value of an example depends on the others in its batch
    same_classes: bool = True  # refuses a teacher with another number of classes

    def __call__(self, student, teacher, labels, **changed):
        settings = KINDS[self.kind](**self.settings, **changed)
        arguments = settings.arguments()
        if self.kind == "taid":  # its settings are those of the share's way; the function takes the share itself
            arguments = {"share": 0.6}
        extra = (labels,) if settings.labels else ()
        return function_of(settings)(student, teacher, *extra, **arguments)

    def arguments(self):
        return {"share": 0.6} if self.kind == "taid" else KINDS[self.kind](**self.settings).arguments()


LAWS = [
    Law("kd", references.kd),
    Law("reverse-kl", references.reverse_kl, {"temperature": 2.0}),
    Law("jensen-shannon", references.jensen_shannon, {"teacher_share": 0.3, "temperature": 2.0}),
    Law("alpha", references.alpha, {"temperature": 2.0}),
    Law("alpha", references.alpha, {"alpha": 0.2}),
    Law("alpha", references.alpha, {"alpha": 0.0}),
    Law("alpha", references.alpha, {"alpha": 1.0}),
    Law("adaptive-alpha", references.adaptive_alpha, {"temperature": 2.0}),
    Law("adaptive-alpha", references.adaptive_alpha, {"alpha_low": 0.0, "alpha_high": 2.0, "clip": 1e3}),
    Law("skew-kl", references.skew_kl),
    Law("skew-reverse-kl", references.skew_reverse_kl, {"temperature": 2.0, "skew": 0.3}),
    Law("bd-kd", references.balanced),
    Law("dkd", references.dkd),
    Law("standardised", references.standardised),
    Law("luminet", references.luminet, across=True),
    Law("dist", None, across=True),
    Law("pld", references.plackett_luce, {"temperature": 2.0}, zero_at_equality=False),
    Law("topkd", references.top_scaled, {"top": 2}, zero_at_equality=False, shift=False, across=True),
    Law("topkd", references.top_scaled, {"top": 3, "alpha": 2.0}, zero_at_equality=False, shift=False, across=True),
    Law("sinkhorn", references.sinkhorn, zero_at_equality=False, across=True),
    Law("sinkhorn", references.sinkhorn, {"iterations": 1, "blur": 0.5}, zero_at_equality=False, across=True),
    Law("bckd", references.binary, shift=False),
    Law("bckd", references.binary, {"focus": 2.0}, shift=False),
    Law("binary-norm", references.binary_norm, shift=False),
    Law("uld", references.uld, same_classes=False),
    Law("predictions", references.predictions, {"top": 2}),
    Law("predictions", references.predictions, {"hard": True}, zero_at_equality=False),
    Law("taid", references.taid),
]


def name_of(law: Law) -> str:
    return "-".join([law.kind, *(f"{name}={value}" for name, value in law.settings.items())])


def drawn(seed: int, *shape: int, size: float = 2.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return (size * torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)).to(dtype)


def batch(n: int = BATCH, size: float = 2.0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return drawn(1, n, CLASSES, size=size), drawn(2, n, CLASSES, size=size), torch.arange(n) % CLASSES


every_law = pytest.mark.parametrize("law", LAWS, ids=name_of)


def test_every_objective_of_the_settings_stands_in_the_table():
    assert {law.kind for law in LAWS} | WITH_TESTS_OF_THEIR_OWN == KINDS.keys()


@every_law
def test_one_value_an_example_and_it_is_the_papers(law):
    student, teacher, labels = batch()
    found = law(student, teacher, labels)
    assert found.shape == (BATCH,)
    if law.reference is not None:
        expected = law.reference(student.numpy(), teacher.numpy(), labels.numpy(), **law.arguments())
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6, atol=1e-7)


@every_law
def test_the_gradient_is_that_of_the_value(law):
    if law.kind == "taid":
        pytest.skip("no gradient goes through the target; test_moving_targets.py has its gradient")
    student, teacher, labels = batch(4, size=0.5)  # so near that nothing is clipped
    assert torch.autograd.gradcheck(lambda s: law(s, teacher, labels), student.requires_grad_())


@every_law
def test_equal_outputs_cost_nothing_and_others_cost_more(law):
    student, teacher, labels = batch()
    if law.zero_at_equality:
        torch.testing.assert_close(law(teacher, teacher, labels), torch.zeros(BATCH).double(), atol=1e-6, rtol=0)
    if not law.across:
        assert (law(student, teacher, labels) > 0).all()
    assert law(student, teacher, labels).mean() > law(teacher, teacher, labels).mean()


@every_law
def test_a_common_shift_of_the_students_logits_changes_nothing_unless_logits_are_what_it_sees(law):
    student, teacher, labels = batch()
    # LumiNet's classes are standardised over the batch: only a shift that all examples share drops out.
    shift = torch.tensor(5.0) if law.kind == "luminet" else torch.arange(BATCH).double().unsqueeze(1)
    moved = law(student + shift, teacher, labels)
    assert torch.allclose(moved, law(student, teacher, labels), atol=1e-8) == law.shift


@every_law
def test_the_batchs_order_is_no_matter(law):
    student, teacher, labels = batch()
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    values, again = law(student, teacher, labels), law(student[order], teacher[order], labels[order])
    torch.testing.assert_close(again, values[order])


@every_law
def test_other_examples_of_the_batch_matter_where_the_formula_looks_at_them(law):
    student, teacher, labels = batch()
    alone = torch.cat([law(*(part[i : i + 2] for part in (student, teacher, labels)))[:1] for i in range(BATCH - 1)])
    assert torch.allclose(alone, law(student, teacher, labels)[:-1]) == (not law.across)


@every_law
def test_classes_can_be_numbered_otherwise(law):
    student, teacher, labels = batch()
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    again = law(student[:, order], teacher[:, order], order.argsort()[labels])
    torch.testing.assert_close(again, law(student, teacher, labels))


@every_law
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("size", [3.0, 1e4], ids=["usual", "extreme"])
def test_values_and_gradients_are_finite_for_extreme_logits_and_in_half_precision(law, dtype, size):
    _, _, labels = batch()
    for student, teacher in [
        (drawn(1, BATCH, CLASSES, size=size, dtype=dtype), drawn(2, BATCH, CLASSES, size=size, dtype=dtype)),
        (torch.zeros((BATCH, CLASSES), dtype=dtype), drawn(2, BATCH, CLASSES, size=size, dtype=dtype)),
        (drawn(1, BATCH, CLASSES, size=size, dtype=dtype), torch.zeros((BATCH, CLASSES), dtype=dtype)),
    ]:
        student.requires_grad_()
        value = law(student, teacher, labels)
        (gradient,) = torch.autograd.grad(value.float().mean(), student)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()


@every_law
def test_half_precision_costs_no_more_than_the_logits_own_rounding(law):
    student, teacher, labels = batch()
    half = law(student.half(), teacher.half(), labels)
    same = law(student.half().double(), teacher.half().double(), labels)
    torch.testing.assert_close(half.double(), same, rtol=1e-4, atol=1e-4)


@every_law
def test_dimensions_between_batch_and_classes_are_averaged(law):
    student, teacher = drawn(1, 3, 4, CLASSES), drawn(2, 3, 4, CLASSES)
    labels = torch.arange(12).view(3, 4) % CLASSES
    rows = law(student.flatten(0, 1), teacher.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(law(student, teacher, labels), rows.view(3, 4).mean(1))


@every_law
def test_a_teacher_with_other_classes_is_refused_with_both_shapes(law):
    student, teacher, labels = batch()
    if law.same_classes:
        with pytest.raises(ModelError, match=r"\[7, 5\].*\[7, 6\]"):
            law(student[:, :5], teacher, labels % 5)
    else:
        assert law(student, teacher[:, :5], labels).shape == (BATCH,)


@every_law
def test_labels_of_another_shape_are_refused(law):
    student, teacher, _ = batch()
    if KINDS[law.kind].labels:
        with pytest.raises(ModelError, match="one class number for each row"):
            law(student, teacher, torch.zeros(3, dtype=torch.long))


@every_law
def test_only_a_loss_at_the_level_of_logits_takes_the_classes_one_by_one(law):
    student, teacher, labels = batch()

    def gradient_of_the_others(logits: torch.Tensor) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(law(leaf, teacher, labels).sum(), leaf)
        return gradient[:, 1:]

    other = student.clone()
    other[:, 0] += torch.arange(BATCH)
    alone = torch.allclose(gradient_of_the_others(student), gradient_of_the_others(other))
    assert alone == (KINDS[law.kind].level == "logits")


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_settings_say_where_they_are_from_and_refuse_what_cannot_be(kind: type[OnOutputs]):
    assert "Source: " in (kind.__doc__ or "")
    assert "arXiv:" in (kind.__doc__ or "")
    with pytest.raises(ValidationError):
        kind(weight=-1)
    if "temperature" in kind.model_fields:
        with pytest.raises(ValidationError):
            kind(temperature=0)


def test_a_loss_on_logits_and_one_on_probabilities_are_refused_on_one_head():
    with pytest.raises(ValidationError, match=r"`bckd` sees logits class by class and `labels` sees probabilities"):
        Training(objectives=[{"kind": "labels"}, {"kind": "bckd"}])
    assert len(Training(objectives=[{"kind": "labels", "weight": 0}, {"kind": "bckd"}]).objectives) == 2


def test_weights_that_sum_to_nothing_are_refused():
    with pytest.raises(ValidationError, match="every objective has weight 0"):
        Training(objectives=[{"kind": "labels", "weight": 0}, {"kind": "dkd", "weight": 0}])
