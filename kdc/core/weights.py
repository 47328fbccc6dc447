"""Weights into a model and out of it: safetensors, or a PyTorch file of plain tensors. No pickle is executed."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from kdc.core.errors import DamagedError, ModelError
from kdc.core.writing import discard, is_plain_file, is_plain_folder, make_folder, write_bytes

NESTED = ("state_dict", "model", "model_state_dict")
"""Keys under which training scripts keep the state beside an optimizer's."""
_SHOWN = 10
_SUM = "sha256"  # in a checkpoint's metadata
_CONVERT = (
    "save plain tensors instead, where the model's code is at hand:\n"
    "    from safetensors.torch import save_file\n"
    '    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, "weights.safetensors")'
)


def load_weights(model: nn.Module, path: Path) -> None:
    """Fill the model with the weights in a .safetensors, .pt or .pth file; every one of its names must be there.

    Raises: ModelError for a file that cannot be read, that holds more than plain tensors, or that does not fit: which
        names are missing, unexpected or of another shape. The model is then as it was.
    """
    state = _read(path)
    own = model.state_dict()
    present = {(tensor.data_ptr(), tensor.shape) for name, tensor in own.items() if name in state}
    missing = [n for n, t in own.items() if n not in state and (t.data_ptr(), t.shape) not in present]  # tied: once
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name}: {list(state[name].shape)} in the file, {list(tensor.shape)} in the model"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if missing or unexpected or shapes:
        lines = [
            f"{path}: the weights do not fit the model",
            *_listed("missing from the file", missing),
            *_listed("not in the model", unexpected),
            *_listed("of another shape", shapes),
        ]
        raise ModelError("\n  ".join(lines), do=_hint(state, own))
    broken = {name: int((~torch.isfinite(t)).sum()) for name, t in state.items() if t.is_floating_point()}
    broken = {name: count for name, count in broken.items() if count}
    if broken:
        names = [f"{name} ({count} of {state[name].numel()})" for name, count in broken.items()]
        raise ModelError(
            "\n  ".join([f"{path}: weights that are NaN or infinite", *_listed("in", names)]),
            do="take a checkpoint from before the training diverged",
        )
    model.load_state_dict(state, strict=False)  # strict would ask for both names of a tied weight


def save_weights(state: Mapping[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write the tensors as safetensors: the file is whole or not there. Views and shared tensors are written out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    write_bytes(path, save(tensors, metadata))  # save_file would make it readable by its owner alone


def save_checkpoint(state: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors that `load_checkpoint` reads: with a SHA-256 of them and of the metadata, in the metadata."""
    make_folder(path.parent)
    if is_plain_folder(path):
        discard(path)
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state.items()}
    told = dict(metadata or {})
    write_bytes(path, save(tensors, {**told, _SUM: _digest(tensors, told)}))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """The tensors and the metadata of a checkpoint; None where there is none.

    Raises: DamagedError where it is not what was written.
    """
    if not os.path.lexists(path):
        return None
    if not is_plain_file(path):
        raise DamagedError(f"{path.name} is no file")
    try:
        with safe_open(path, "pt") as file:
            told = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - the file is no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise DamagedError(f"{path.name} cannot be read") from error
    if told.pop(_SUM, None) != _digest(tensors, told):
        raise DamagedError(f"{path.name} is not what was written")
    return tensors, told


def _digest(tensors: dict[str, Tensor], told: dict[str, str]) -> str:
    # Without metadata the same tensors are the same bytes; with it, its order is left to chance.
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode() + save(tensors)).hexdigest()


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ModelError(f"{path}: there is no such weights file", do="mend the path of teacher.weights")
    if path.suffix == ".safetensors":
        try:
            state: object = load_file(path)
        except (SafetensorError, OSError) as error:
            raise ModelError(
                f"{path} is no whole safetensors file: {error}", do="copy or save the file again"
            ) from error
    elif path.suffix in (".pt", ".pth"):
        state = _read_torch(path)
    else:
        raise ModelError(
            f"{path}: unknown kind of weights {path.suffix!r}; expected .safetensors, .pt or .pth", do=_CONVERT
        )
    return _state(state, path)


def _read_torch(path: Path) -> object:
    """A PyTorch file by torch's own reader for plain tensors, which refuses everything that would run code."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what it warns of, TorchScript and foreign pickles, it then refuses
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"Unsupported [^\n]*?(?= was not|\. |\n|$)", str(error))
        raise ModelError(
            f"{path} holds more than plain tensors{f' ({found.group()})' if found else ''}; "
            "a pickle can run any code, and kdc runs none",
            do=_CONVERT,
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        said = "" if isinstance(error, KeyError) else str(error).strip()
        reason = said.splitlines()[0].split(". ")[0] if said else type(error).__name__
        raise ModelError(
            f"{path} cannot be read as a PyTorch file of plain tensors: {reason}",
            do="copy the file again if it was cut off; else " + _CONVERT,
        ) from error


def _state(found: object, path: Path) -> dict[str, Tensor]:
    if isinstance(found, dict):
        for key in NESTED:
            if isinstance(found.get(key), dict):
                found = found[key]
                break
    if not isinstance(found, dict):
        raise ModelError(f"{path} holds a {type(found).__name__}; expected a mapping of names to tensors", do=_CONVERT)
    other = [f"{name} ({type(value).__name__})" for name, value in found.items() if not isinstance(value, Tensor)]
    if other or not found:
        raise ModelError(
            "\n  ".join([f"{path}: expected a mapping of names to tensors", *_listed("not a tensor", other)])
            if found
            else f"{path} is empty; expected a mapping of names to tensors",
            do=_CONVERT,
        )
    return {str(name): value for name, value in found.items()}


def _listed(what: str, names: Iterable[str]) -> list[str]:
    every = list(names)
    rest = f", ... and {len(every) - _SHOWN} more" if len(every) > _SHOWN else ""
    return [f"{len(every)} {what}: {', '.join(every[:_SHOWN])}{rest}"] if every else []


def _hint(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """A prefix on all names is the usual reason: DataParallel's "module.", Lightning's "model."."""
    for longer, shorter, verb in ((state, own, "strip"), (own, state, "add")):
        first = next(iter(longer), "").split(".")
        for depth in range(1, len(first)):
            prefix = ".".join(first[:depth]) + "."
            cut = [name.removeprefix(prefix) for name in longer if name.startswith(prefix)]
            if len(cut) == len(longer) and any(name in shorter for name in cut):
                side = "file" if longer is state else "model"
                return f"{verb} the prefix {prefix!r} that every name has in the {side}, and save the file again"
    return "take the weights of this very model, or mend teacher.arguments so that it is built as it was trained"
