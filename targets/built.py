"""What `kdc build` makes of an ONNX file, in a folder of the user's: the target's files, and nothing of the user's lost."""

from __future__ import annotations

import os
from pathlib import Path

from kdc.core.device import Device
from kdc.core.errors import FolderError, TargetError
from kdc.core.placing import journal_of, place
from kdc.core.scratch import scratch_folder
from kdc.core.spec import DeviceFile
from kdc.core.writing import refuse_link
from targets.door.admit import admit
from targets.runtime import Runtime

JOURNAL = "kdc-build.json"


def build_into(out: Path, onnx_path: Path, runtime: Runtime, device: Device, *, force: bool = False) -> DeviceFile:
    """Build an ONNX file into a folder, which is made; a file of `out` that kdc did not write there stays as it is.

    Args: force: overwrite such a file, too.
    Raises: TargetError where the file is not admitted (see `targets.door.admit`), or the target cannot have this model;
        FolderError where `out` is a link or a file, or something of the user's stands in the way.
    """
    admit(onnx_path)
    refuse_link(out, "--out")
    if os.path.lexists(out) and not out.is_dir():
        raise FolderError(f"--out {out} is a file", do="name a folder")
    journal = out / JOURNAL
    written = journal_of(journal)
    if written is None and os.path.lexists(journal) and not force:
        raise FolderError(f"{journal} is not what kdc wrote", do="move it away, or overwrite it with --force")
    with scratch_folder("build") as folder:
        scratch = folder.resolve()
        built = runtime.build(onnx_path, scratch, device)
        files = {}
        for path in runtime.files(built):
            if not path.resolve().is_relative_to(scratch):
                raise TargetError(f"{onnx_path}: {device.runtime} would write {path.name} outside --out")
            files[path.resolve().relative_to(scratch).as_posix()] = path
        try:
            out.mkdir(parents=True, exist_ok=True)
            place(out, files, journal, written or {}, force=force)
        except OSError as error:
            raise FolderError(
                f"--out {out} cannot be written: {error.strerror}", do="name a folder of your own"
            ) from error
        return DeviceFile(out / built.path.resolve().relative_to(scratch), built.runtime, built.graph)
