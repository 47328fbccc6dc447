"""Classification's metrics against hand counts, scikit-learn and the definition in the paper."""

import numpy as np
import pytest
import torch
from sklearn import metrics as sk

from kdc.core.data import Split, Splits
from kdc.core.errors import DataError, ModelError, RecipeError
from kdc.tasks.classification import Classification, best_temperature, expected_calibration_error, macro_f1, task_of

TASK = Classification()


def labelled(*labels: int) -> Split:
    return Split((torch.zeros(len(labels), 2),), torch.tensor(labels))


def logits_of(*probabilities: list[float]) -> np.ndarray:
    return np.log(np.array(probabilities))


def test_the_loss_is_the_negative_log_probability_of_the_label_for_each_sample():
    logits = torch.from_numpy(logits_of([0.5, 0.25, 0.25], [0.1, 0.1, 0.8]))
    loss = TASK.loss(logits, torch.tensor([0, 1]))
    torch.testing.assert_close(loss, -torch.log(torch.tensor([0.5, 0.1], dtype=torch.float64)))


def test_scores_are_one_where_the_largest_logit_is_the_labels():
    scores = TASK.scores(np.array([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0]]), np.array([1, 0, 0]))
    assert scores.tolist() == [1.0, 1.0, 0.0]


def test_the_metrics_are_those_of_scikit_learn_in_points():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 5, 200)
    outputs, teacher = (generator.normal(size=(200, 5)) + 2 * np.eye(5)[labels] for _ in range(2))
    found = TASK.metrics(outputs, labels, teacher)
    assert found["accuracy"] == pytest.approx(100 * sk.accuracy_score(labels, outputs.argmax(1)))
    recalls = sk.precision_recall_fscore_support(labels, outputs.argmax(1))[2]
    assert found["macro_f1"] == pytest.approx(100 * recalls.mean())
    assert found["agreement"] == pytest.approx(100 * sk.accuracy_score(teacher.argmax(1), outputs.argmax(1)))
    assert found[TASK.metric] == pytest.approx(100 * TASK.scores(outputs, labels).mean())


def test_without_the_teachers_outputs_no_agreement_is_claimed():
    assert "agreement" not in TASK.metrics(np.eye(3), np.arange(3), None)


def test_churn_and_new_mistakes_are_against_the_previous_release_and_without_one_against_the_teacher():
    one = np.eye(3)
    labels = np.array([0, 1, 2, 0])
    outputs, teacher, previous = one[[0, 1, 1, 1]], one[[0, 1, 2, 1]], one[[0, 2, 2, 0]]
    found = TASK.metrics(outputs, labels, teacher)
    assert (found["agreement"], found["churn"], found["new_mistakes"]) == (75, 25, 25)
    found = TASK.metrics(outputs, labels, teacher, previous)
    assert (found["agreement"], found["churn"], found["new_mistakes"]) == (75, 75, 50)


def test_the_worst_class_is_seen_where_the_mean_hides_it():
    one = np.eye(2)
    labels = np.array([0] * 9 + [1])
    found = TASK.metrics(one[[0] * 10], labels, one[[1] * 3 + [0] * 6 + [1]])
    assert found["accuracy"] == pytest.approx(90)
    assert found["worst_class"] == 0
    assert found["worst_class_drop"] == pytest.approx(100)


def test_the_best_temperature_is_the_one_by_which_calibrated_logits_were_multiplied():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(20_000, 4)) * 2
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    labels = (generator.random((20_000, 1)) > probabilities.cumsum(1)).sum(1)
    for temperature in (0.5, 1.0, 3.0):
        assert best_temperature(logits * temperature, labels) == pytest.approx(temperature, rel=0.05)


def test_macro_f1_of_a_hand_counted_case():
    # class 0: precision 2/3, recall 1, F1 0.8; class 1: precision 1, recall 1/2, F1 2/3
    outputs = np.eye(2)[[0, 0, 0, 1]]
    assert TASK.metrics(outputs, np.array([0, 0, 1, 1]), None)["macro_f1"] == pytest.approx(100 * (0.8 + 2 / 3) / 2)


@pytest.mark.parametrize("classes", [2, 7, 200])
def test_macro_f1_is_that_of_scikit_learn_also_where_classes_are_never_chosen_or_never_right(classes):
    generator = np.random.default_rng(classes)
    labels, chosen = generator.integers(0, classes, (2, 100))
    expected = sk.f1_score(labels, chosen, average="macro", zero_division=0)
    assert macro_f1(chosen, labels) == pytest.approx(expected)


def test_the_calibration_error_of_a_hand_counted_case():
    # two samples at confidence 0.9 in one bin, one right: |0.5 - 0.9|; one at 0.6, right: |1 - 0.6|; (2*0.4 + 0.4) / 3
    logits = logits_of([0.9, 0.1], [0.9, 0.1], [0.4, 0.6])
    assert expected_calibration_error(logits, np.array([0, 1, 1])) == pytest.approx(0.4)


def test_errors_of_opposite_sign_cancel_within_a_bin_and_not_between_bins():
    one_bin = logits_of([0.9, 0.1], [0.9, 0.1])
    assert expected_calibration_error(one_bin, np.array([0, 1])) == pytest.approx(0.4)
    two_bins = logits_of([0.9, 0.1], [0.6, 0.4])
    assert expected_calibration_error(two_bins, np.array([0, 1])) == pytest.approx((0.1 + 0.6) / 2)


def test_the_calibration_error_is_that_of_the_papers_formula():
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 4, 300)
    logits = generator.normal(size=(300, 4)) * 2
    probabilities = torch.softmax(torch.from_numpy(logits), 1).numpy()
    expected = 0.0
    for low in range(15):
        members = (probabilities.max(1) > low / 15) & (probabilities.max(1) <= (low + 1) / 15)
        if members.any():
            accuracy = (probabilities.argmax(1) == labels)[members].mean()
            expected += members.mean() * abs(accuracy - probabilities.max(1)[members].mean())
    assert expected_calibration_error(logits, labels) == pytest.approx(expected)


def test_a_model_that_is_sure_and_right_has_no_calibration_error_and_one_that_is_sure_and_wrong_all_of_it():
    logits = 1e4 * np.eye(3)
    assert expected_calibration_error(logits, np.arange(3)) == 0
    assert expected_calibration_error(logits, (np.arange(3) + 1) % 3) == 1


def test_chance_is_the_share_of_the_most_frequent_class_in_validation():
    one = labelled(0, 1)
    assert TASK.chance(Splits(one, one, labelled(2, 2, 2, 0), one, "")) == 75


@pytest.mark.parametrize("outputs", [(2,), (2, 3, 4), (2, 1)])
def test_outputs_that_are_no_logits_are_refused(outputs: tuple[int, ...]):
    with pytest.raises(ModelError, match=r"needs \[batch, classes\](.|\n)*→ return logits"):
        TASK.check(labelled(0), "train", outputs)


def test_labels_out_of_range_are_refused_with_the_first_of_them():
    with pytest.raises(
        DataError, match=r"test: 2 labels are out of range, the first at sample 1: 7; .* 0 to 2"
    ) as caught:
        TASK.check(labelled(0, 7, 2, 3), "test", (2, 3))
    assert "→ number the classes from 0" in str(caught.value)
    TASK.check(labelled(0, 2), "test", (2, 3))


def test_labels_with_an_axis_too_many_are_refused():
    with pytest.raises(DataError, match="one class number"):
        TASK.check(Split((torch.zeros(2, 2),), torch.zeros(2, 4, dtype=torch.int64)), "train", (2, 3))


def test_an_unknown_task_is_refused_with_the_known_ones():
    assert task_of("classification").metric == "accuracy"
    with pytest.raises(RecipeError, match=r"unknown task 'detection'; expected one of classification"):
        task_of("detection")
