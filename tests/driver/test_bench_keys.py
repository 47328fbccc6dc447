"""A trial's key covers what runs in it, and nothing that only other objectives run."""

from kdc.distill.settings import Training
from kdc.driver.bench_keys import SETTINGS, sources
from kdc.driver.students import Structure
from kdc.driver.trial import Trial
from kdc.tasks.classification import Classification


def sources_of(*kinds):
    training = Training.model_validate({"objectives": [{"kind": kind} for kind in kinds]})
    trial = Trial(name="any", training=training, seed=0, start="fresh", structure=Structure())
    return sources(trial, Classification()).keys()


def test_the_loop_the_students_and_the_task_are_in_every_key():
    assert sources_of("kd") >= {
        "kdc/distill/loop.py", "kdc/distill/policies.py", "kdc/driver/students.py", "kdc/driver/trial.py",
        "kdc/tasks/classification.py", "passes/prune/__init__.py", "kdc/distill/objectives/logits.py",
    }  # fmt: skip


def test_an_objectives_function_and_settings_are_in_its_own_keys_alone():
    own = {"kdc/distill/objectives/decoupled.py", "kdc.distill.logit_settings.Decoupled"}
    assert own <= sources_of("labels", "dkd")
    assert not own & sources_of("labels", "kd")


def test_what_looks_inside_is_in_the_keys_of_those_that_do():
    assert "kdc/distill/feature_policy.py" in sources_of("hints")
    assert "kdc/distill/feature_policy.py" not in sources_of("kd")


def test_the_files_that_list_all_objectives_are_in_no_key():
    for kinds in (["kd"], ["hints"]):
        files = {f"{name.replace('.', '/')}.py" for name in SETTINGS}
        assert not files & set(sources_of(*kinds))


def test_what_a_strategy_runs_is_in_the_keys_of_those_that_use_it():
    plain, own = Training(), Training.model_validate({"strategies": [{"kind": "ps-kd"}]})
    with_it, without = (
        sources(Trial(name="any", training=t, seed=0, start="fresh", structure=Structure()), Classification())
        for t in (own, plain)
    )
    only = set(with_it) - set(without)
    assert {"kdc/distill/strategies/history.py", "kdc.distill.strategy_settings.history.PastSelf"} <= only
