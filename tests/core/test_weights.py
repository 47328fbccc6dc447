"""Weights: what is loaded, what is refused and why, and that no pickle is ever executed."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from kdc.core.errors import ModelError
from kdc.core.weights import load_weights, save_weights


def net(seed: int = 0, width: int = 3) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 3)
        self.second.weight = self.first.weight


class Bomb:
    """A pickle that would make a file when it is executed."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


def equal(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def refused(model: nn.Module, path: Path, *parts: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_weights(model, path)
    message = str(caught.value)
    for part in (str(path), "\n  → ", *parts):
        assert part in message, f"{part!r} is not in: {message}"
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_a_torch_file_is_loaded_with_its_state_alone_or_beside_other_plain_values(tmp_path: Path, key: str | None):
    state = net(1).state_dict()
    torch.save(state if key is None else {key: state, "epoch": 3, "optimizer": {"lr": 0.1}}, tmp_path / "w.pt")
    model = net(2)
    load_weights(model, tmp_path / "w.pt")
    assert equal(model, net(1))


def test_safetensors_are_loaded(tmp_path: Path):
    save_file(net(1).state_dict(), tmp_path / "w.safetensors")
    model = net(2)
    load_weights(model, tmp_path / "w.safetensors")
    assert equal(model, net(1))


def test_a_tied_weight_may_stand_in_the_file_once(tmp_path: Path):
    model, other = Tied(), Tied()
    save_file({n: t for n, t in model.state_dict().items() if n != "second.weight"}, tmp_path / "w.safetensors")
    load_weights(other, tmp_path / "w.safetensors")
    assert equal(model, other)


def test_saved_weights_load_to_the_same_bits_shared_and_transposed_ones_too(tmp_path: Path):
    model = Tied()
    save_weights(model.state_dict(), tmp_path / "w.safetensors")
    other = Tied()
    load_weights(other, tmp_path / "w.safetensors")
    assert equal(model, other)
    matrix = torch.arange(6.0).reshape(2, 3)
    save_weights({"a": matrix.T, "b": matrix[:, 1]}, tmp_path / "views.safetensors")
    read = load_file(tmp_path / "views.safetensors")
    assert torch.equal(read["a"], matrix.T)
    assert torch.equal(read["b"], torch.tensor([1.0, 4.0]))


def test_a_saved_file_has_the_permissions_of_any_new_file(tmp_path: Path):
    (tmp_path / "any").touch()
    save_weights(net().state_dict(), tmp_path / "w.safetensors")
    assert (tmp_path / "w.safetensors").stat().st_mode == (tmp_path / "any").stat().st_mode


def test_equal_weights_are_saved_to_equal_bytes(tmp_path: Path):
    save_weights(net(1).state_dict(), tmp_path / "a.safetensors")
    save_weights(dict(reversed(net(1).state_dict().items())), tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_save_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    save_weights(net(1).state_dict(), tmp_path / "w.safetensors")
    before = (tmp_path / "w.safetensors").read_bytes()

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save_weights(net(2).state_dict(), tmp_path / "w.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]
    assert (tmp_path / "w.safetensors").read_bytes() == before


# what is refused


def test_a_pickle_of_code_is_refused_and_never_executed(tmp_path: Path):
    for name, dump in (
        ("zip.pt", torch.save),
        ("plain.pth", lambda value, path: path.write_bytes(pickle.dumps(value))),
    ):
        dump({"weight": Bomb(tmp_path / "executed")}, tmp_path / name)
        refused(net(), tmp_path / name, "holds more than plain tensors", "from safetensors.torch import save_file")
    assert not (tmp_path / "executed").exists()


def test_a_whole_pickled_model_is_refused_with_the_lines_that_convert_it(tmp_path: Path):
    torch.save(net(), tmp_path / "w.pt")
    refused(net(), tmp_path / "w.pt", "GLOBAL torch.nn.modules.container.Sequential", "save_file({name: t.contiguous()")


def test_torchscript_is_refused(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 3)), tmp_path / "w.pt")
    refused(net(), tmp_path / "w.pt", "cannot be read as a PyTorch file of plain tensors", "TorchScript")


def test_names_that_are_missing_or_too_many_are_listed(tmp_path: Path):
    state = net().state_dict()
    state["extra"] = state.pop("0.weight")
    save_file(state, tmp_path / "w.safetensors")
    refused(net(), tmp_path / "w.safetensors", "1 missing from the file: 0.weight", "1 not in the model: extra")


def test_shapes_that_do_not_fit_are_listed_with_both(tmp_path: Path):
    save_file(net(width=4).state_dict(), tmp_path / "w.safetensors")
    refused(net(), tmp_path / "w.safetensors", "0.weight: [4, 2] in the file, [3, 2] in the model", "of another shape")


def test_of_many_names_ten_are_shown_and_the_rest_counted(tmp_path: Path):
    save_file({f"layer{n:02}": torch.zeros(1) for n in range(13)}, tmp_path / "w.safetensors")
    refused(net(), tmp_path / "w.safetensors", "13 not in the model: layer00", "layer09, ... and 3 more")


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.encoder."])
def test_a_prefix_on_every_name_is_recognised(tmp_path: Path, prefix: str):
    save_file({prefix + name: tensor for name, tensor in net().state_dict().items()}, tmp_path / "w.safetensors")
    refused(net(), tmp_path / "w.safetensors", f"strip the prefix '{prefix}' that every name has in the file")


def test_a_prefix_that_the_file_lacks_is_recognised(tmp_path: Path):
    save_file(net().state_dict(), tmp_path / "w.safetensors")
    wrapped = nn.Module()
    wrapped.model = net()
    refused(wrapped, tmp_path / "w.safetensors", "add the prefix 'model.' that every name has in the model")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, value: float):
    state = net().state_dict()
    state["0.weight"][1, 1] = value
    save_file(state, tmp_path / "w.safetensors")
    refused(net(), tmp_path / "w.safetensors", "NaN or infinite", "0.weight (1 of 6)", "before the training diverged")


def test_a_missing_file_is_told(tmp_path: Path):
    refused(net(), tmp_path / "no.safetensors", "there is no such weights file", "mend the path")


def test_an_unknown_suffix_is_told_with_the_known_ones(tmp_path: Path):
    (tmp_path / "w.bin").write_bytes(b"")
    refused(net(), tmp_path / "w.bin", "unknown kind of weights '.bin'; expected .safetensors, .pt or .pth")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("part", [0, 0.5, 0.99])
def test_a_file_that_was_cut_off_is_told(tmp_path: Path, suffix: str, part: float):
    path = tmp_path / f"w.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(net().state_dict(), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(part * len(whole))])
    refused(net(), path, "whole safetensors" if suffix == "safetensors" else "cannot be read", "again")


@pytest.mark.parametrize(("value", "found"), [([1], "a list"), (torch.zeros(1), "a Tensor"), ({"a": 3}, "a (int)")])
def test_a_torch_file_of_something_else_is_told(tmp_path: Path, value: object, found: str):
    torch.save(value, tmp_path / "w.pt")
    refused(net(), tmp_path / "w.pt", found, "expected a mapping of names to tensors", "save_file")


def test_an_empty_state_is_told(tmp_path: Path):
    torch.save({}, tmp_path / "w.pt")
    refused(net(), tmp_path / "w.pt", "is empty")
