"""What the machine says of itself is read from Linux's files, and what is not there is None. The trees here are made."""

import dataclasses

import pytest

from targets.preflight import changes, look

CPU = "sys/devices/system/cpu/cpu0"


@pytest.fixture
def tree(tmp_path):
    """Write files below a made root, and look at it as a machine of 4 cores."""

    def make(files=None, threads=1, **given):
        for name, text in (files or {}).items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")
        return look(threads, root=tmp_path, **{"cores": 4, **given})

    return make


def clock(governor="performance", now=2400000, limit=2400000, most=2400000, driver="acpi-cpufreq"):
    names = ("scaling_governor", "scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq", "scaling_driver")
    return {f"{CPU}/cpufreq/{n}": v for n, v in zip(names, (governor, now, limit, most, driver), strict=True)}


def zone(kind, temperature, **trips):
    place = "sys/class/thermal/thermal_zone3"
    files = {f"{place}/type": kind, f"{place}/temp": round(1000 * temperature)}
    for number, (name, value) in enumerate(trips.items()):
        files |= {f"{place}/trip_point_{number}_type": name, f"{place}/trip_point_{number}_temp": round(1000 * value)}
    return files


def test_an_empty_tree_gives_none_for_all_and_flags_nothing(tree):
    found = tree()
    told = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    assert {name for name, value in told.items() if value is not None} == {
        "allowed_cores", "measuring_threads", "versions", "flags",
    }  # fmt: skip
    assert found.flags == ()


def test_a_quiet_machine_is_read_and_nothing_speaks_against_it(tree):
    counters = {f"{CPU}/thermal_throttle/core_throttle_count": 3, f"{CPU}/thermal_throttle/package_throttle_count": 4}
    found = tree(
        {**clock(now=1800000), **zone("x86_pkg_temp", 45.5, critical=100), **counters, "proc/loadavg": "0.5 0.25 0 1/99 7"},
        threads=2, versions={"onnxruntime": "1.0"}, busy_percent=3.0,
    )  # fmt: skip
    assert (found.governor, found.clock_mhz, found.clock_limit_mhz, found.clock_max_mhz) == (
        "performance",
        1800,
        2400,
        2400,
    )
    assert (found.temperature_c, found.temperature_limit_c, found.throttled) == (45.5, 100, 7)
    assert found.load_average == (0.5, 0.25, 0)
    assert found.described() | {"onnxruntime": "1.0", "measuring_threads": 2, "busy_percent": 3.0} == found.described()
    assert found.flags == ()


@pytest.mark.parametrize(
    ("files", "given", "flag"),
    [
        (clock("powersave"), {}, "governor is powersave"),
        (clock("conservative", driver="intel_pstate"), {}, "governor is conservative"),
        (clock(limit=1200000), {}, "held at 1200 of 2400 MHz"),
        (zone("cpu-thermal", 78, passive=85, critical=95), {}, "hot machine: 78 °C before it began, its limit is 85"),
        (zone("cpu_thermal", 81), {}, "hot machine: 81 °C before it began"),
        ({"sys/devices/platform/soc/soc:firmware/get_throttled": "50005"}, {}, "firmware slows the cores now"),
        ({}, {"busy_percent": 42.0}, "noisy machine: other work kept the quietest core 42% busy"),
        ({}, {"threads": 8}, "too few cores: 8 threads on 4"),
        ({"sys/fs/cgroup/cpu.max": "50000 100000"}, {}, "the container may take the time of 0.5"),
        (
            {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": 150000, "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000},
            {"threads": 2},
            "the container may take the time of 1.5",
        ),
    ],
)
def test_what_speaks_against_the_figures_is_one_flag_in_words(tree, files, given, flag):
    (found,) = tree(files, **given).flags
    assert flag in found


@pytest.mark.parametrize(
    "files",
    [
        clock("powersave", driver="intel_pstate"),  # there it follows the load
        zone("acpitz", 90),  # no sensor of the CPU's
        zone("cpu-thermal", 70, passive=85),
        zone("cpu-thermal", 70, passive=0),  # a limit that is not set
        {"sys/devices/platform/soc/soc:firmware/get_throttled": "50000"},  # it happened, but not now
        {"sys/fs/cgroup/cpu.max": "max 100000"},
        {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1, "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000},
        {f"{CPU}/cpufreq/cpuinfo_max_freq": "not a number"},
    ],
)
def test_what_is_harmless_is_not_flagged(tree, files):
    assert tree(files).flags == ()


def test_the_hottest_of_the_cpus_sensors_counts(tree):
    hwmon = {
        "sys/class/hwmon/hwmon1/name": "k10temp",
        "sys/class/hwmon/hwmon1/temp1_input": 52000,
        "sys/class/hwmon/hwmon1/temp1_crit": 95000,
    }
    found = tree({**zone("cpu-thermal", 40, passive=85), **hwmon})
    assert (found.temperature_c, found.temperature_limit_c) == (52, 95)


def test_the_processors_own_list_tells_the_clock_where_nothing_else_does(tree):
    assert tree({"proc/cpuinfo": "processor\t: 0\ncpu MHz\t\t: 2596.148\n"}).clock_mhz == 2596.148


def test_heat_and_throttling_meanwhile_are_told(tree):
    count = f"{CPU}/thermal_throttle/core_throttle_count"
    before = tree({**clock(), **zone("cpu-thermal", 50, passive=85), count: 2})
    assert changes(before, before) == []
    after = tree({**clock(limit=1800000), **zone("cpu-thermal", 84, passive=85), count: 9})
    told = changes(before, after)
    assert told == [
        "throttled machine: heat slowed the cores 7 times meanwhile",
        "throttled machine: the clock's limit fell from 2400 to 1800 MHz meanwhile",
        "hot machine: it heated from 50 to 84 °C",
    ]
    (warmer,) = changes(before, dataclasses.replace(before, temperature_c=72.0))
    assert "heated from 50 to 72 °C" in warmer
    untold = {"temperature_c": None, "throttled": None, "clock_limit_mhz": None}
    assert changes(before, dataclasses.replace(after, **untold)) == []
