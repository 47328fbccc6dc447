"""Device profiles: what ships can be loaded, and a wrong one says what is wrong."""

import pytest

from kdc.core.errors import TargetError
from targets.device import PROFILES, load_device, names


@pytest.mark.parametrize("name", names())
def test_every_profile_that_ships_is_a_device_of_its_files_name_with_its_sources(name):
    device = load_device(name)
    assert device.name == name
    assert device.quantization is None or device.quantization.source
    assert device.channel_alignment == 1 or device.alignment_source


def test_the_cpu_of_this_machine_is_a_target():
    assert "cpu-ort" in names()


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(TargetError, match=r"no target 'gpu'[\s\S]*cpu-ort"):
        load_device("gpu")


def test_a_users_own_profile_is_loaded_by_its_path(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text((PROFILES / "cpu-ort.toml").read_text().replace("threads = 1", "threads = 2"))
    assert load_device(str(path)).threads == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("threads = ", "is not TOML"),
        ("name = 'x'", "summary: Field required"),
        ("thread = 1", "thread: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_profile_says_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "wrong.toml"
    path.write_text(text)
    with pytest.raises(TargetError, match=message):
        load_device(str(path))


def test_a_profile_that_is_missing_is_named(tmp_path):
    with pytest.raises(TargetError, match=r"nowhere\.toml"):
        load_device(str(tmp_path / "nowhere.toml"))
