"""Energy from trees that are written here: what a counter adds up to, and that nothing is guessed where there is none."""

import pytest

from targets.energy import Energy, Rapl, Recorder, Watts, meter, read_tegrastats


def zone(root, name, label, energy, full=262_143_328_850):
    folder = root / "class/powercap" / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{full}\n")
    return folder


def battery(root, name="BAT0", status="Discharging", **values):
    folder = root / "class/power_supply" / name
    folder.mkdir(parents=True)
    (folder / "status").write_text(f"{status}\n")
    for key, value in values.items():
        (folder / key).write_text(f"{value}\n")
    return folder


@pytest.fixture(autouse=True)
def no_tegrastats(monkeypatch):
    monkeypatch.setattr("targets.energy.shutil.which", lambda name: None)


def test_packages_are_added_up_and_their_parts_are_not(tmp_path):
    first = zone(tmp_path, "intel-rapl:0", "package-0", 1_000_000)
    second = zone(tmp_path, "intel-rapl:1", "package-1", 5_000_000)
    zone(tmp_path, "intel-rapl:0:0", "core", 7)
    zone(tmp_path, "intel-rapl:2", "psys", 7)
    found = meter(tmp_path)
    assert isinstance(found, Rapl)
    assert found.name == "RAPL package-0, package-1"
    assert found.joules() == 0
    (first / "energy_uj").write_text("3500000")
    (second / "energy_uj").write_text("6000000")
    assert found.joules() == pytest.approx(2.5 + 1.0)


def test_a_counter_that_wraps_goes_on_counting(tmp_path):
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 9_000_000, full=10_000_000)
    found = meter(tmp_path)
    for now, total in ((9_900_000, 0.9), (400_000, 1.4), (8_400_000, 9.4), (100_000, 11.1)):
        (folder / "energy_uj").write_text(str(now))
        assert found.joules() == pytest.approx(total)


def test_a_counter_that_may_not_be_read_is_none(tmp_path):
    folder = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    (folder / "energy_uj").unlink()
    (folder / "energy_uj").mkdir()  # root may read any file, and tests may run as root
    assert meter(tmp_path) is None


def test_a_battery_counts_while_it_is_discharging(tmp_path):
    folder = battery(tmp_path, power_now=12_500_000)
    assert meter(tmp_path).name == "battery BAT0"
    (folder / "status").write_text("Charging")
    assert meter(tmp_path) is None


def test_a_battery_without_power_tells_current_and_voltage(tmp_path):
    battery(tmp_path, current_now=-2_000_000, voltage_now=11_500_000)
    assert meter(tmp_path)._read() == pytest.approx(23.0)


def test_power_is_summed_over_time():
    now, watts = [0.0], [10.0]
    found = Watts("fake", lambda: watts[0], clock=lambda: now[0])
    now[0] = 2.0
    assert found.joules() == 20
    watts[0], now[0] = 4.0, 3.5
    assert found.joules() == 26
    watts[0] = None
    assert found.joules() is None


def test_no_meter_is_none_and_no_figure(tmp_path):
    assert meter(tmp_path) is None
    with Recorder(None) as recorder:
        pass
    assert recorder.energy(0, 1, 10) is None


class Fake:
    """5 W while nothing runs, 25 W from the third reading on; time is what the test says."""

    name = "fake"
    closed = False

    def __init__(self, table):
        self.table = iter(table)

    def joules(self):
        return next(self.table)

    def close(self):
        self.closed = True


def test_idle_is_taken_off_and_only_the_span_counts(monkeypatch):
    times = iter([0.0, 2.0, 3.0, 13.0])
    monkeypatch.setattr("targets.energy.time.monotonic", lambda: next(times))
    recorder = Recorder(Fake([0.0, 10.0, 15.0, 265.0]), idle_seconds=0)
    recorder._read()
    recorder._read()
    recorder._idle_w = 5.0
    recorder._read()
    recorder._read()
    # of 250 J in 10 s, the half that the span covers, less 5 s of idle
    assert recorder.energy(4.0, 9.0, 100) == Energy(source="fake", total_j=125.0, idle_w=5.0, per_run_j=1.0)
    assert recorder.energy(4.0, 9.0, 0) is None


def test_a_recorder_reads_idle_first_and_closes_its_meter():
    source = Fake(iter(range(10**6)))
    with Recorder(source, idle_seconds=0.01, every_seconds=0.005) as recorder:
        assert recorder._idle_w > 0
    assert source.closed
    assert len(recorder._at) >= 3


def test_less_than_idle_is_zero_not_negative():
    recorder = Recorder(Fake([]))
    recorder._idle_w, recorder._at, recorder._joules = 5.0, [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]
    assert recorder.energy(1, 3, 10).per_run_j == 0


@pytest.mark.parametrize(
    ("line", "watts"),
    [
        ("RAM 2448/30536MB CPU [2%@729] VDD_GPU_SOC 2402mW/2402mW VDD_IN 5180mW/5000mW", 5.18),
        ("RAM 900/3964MB POM_5V_IN 2532/2540 POM_5V_GPU 0/0", 2.532),
        ("RAM 900/3964MB CPU [2%@729]", None),
    ],
)
def test_tegrastats_tells_the_boards_input(line, watts):
    assert read_tegrastats(line) == watts
