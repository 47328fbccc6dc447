"""Files built for one size of batch: any number of samples runs through them, and each gets its own answer."""

from pathlib import Path

import numpy as np
import pytest

from kdc.core.errors import TargetError
from targets.fixed_batch import fixed_shapes, in_batches
from targets.runtime import Port

PATH = Path("model.onnx")
FREE = (Port("x", ("batch", 3), "float32"), Port("y", ("batch",), "int64"))
OUT = (Port("z", ("batch", 3), "float32"),)


GIVEN = (Port("z", ("batch", 3), "float32"),)


class Fixed:
    """x * y for exactly `batch` samples."""

    def __init__(self, batch):
        self.batch, self.calls = batch, 0

    def __call__(self, inputs):
        x, y = inputs
        assert x.shape == (self.batch, 3)
        assert y.shape == (self.batch,)
        self.calls += 1
        return [x * y[:, None]]


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("count", [1, 2, 5, 6])
def test_each_sample_gets_its_own_answer_whatever_the_batch(batch, count):
    x = np.arange(count * 3, dtype=np.float32).reshape(count, 3)
    y = np.arange(1, count + 1)
    model = Fixed(batch)
    (z,) = in_batches(model, FREE, GIVEN, [x, y], batch, "rt")
    np.testing.assert_array_equal(z, x * y[:, None])
    assert model.calls == -(-count // batch)


def test_what_is_fixed_runs_as_it_is():
    ports = (Port("x", (4, 2), "float32"),)
    x = np.ones((4, 2), np.float32)
    assert in_batches(lambda inputs: [inputs[0].sum()], ports, (Port("z", (), "float32"),), [x], 1, "rt") == [8.0]


def test_an_input_without_a_batch_is_given_to_every_part():
    ports = (Port("x", ("batch",), "int64"), Port("factor", (2,), "int64"))
    seen = []

    def model(inputs):
        seen.append(inputs[1].tolist())
        return [inputs[0] * inputs[1].sum()]

    x, factor = np.arange(5), np.array([3, 4])
    (y,) = in_batches(model, ports, (Port("y", ("batch",), "int64"),), [x, factor], 2, "rt")
    np.testing.assert_array_equal(y, 7 * x)
    assert seen == [[3, 4]] * 3


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((2, 4), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 3), np.float64), np.zeros(2, np.int64)),
        (np.zeros((2, 3, 1), np.float32), np.zeros(2, np.int64)),
        (np.zeros((2, 3), np.float32), np.zeros(3, np.int64)),
        (np.zeros((0, 3), np.float32), np.zeros(0, np.int64)),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x, y):
    with pytest.raises(TargetError, match="rt cannot run the model"):
        in_batches(Fixed(1), FREE, GIVEN, [x, y], 1, "rt")


def test_a_free_batch_becomes_the_devices_and_nothing_else_may_be_free():
    assert fixed_shapes(FREE, OUT, 4, PATH, "rt") == [(4, 3), (4,)]
    with pytest.raises(TargetError, match=r"the input 'x' is \['batch', 'length'\]"):
        fixed_shapes((Port("x", ("batch", "length"), "float32"),), OUT, 4, PATH, "rt")
    with pytest.raises(TargetError, match="free in some of its inputs and outputs and fixed in others"):
        fixed_shapes(FREE, (Port("z", (1, 3), "float32"),), 4, PATH, "rt")
