"""The table on made-up machines whose kernels' times follow a known formula."""

import math
from dataclasses import replace

import numpy as np
import pytest

from targets.predictor.fit import Measured, doubtful, fit
from targets.predictor.kernels import Kernel
from targets.predictor.table import Table

RUN_NS = 4000.0


def product(rows, columns, inner):
    return Kernel(
        name="n",
        kind="MatMul by constants",
        sizes={"rows": rows, "columns": columns, "inner": inner},
        macs=rows * columns * inner,
        read_bytes=4 * rows * inner,
        weight_bytes=4 * inner * columns,
        written_bytes=4 * rows * columns,
    )


def total(elements):
    return Kernel("n", "Add", {"elements": elements}, 0, 8 * elements, 0, 4 * elements)


def true_ns(kernel):
    """A machine with vectors of 16 columns, whose products are slow on few rows, and whose sums move bytes."""
    if kernel.kind == "Add":
        return 800 + 0.02 * kernel.read_bytes + 0.03 * kernel.written_bytes
    columns = kernel.sizes["columns"]
    padded = kernel.macs / columns * math.ceil(columns / 16) * 16
    return 500 + 0.02 * padded * (1 + 2 / kernel.sizes["rows"])


def drawn(generator, count):
    """Graphs of one to eight products and as many sums."""
    graphs = []
    for _ in range(count):
        kernels = []
        for _ in range(int(generator.integers(1, 9))):
            rows, columns, inner = (int(2 ** generator.uniform(low, high)) for low, high in ((0, 7), (3, 9), (3, 9)))
            kernels += [product(rows, columns, inner), total(rows * columns)]
        graphs.append(tuple(kernels))
    return graphs


def timed(graphs, generator, noise):
    return [
        Measured(kernels, (RUN_NS + sum(map(true_ns, kernels))) * math.exp(noise * generator.standard_normal()))
        for kernels in graphs
    ]


@pytest.fixture(scope="module")
def table():
    generator = np.random.default_rng(0)
    return fit(timed(drawn(generator, 200), generator, noise=0.02))


def test_whole_graphs_that_were_not_seen_are_within_a_few_percent(table):
    graphs = drawn(np.random.default_rng(1), 100)
    true = [RUN_NS + sum(map(true_ns, kernels)) for kernels in graphs]
    errors = np.abs([table.total_ns(kernels) / ns - 1 for kernels, ns in zip(graphs, true, strict=True)])
    assert np.median(errors) < 0.03
    assert np.quantile(errors, 0.9) < 0.08


def test_times_go_up_in_the_machines_stairs(table):
    # 49 to 64 columns are four vectors, 65 are five; a line through both ends would rise by a quarter before the stair
    on_stair = [table.kernel_ns(product(64, columns, 256)) for columns in (49, 56, 64)]
    above = table.kernel_ns(product(64, 65, 256))
    assert max(on_stair) / min(on_stair) < 1.12
    assert above / on_stair[-1] == pytest.approx(80 / 64, rel=0.08)


def test_a_slow_down_that_no_roofline_has_is_learned(table):
    # on one row a product takes three times as long for each multiply-accumulate as on very many
    one, many = product(1, 256, 256), product(100, 256, 256)
    assert table.kernel_ns(one) == pytest.approx(true_ns(one), rel=0.15)
    assert table.kernel_ns(many) == pytest.approx(true_ns(many), rel=0.08)


def test_noise_is_found_as_what_it_was(table):
    assert 0.01 < table.noise < 0.04


def test_a_graph_whose_measurement_was_disturbed_is_doubtful_and_does_not_bend_the_rest():
    generator = np.random.default_rng(2)
    measured = timed(drawn(generator, 150), generator, noise=0.01)
    for place in (10, 60, 110):
        measured[place] = replace(measured[place], ns=3 * measured[place].ns)
    assert {10, 60, 110} <= set(doubtful(measured, 0.05))
    table = fit(measured)
    graphs = drawn(np.random.default_rng(3), 50)
    errors = [abs(table.total_ns(kernels) / (RUN_NS + sum(map(true_ns, kernels))) - 1) for kernels in graphs]
    assert np.median(errors) < 0.03


def test_constants_that_exceed_a_cache_cost_more():
    # the same product in a model whose constants take 0.1 or 20 MB; beyond 2 MB each byte takes 0.1 ns more
    generator = np.random.default_rng(4)
    graphs = []
    for _ in range(200):
        passing = int(1e6 * 10 ** generator.uniform(-1, 1.5))
        kernels = [replace(kernel, passing_bytes=passing) for kernel in drawn(generator, 1)[0]]
        ns = RUN_NS + sum(true_ns(k) + (0.1 * k.weight_bytes if passing > 3e6 else 0) for k in kernels)
        graphs.append(Measured(tuple(kernels), ns))
    table = fit(graphs)
    kernel = product(4, 256, 256)
    slower = table.kernel_ns(replace(kernel, passing_bytes=20_000_000))
    faster = table.kernel_ns(replace(kernel, passing_bytes=100_000))
    assert slower - faster == pytest.approx(0.1 * kernel.weight_bytes, rel=0.3)


def test_activations_that_exceed_a_cache_cost_more():
    # sums of at most 12 MB; beyond 4 MB each byte takes 0.1 ns more
    def ns(kernel):
        moved = kernel.read_bytes + kernel.written_bytes
        return true_ns(kernel) + (0.1 * moved if moved > 4e6 else 0)

    generator = np.random.default_rng(5)
    graphs = []
    for _ in range(200):
        kernels = [*drawn(generator, 1)[0], *(total(int(10 ** generator.uniform(3, 6))) for _ in range(3))]
        graphs.append(Measured(tuple(kernels), RUN_NS + sum(map(ns, kernels))))
    table = fit(graphs)
    for elements in (20_000, 800_000):
        assert table.kernel_ns(total(elements)) == pytest.approx(ns(total(elements)), rel=0.15)


def test_a_table_survives_its_file(table):
    again = Table.model_validate_json(table.model_dump_json())
    assert again.total_ns((product(7, 100, 33), total(700))) == table.total_ns((product(7, 100, 33), total(700)))


def test_kinds_that_were_not_measured_have_no_time_and_sizes_far_away_are_told(table):
    assert table.kernel_ns(replace(total(10), kind="Sin")) is None
    assert table.near(product(16, 100, 100))
    assert not table.near(product(2**20, 2**20, 2**20))
