"""Device profiles: those that ship in `targets/profiles`, and a user's own, as TOML."""

from __future__ import annotations

import tomllib
from pathlib import Path

from pydantic import ValidationError

from kdc.core.device import Device
from kdc.core.errors import TargetError
from targets.remote.address import parse

PROFILES = Path(__file__).parent / "profiles"


def names() -> tuple[str, ...]:
    """The names of the devices that ship, sorted."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.toml")))


def load_device(name: str, address: str | None = None) -> Device:
    """A device by its name, or from a user's own profile where `name` is a path that ends in .toml.

    Args: address: where it is measured, instead of the profile's own.

    Raises: TargetError where there is no such device, its profile does not hold what a Device needs, or the address is
    none.
    """
    device = _load(name)
    if address is not None:
        device = device.model_copy(update={"address": address})
    if device.address is not None:
        parse(device.address)
    return device


def _load(name: str) -> Device:
    if name.endswith(".toml"):
        return _read(Path(name))
    if name not in names():
        raise TargetError(
            f"there is no target {name!r}",
            do=f"known targets: {', '.join(names())}; or give the path of a .toml profile",
        )
    return _read(PROFILES / f"{name}.toml")


def _read(path: Path) -> Device:
    try:
        return Device.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise TargetError(f"{path}: cannot be read: {error.strerror}", do="check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TargetError(f"{path}: is not TOML: {error}") from error
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'profile'}: {e['msg']}" for e in error.errors()]
        raise TargetError(f"{path}: is not a device profile: " + "; ".join(lines)) from error
