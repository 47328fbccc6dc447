"""A teacher that is asked somewhere else: within its budget, again after a failure, never twice about one sample."""

import dataclasses
import json
import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from kdc.core.contract import Context
from kdc.core.data import Split
from kdc.core.errors import ModelError
from kdc.distill.ask import LEAST, AskedTeacher
from kdc.distill.sources import load_source
from kdc.distill.teacher_answers import BLOCK, TeacherAnswers
from kdc.distill.teacher_settings import AskedSource, TeacherSource
from kdc.distill.views import View

REMOTE = '''
"""Stands for a service: it writes down how many samples each call had."""
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent


def calls():
    return [int(line) for line in (HERE / "calls.txt").read_text().split()] if (HERE / "calls.txt").exists() else []


def logits(images):
    with (HERE / "calls.txt").open("a") as file:
        file.write(f"{len(images)}\\n")
    return images.reshape(len(images), -1)[:, :3].astype(np.float64)


def probabilities(images):
    values = np.exp(logits(images))
    return values / values.sum(1, keepdims=True)


def classes(images):
    return logits(images).argmax(1)


def unsure(images):
    logits(images)
    if len(calls()) < 3:
        raise ConnectionError("the line is dead")
    return images.reshape(len(images), -1)[:, :3]


def dead(images):
    logits(images)
    raise ConnectionError("the line is dead")


def mistaken(images):
    logits(images)
    return images.no_such_attribute


def narrow(images):
    return logits(images)[:, 0]


def nan(images):
    return logits(images) * np.nan


def unnormalised(images):
    return np.abs(logits(images)) + 1
'''


@pytest.fixture
def context(small_context: Context, tmp_path: Path) -> Context:
    (tmp_path / "remote.py").write_text(REMOTE)
    return dataclasses.replace(small_context, cache_root=tmp_path / "root", cache=tmp_path / "root" / "one")


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((n, 1, 6, 6), generator=torch.Generator().manual_seed(seed))


def expected(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(1)[:, :3]


def teacher(context: Context, name: str = "logits", queries: int = 1000, **settings: object) -> AskedTeacher:
    found = load_source(
        AskedSource(ask=f"{context.cache_root.parent / 'remote.py'}:{name}", queries=queries, **settings), context
    )
    assert isinstance(found, AskedTeacher)
    found.pauses = []
    found.pause = found.pauses.append
    return found


def calls(context: Context) -> list[int]:
    path = context.cache_root.parent / "calls.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def test_logits_are_passed_on_in_calls_of_a_batch(context):
    x = images(25)
    assert torch.equal(teacher(context, batch=10)(x), expected(x))
    assert calls(context) == [10, 10, 5]


def test_no_sample_is_asked_about_twice_in_any_process_order_or_batch(context):
    x = images(30)
    teacher(context)(x[:20])
    again = teacher(context)  # as a new process would begin
    index = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    assert torch.equal(again(x[index]), expected(x[index]))
    assert torch.equal(again(torch.cat([x, x])), expected(torch.cat([x, x])))
    assert calls(context) == [20, 10]


def test_equal_samples_in_one_batch_are_one_question(context):
    x = images(3)[[0, 1, 0, 2, 1]]
    assert torch.equal(teacher(context)(x), expected(x))
    assert calls(context) == [3]


def test_an_augmented_sample_is_another_sample(context):
    x = images(4)
    asked = teacher(context)
    asked(x)
    assert torch.equal(asked(x + 0.1), expected(x + 0.1))
    assert calls(context) == [4, 4]


def test_a_budget_is_not_passed_and_the_error_says_how_many_are_missing(context):
    x = images(30)
    asked = teacher(context, queries=25)
    asked(x[:10])
    with pytest.raises(
        ModelError, match="20 more samples .* 15 of its 25 queries are left: 5 more are needed"
    ) as raised:
        asked(x)
    assert "set queries to 30" in str(raised.value)
    assert calls(context) == [10]
    assert torch.equal(teacher(context, queries=30)(x), expected(x))
    assert calls(context) == [10, 20]


def test_the_count_goes_on_after_a_kill_and_after_an_edit_of_the_function(context):
    teacher(context)(images(10))
    path = context.cache_root.parent / "remote.py"
    path.write_text(path.read_text() + "\n# edited\n")
    edited = teacher(context, queries=15)
    assert edited.ledger.spent == 10
    with pytest.raises(ModelError, match="5 of its 15 queries are left: 5 more"):
        edited(images(10))  # another function may answer otherwise: what the first said does not stand for it


def test_what_is_sent_is_counted_before_it_is_sent(context, monkeypatch):
    asked = teacher(context)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(asked, "function", dataclasses.replace(asked.function, function=killed))
    with pytest.raises(KeyboardInterrupt):
        asked(images(10))
    assert teacher(context).ledger.spent == 10


def test_a_damaged_count_is_told_and_not_taken_for_none(context):
    asked = teacher(context)
    asked(images(2))
    asked.ledger.path.write_text("")
    with pytest.raises(ModelError, match="damaged: how often"):
        asked(images(4))


def test_a_call_that_fails_is_tried_again_with_growing_pauses_and_counts_each_time(context):
    asked = teacher(context, "unsure")
    x = images(10)
    assert torch.equal(asked(x), expected(x))
    assert asked.pauses == [1.0, 2.0]
    assert asked.ledger.spent == 30


def test_tries_end_and_name_the_users_line(context):
    asked = teacher(context, "dead", tries=3)
    with pytest.raises(
        ModelError, match=r"after 3 tries, raised at .*remote.py:\d+: ConnectionError: the line is dead"
    ):
        asked(images(10))
    assert asked.ledger.spent == 30


def test_tries_do_not_pass_the_budget_either(context):
    asked = teacher(context, "dead", queries=25)
    with pytest.raises(ModelError, match="5 of its 25 queries are left: 5 more are needed"):
        asked(images(10))
    assert calls(context) == [10, 10]


def test_a_mistake_in_the_function_is_not_tried_again(context):
    asked = teacher(context, "mistaken")
    with pytest.raises(ModelError, match=r"remote.py:\d+: AttributeError"):
        asked(images(10))
    assert asked.pauses == []


def test_probabilities_become_their_logarithms(context):
    x = images(5)
    torch.testing.assert_close(
        teacher(context, "probabilities", gives="probabilities")(x).softmax(1), expected(x).softmax(1)
    )


def test_class_numbers_become_logits_of_one_class_alone(context):
    x = images(5)
    found = teacher(context, "classes", gives="classes", classes=3)(x)
    assert torch.equal(found.argmax(1), expected(x).argmax(1))
    torch.testing.assert_close(found.softmax(1).amax(1), torch.full((5,), 1 / (1 + 2 * LEAST)))
    assert torch.isfinite(found).all()


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [("narrow", {}, r"shape \[4\]; expected floating point of shape \[4, classes\]"), ("nan", {}, "finite"),
     ("unnormalised", {"gives": "probabilities"}, "sum to 1"), ("classes", {}, "floating point"),
     ("logits", {"gives": "classes", "classes": 3}, "integers"),
     ("classes", {"gives": "classes", "classes": 2}, "from 0 to 1, not 2")],
)  # fmt: skip
def test_answers_that_are_not_what_was_said_are_refused(context, name, settings, said):
    with pytest.raises(ModelError, match=said):
        teacher(context, name, **settings)(images(4))


@pytest.mark.parametrize("cut", [1, 5, 8, 11, 12, 20, 40, 47, 48])
def test_a_log_that_was_cut_off_anywhere_keeps_its_whole_answers(context, cut):
    asked = teacher(context)
    x = images(2)
    asked(x)
    (path,) = context.cache_root.glob("asked-*.log")
    content = path.read_bytes()
    assert len(content) == 12 + 2 * (16 + 12 + 8)
    path.write_bytes(content[:cut])
    again = teacher(context)
    assert torch.equal(again(x), expected(x))
    assert calls(context) == [2, 2 if cut < 48 else 1]


def test_a_broken_answer_is_asked_for_again_and_not_served(context):
    x = images(2)
    teacher(context)(x)
    (path,) = context.cache_root.glob("asked-*.log")
    content = bytearray(path.read_bytes())
    content[12 + 36 + 20] ^= 1
    path.write_bytes(content)
    assert torch.equal(teacher(context)(x), expected(x))
    assert calls(context) == [2, 1]


def both(context: Context) -> None:
    teacher(context, batch=7)(images(60))


def test_two_processes_share_one_budget_and_ask_nothing_twice(context):
    context = dataclasses.replace(context, teacher_cost=None, forecasts=None, task=None)
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=both, args=(context,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert sum(calls(context)) == 60
    assert teacher(context).ledger.spent == 60


def views(count: int) -> list[View]:
    n = BLOCK + 20
    return [View(Split((images(n, seed),), torch.arange(n) % 3), str(seed)) for seed in range(count)]


def test_a_training_that_the_budget_does_not_cover_is_refused_before_the_first_question(context):
    asked = teacher(context, queries=500)
    made = views(2)
    with TeacherAnswers(context, asked) as answers:
        with pytest.raises(ModelError, match="540 more samples .* 40 more are needed"):
            answers.prepare([lambda: made[0], lambda: made[1]])
    assert calls(context) == []
    same = [made[0], dataclasses.replace(made[0], key="1")]  # without augmentation one view is as the other
    with TeacherAnswers(context, asked) as answers:
        answers.prepare([lambda: same[0], lambda: same[1]])
    assert sum(calls(context)) == 270


def test_answers_that_were_paid_for_outlive_any_cache(context):
    for limit in (0, 100, None):
        small = dataclasses.replace(context, cache_bytes=limit)
        (view,) = views(1)
        with TeacherAnswers(small, teacher(context)) as answers:
            index = torch.arange(len(view.samples))
            assert torch.equal(answers.of(view)[index], expected(view.samples.inputs[0]))
    assert sum(calls(context)) == 270


def test_settings_name_one_kind_of_teacher():
    read = TypeAdapter(TeacherSource)
    made = read.validate_python({"ask": "remote.py:ask", "queries": 5})
    assert isinstance(made, AskedSource)
    assert read.validate_python(json.loads(made.model_dump_json())) == made
    with pytest.raises(ValidationError, match="one of `build`, `onnx`, `torchscript` or `ask`"):
        read.validate_python({"file": "x.onnx"})
    with pytest.raises(ValidationError, match="queries"):
        read.validate_python({"ask": "remote.py:ask"})
    with pytest.raises(ValidationError, match="how many classes"):
        read.validate_python({"ask": "remote.py:ask", "queries": 5, "gives": "classes"})
    with pytest.raises(ValidationError, match="onnx"):
        read.validate_python({"onnx": "x.onnx", "weights": "w.safetensors"})


def test_the_queries_spent_are_no_part_of_what_the_answers_are(context):
    digests = {teacher(context, queries=n, batch=b).digest for n, b in ((1, 5), (100, 7))}
    assert len(digests) == 1
    assert teacher(context, "classes", gives="classes", classes=3).digest not in digests
    assert np.unique([teacher(context, "classes", gives="classes", classes=c).digest for c in (3, 4)]).size == 2
