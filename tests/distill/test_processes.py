"""One training by two processes, which meet by gloo on this machine."""

import dataclasses
import os

import pytest
import torch
from sharing import PAIR, SHORT, Killed, context_in, network, step
from torch import nn

from kdc.core.errors import KdcError, LawError, ModelError
from kdc.core.observe import Epoch, Note
from kdc.distill import launching
from kdc.distill.loop import train


def distance(a: nn.Module, b: nn.Module) -> float:
    return max(
        float((x - y).abs().max()) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    )


def alone(folder, settings, **update) -> nn.Module:
    return train(network(), context_in(folder, "whole"), settings.model_copy(update={"processes": 1, **update}))


@pytest.mark.slow
def test_two_processes_train_the_student_of_one_and_go_on_after_a_kill(tmp_path):
    one = alone(tmp_path / "one", PAIR, accumulate=2)
    events: list[object] = []
    environment, threads = dict(os.environ), torch.get_num_threads()
    context = dataclasses.replace(context_in(tmp_path / "two", "whole"), emit=events.append)
    together = step("whole", context)
    start = distance(network(), one)
    assert 0 < distance(one, together) < 1e-3 * start  # sums in another order; dropout falls as it does in two parts
    assert [event.epoch for event in events if isinstance(event, Epoch)] == [1, 2]
    assert dict(os.environ) == environment
    assert torch.get_num_threads() == threads
    assert not torch.distributed.is_initialized()

    started: list[str] = []
    context = context_in(tmp_path / "killed", "whole", started)
    with pytest.raises(Killed):
        step("killed", context)
    again = step("whole", context)
    assert distance(together, again) == 0
    assert distance(again, step("whole", context)) == 0
    assert started == ["test", "test"]  # for what has ended nobody is started


def test_the_second_of_two_trainings_is_joined_behind_the_first(tmp_path):
    one = context_in(tmp_path / "one", "whole")
    model = train(network(), one.named("stage"), SHORT.model_copy(update={"processes": 1}))
    model = train(model, one, SHORT.model_copy(update={"processes": 1, "accumulate": 2}))
    started: list[str] = []
    together = step("staged", context_in(tmp_path / "two", "staged", started))
    assert started == ["test"]
    assert distance(model, together) < 1e-3 * distance(network(), model)


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("breaking", KdcError, r"(?s)was lost \(exit code 1\).*the cat sat on the mat.*run the same command"),
        pytest.param(
            "dying", KdcError, r"was lost \(exit code -9\).*the last checkpoint is kept", marks=pytest.mark.slow
        ),
        ("infinite", ModelError, r"^test: the loss of kd is .* at step 0 of 3, for 16 of 16"),
        ("exiting", ModelError, r"user's code ended the program with SystemExit \(0\) at .*sharing\.py:\d+"),
        ("refused", KdcError, r"(?s)ended before it \(exit code 1\): the dog ate the data.*feed the dog"),
        ("forgetful", KdcError, r"test.more: another process, .* to join test, comes to a training that has not ended"),
        ("unlike", LawError, "the processes of the training come to different students"),
    ],
)
def test_what_keeps_another_process_from_sharing_a_training_is_told(tmp_path, kind, error, said):
    with pytest.raises(KdcError, match=said) as caught:
        step(kind, context_in(tmp_path, kind))
    assert type(caught.value) is error
    assert not torch.distributed.is_initialized()


def test_all_processes_take_smaller_parts_where_one_runs_out_of_memory(tmp_path):
    notes: list[object] = []
    scarce = step("scarce", dataclasses.replace(context_in(tmp_path / "two", "scarce"), emit=notes.append))
    (note,) = [event.text for event in notes if isinstance(event, Note)]
    assert "with 16 samples at once; from this step on they are 8 at a time, in 2 parts" in note
    one = alone(tmp_path / "one", SHORT, accumulate=4)
    assert distance(one, scarce) < 1e-3 * distance(network(), one)


def test_a_launcher_around_kdc_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ModelError, match="without a launcher"):
        step("whole", context_in(tmp_path, "whole"))


def test_a_training_that_is_in_no_step_has_one_process(small_context):
    with pytest.raises(ModelError, match=r"training.processes is 2, and this training is in no step of `kdc compress`"):
        train(network(), small_context, PAIR)


def test_the_processes_meet_on_the_loopback_interface_or_not_at_all(tmp_path, monkeypatch):
    for names in (["eth0", "lo"], ["en0", "lo0"]):
        monkeypatch.setattr("socket.if_nameindex", lambda names=names: list(enumerate(names, start=1)))
        assert launching._loopback(context_in(tmp_path, "whole")) == names[1]
    monkeypatch.setattr("socket.if_nameindex", lambda: [(1, "eth0")])
    with pytest.raises(ModelError, match=r"loopback interface alone, lo or lo0; this machine's interfaces are eth0"):
        step("whole", context_in(tmp_path, "whole"))
