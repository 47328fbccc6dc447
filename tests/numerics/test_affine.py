import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdc.numerics import affine

finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)
ranges = st.tuples(finite, finite).map(sorted)
formats = st.sampled_from([("uint8", False), ("int8", False), ("int8", True), ("uint8", True)])


def grid_of(bounds, form):
    return affine.affine_of_range(bounds[0], bounds[1], form[0], symmetric=form[1])


def moved(x, grid):
    return affine.fake_quantize(x, torch.tensor(grid.scale, dtype=x.dtype), grid.zero_point, grid.low, grid.high)


@given(ranges, formats, st.floats(0, 1))
def test_fake_quantize_moves_no_value_in_range_by_more_than_half_a_step(bounds, form, where):
    grid = grid_of(bounds, form)
    low, high = min(bounds[0], 0.0), max(bounds[1], 0.0)
    x = torch.tensor([low, high, low + where * (high - low)], dtype=torch.float64)
    assert (moved(x, grid) - x).abs().max() <= grid.scale * 0.5 * (1 + 1e-9)


@given(ranges, formats)
def test_zero_stands_exactly_on_the_grid(bounds, form):
    assert moved(torch.zeros(1), grid_of(bounds, form)) == 0


@given(ranges, formats)
def test_fake_quantize_twice_is_once(bounds, form):
    grid = grid_of(bounds, form)
    once = moved(torch.linspace(bounds[0], bounds[1], 100, dtype=torch.float64), grid)
    assert torch.equal(moved(once, grid), once)


@given(ranges, formats)
def test_integers_fit_their_type_and_the_scale_is_positive(bounds, form):
    grid = grid_of(bounds, form)
    info = torch.iinfo(getattr(torch, form[0]))
    assert info.min <= grid.low <= grid.zero_point <= grid.high <= info.max
    assert grid.scale > 0


@given(ranges, formats, st.lists(finite, min_size=2, max_size=20))
def test_quantize_keeps_the_order_and_stays_within_the_integers(bounds, form, values):
    grid = grid_of(bounds, form)
    x = torch.tensor(values, dtype=torch.float64).sort().values
    q = affine.quantize(x, torch.tensor(grid.scale, dtype=torch.float64), grid.zero_point, grid.low, grid.high)
    assert (q.diff() >= 0).all()
    assert q.min() >= grid.low
    assert q.max() <= grid.high


@given(finite.filter(lambda x: abs(x) > 1e-20))
def test_a_symmetric_grid_holds_the_negative_of_each_of_its_points(bound):
    grid = grid_of((-abs(bound), abs(bound)), ("int8", True))
    x = torch.linspace(-abs(bound), abs(bound), 255, dtype=torch.float64)
    assert grid.zero_point == 0
    assert torch.equal(moved(-x, grid), -moved(x, grid))


def test_a_range_without_negative_values_has_its_zero_point_at_the_lowest_integer():
    assert affine.affine_of_range(0.5, 6.0, "uint8", symmetric=False) == (6.0 / 255, 0, 0, 255)


def test_a_range_of_no_width_is_a_grid_around_zero():
    for form in (("uint8", False), ("int8", True)):
        assert moved(torch.zeros(1), grid_of((0.0, 0.0), form)) == 0


def test_ties_go_to_the_even_integer_as_in_onnx():
    q = affine.quantize(torch.tensor([0.5, 1.5, 2.5, -0.5]), torch.tensor(1.0), 0, -127, 127)
    assert q.tolist() == [0, 2, 2, 0]


@pytest.mark.parametrize("axis", [0, 1, None])
def test_max_abs_scale_holds_every_weight_within_half_a_step(axis):
    weight = torch.randn(6, 5, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    scale = affine.max_abs_scale(weight, axis)
    assert scale.shape == tuple(n if i == axis else 1 for i, n in enumerate(weight.shape))
    assert ((affine.fake_quantize(weight, scale, 0, -127, 127) - weight).abs() <= scale / 2 * (1 + 1e-9)).all()


def test_a_channel_of_zeros_has_a_usable_scale():
    scale = affine.max_abs_scale(torch.zeros(2, 3), 0)
    assert (scale > 0).all()
    assert torch.isfinite(scale).all()


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.sampled_from([7, 127]))
def test_the_mse_clip_has_no_more_error_than_max_abs_in_any_channel(seed, high):
    weight = torch.randn(4, 50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3
    full = affine.max_abs_scale(weight, 0, high)
    clip = affine.mse_clip(weight, 0, high)

    def error(scale):
        return (affine.fake_quantize(weight, scale, 0, -high, high) - weight).square().sum(1)

    assert (error(full * clip) <= error(full)).all()
    assert ((clip >= 0.3) & (clip <= 1)).all()


def test_the_mse_range_clips_a_lonely_outlier_of_a_wide_tensor():
    centers = torch.linspace(0, 100, 1000, dtype=torch.float64)
    counts = torch.where(centers < 40, 1000.0, 0.0).double()
    counts[-1] = 1
    low, high = affine.mse_range(centers, counts, 0.0, 100.0, "uint8", symmetric=False)
    assert low == 0
    assert 30 < high < 100


@given(st.floats(50, 100))
def test_the_percentile_range_holds_its_share_of_the_values(percentile):
    x = torch.randn(5000, generator=torch.Generator().manual_seed(3)).double()
    counts, edges = torch.histogram(x, 400)
    low, high = affine.percentile_range(edges, counts, percentile)
    inside = ((x >= low) & (x <= high)).double().mean() * 100
    assert inside >= percentile - 1e-6


def test_a_percentile_of_100_is_the_whole_range():
    counts, edges = torch.histogram(torch.tensor([-1.0, 0.0, 3.0]).double(), 16)
    assert affine.percentile_range(edges, counts, 100) == (-1.0, 3.0)
