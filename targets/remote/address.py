"""Where a device is: `ssh://user@host[:port]` or `adb://serial`.

Behind it may stand `?python=PATH`, where the Python that has numpy and the runtime has another name than python3, and
`emulated=yes`, where the device's processor is emulated and cannot be seen to be; as in `ssh://pi@board?python=P&emulated=yes`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import parse_qsl, urlsplit

from kdc.core.errors import TargetError

FORMS = (
    "ssh://user@host[:port] or adb://serial, and ?python=/path/of/python3 behind it where a virtual environment is used"
)
# A name that begins with a dash would be read as an option by ssh and adb.
_NAME = re.compile(r"[A-Za-z0-9_.][A-Za-z0-9_.:%-]*")


@dataclass(frozen=True)
class Address:
    """A device's place. `host` is adb's serial number where `scheme` is adb; `port` and `user` are None where not given."""

    scheme: Literal["ssh", "adb"]
    host: str
    user: str | None = None
    port: int | None = None
    python: str = "python3"
    emulated: bool = False

    def __str__(self) -> str:
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        host = f"[{self.host}]" if self.scheme == "ssh" and ":" in self.host else self.host
        return f"{self.scheme}://{user}{host}{port}"


def parse(text: str) -> Address:
    """Read a device's address.

    Raises: TargetError where it has neither form.
    """
    try:
        parts = urlsplit(text)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        python = options.pop("python", "python3")
        address = replace(
            _address(parts.scheme, parts.netloc, python), emulated=_yes(options.pop("emulated", "no"), "emulated")
        )
    except ValueError as error:
        raise TargetError(f"{text!r} is no device's address: {error}", do=f"write {FORMS}") from error
    if options or parts.path.strip("/") or parts.fragment:
        extra = ", ".join([*options, *filter(None, (parts.path.strip("/"), parts.fragment))])
        raise TargetError(f"{text!r} is no device's address: it has {extra} beside the place", do=f"write {FORMS}")
    return address


def _address(scheme: str, place: str, python: str) -> Address:
    if not python or "\n" in python:
        raise ValueError("the name of its Python is empty")
    if scheme == "adb":
        return Address("adb", _name(place, "serial number"), python=python)
    if scheme != "ssh":
        raise ValueError("it begins with neither ssh:// nor adb://")
    parts = urlsplit(f"//{place}")
    if parts.password is not None:
        raise ValueError("a password cannot be given; ssh asks a key or an agent")
    user = None if parts.username is None else _name(parts.username, "user")
    return Address("ssh", _name(parts.hostname or "", "host"), user, parts.port, python)


def _yes(text: str, what: str) -> bool:
    if text not in ("yes", "no"):
        raise ValueError(f"{what} is {text!r}, neither yes nor no")
    return text == "yes"


def _name(text: str, what: str) -> str:
    if not _NAME.fullmatch(text):
        raise ValueError(f"{text!r} is no {what}")
    return text
