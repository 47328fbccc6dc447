"""An emulated processor is seen, and marked."""

import platform
import sys

import pytest

from kdc.core.spec import DeviceFile
from targets import emulation, proc
from targets.emulation import architecture, elf_architecture, is_emulated
from targets.machine import EMULATED
from targets.measure import Settings, compare
from targets.process import Workplace

X86 = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Xeon\nflags\t\t: fpu sse avx2\n"
ARM = "processor\t: 0\nBogoMIPS\t: 108.00\nFeatures\t: fp asimd\nCPU implementer\t: 0x41\nModel\t: Raspberry Pi 5\n"


@pytest.fixture
def seen(monkeypatch, tmp_path):
    """A machine that calls itself so, with this /proc/cpuinfo, and a parent that a child finds to be this."""

    def make(machine, cpuinfo, child=None):
        monkeypatch.setattr(platform, "machine", lambda: machine)
        monkeypatch.setattr(proc, "CPUINFO", tmp_path / "cpuinfo")
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr(emulation, "_seen_by_a_child", lambda: child)
        is_emulated.cache_clear()
        return is_emulated()

    yield make
    is_emulated.cache_clear()


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "child", "emulated"),
    [
        ("aarch64", X86, None, True),
        ("x86_64", ARM, None, True),
        ("aarch64", ARM, "x86_64", True),
        ("riscv64", "", "x86_64", True),
        ("aarch64", ARM, "aarch64", False),
        ("armv7l", ARM, "aarch64", False),
        ("arm64", ARM, None, False),
        ("x86_64", X86, "x86_64", False),
        ("i686", X86, "x86_64", False),
        ("riscv64", "hart\t: 0\n", None, False),
    ],
)
def test_an_emulator_is_given_away_by_cpuinfo_or_by_what_another_process_sees(seen, machine, cpuinfo, child, emulated):
    assert seen(machine, cpuinfo, child) is emulated


def test_another_process_finds_this_one_to_be_what_it_is():
    assert emulation._seen_by_a_child() == elf_architecture(emulation.Path(sys.executable).resolve()) == architecture()


def test_what_is_no_elf_file_has_no_architecture(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\x08\x08\x12")
    assert elf_architecture(tmp_path / "x.onnx") is None


def test_a_name_of_an_arm_board_is_read(seen):
    seen("aarch64", ARM)
    assert proc.cpu_name() == "Raspberry Pi 5"


def test_a_profile_can_say_that_its_device_is_emulated(device, linear):
    emulated = device.model_copy(update={"emulated": True})
    settings = Settings(seconds=0.1, processes_min=3, processes_max=3, slice_seconds=0.02)
    found = compare(linear()[0], None, emulated, settings=settings)
    assert found.candidate.latency.emulated
    assert EMULATED in found.notes
    with Workplace(None, device) as place:
        assert "emulated" not in place.watch().environment()
    assert not compare(
        DeviceFile(found.candidate.path, "onnxruntime"), None, device, settings=settings
    ).candidate.latency.emulated
