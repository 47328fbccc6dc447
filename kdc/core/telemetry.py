"""Telemetry of the libraries that kdc uses is off, in every process of kdc's: decided here, for all of them.

`kdc` and `targets` call `turn_off` when they are imported, and `passes` imports `kdc` first: so it is done before any of
their modules imports a library. The agent on a device is made of the same packages. The variables are inherited by the
processes that kdc starts.
"""

from __future__ import annotations

import os
import sys

VARIABLES = {
    # ONNX Runtime's Linux builds look up an event host and leave a device id and a database in the user's cache folder.
    "ORT_DISABLE_TELEMETRY": "1",
    # What Accelerate imports; it sends nothing by itself, and nothing that it calls shall.
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
# OpenVINO, its converter and nncf send events through this package, which asks a file in the user's home folder for
# consent and no environment variable. Without the package they use their own stubs that do nothing. Declining in the
# user's home folder would be a lasting change of what is the user's.
MODULE = "openvino_telemetry"


def turn_off() -> None:
    """Set the variables, and make the import of the telemetry package fail where it is not imported yet."""
    os.environ.update(VARIABLES)
    # None in sys.modules is Python's own way to say that a module cannot be imported.
    sys.modules.setdefault(MODULE, None)  # type: ignore[arg-type]
