"""`sys.exit` anywhere in the user's code is exit 2 with the user's line; from Python it is an error that can be caught."""

import sys

import pytest
from running_cases import copy_case

import kdc
from kdc.cli.main import _run
from kdc.core.errors import KdcError, UserError
from kdc.core.user_frames import exits_refused

FORWARD = "    def forward(s, x):\n"
EXITS = {
    "in forward": ("teacher.py", FORWARD, FORWARD + "        import sys; sys.exit(0)\n"),
    "in forward, in training mode": ("teacher.py", FORWARD, FORWARD + "        if s.training: raise SystemExit\n"),
    "in train": ("teacher.py", FORWARD, "    def train(s, mode=True):\n        exit()\n" + FORWARD),
    "in build": ("teacher.py", "    return Net()", "    import sys; sys.exit()"),
    "where the file is imported": ("teacher.py", "import torch\n", "import torch, sys\nsys.exit(0)\n"),
    "in a module beside it": ("teacher.py", "import torch\n", "import torch\nimport beside\n"),
    "in load": ("data.py", "    r = np", "    import sys; sys.exit(0)\n    r = np"),
    "of another exit code": ("data.py", "    r = np", "    import sys; sys.exit('no data')\n    r = np"),
}
DATASET = """
from torch.utils.data import Dataset
import sys, torch
class Ends(Dataset):
    def __len__(self): return 10
    def __getitem__(self, index):
        if index == 4: sys.exit(0)
        return torch.zeros(1, 12, 12), index % 4
def load():
    return {"train": Ends()}
"""


def plan(folder, monkeypatch, capsys):
    """`kdc plan` in this process: its exit code and what it says on standard error."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", ["kdc", "plan", "recipe.yaml"])
    code = _run(debug=False)
    return code, capsys.readouterr().err


@pytest.mark.parametrize("where", EXITS)
def test_an_exit_in_the_users_code_is_exit_2_with_its_line(tmp_path, monkeypatch, capsys, where):
    folder = copy_case("plain", tmp_path)
    name, old, new = EXITS[where]
    source = (folder / name).read_text()
    assert old in source
    changed = source.replace(old, new)
    (folder / name).write_text(changed)
    (folder / "beside.py").write_text("\nraise SystemExit(0)\n")
    file = folder / ("beside.py" if "beside" in where else name)
    line = next(i for i, text in enumerate(file.read_text().splitlines(), 1) if "exit" in text.lower())
    code, said = plan(folder, monkeypatch, capsys)
    assert code == 2
    assert f"{file}:{line}" in said
    assert "SystemExit" in said
    assert "Traceback" not in said


def test_an_exit_in_a_datasets_getitem_is_exit_2_with_its_line(tmp_path, monkeypatch, capsys):
    folder = copy_case("plain", tmp_path)
    (folder / "data.py").write_text(DATASET)
    code, said = plan(folder, monkeypatch, capsys)
    assert code == 2
    assert f"{folder / 'data.py'}:7: SystemExit: 0" in said


def test_from_python_it_is_raised(tmp_path, monkeypatch):
    folder = copy_case("plain", tmp_path)
    source = (folder / "teacher.py").read_text()
    (folder / "teacher.py").write_text(source.replace(FORWARD, FORWARD + "        import sys; sys.exit(0)\n"))
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"teacher\.py:\d+"):
        kdc.compress("recipe.yaml", "run")


def test_an_exit_in_a_callback_is_raised(tmp_path, monkeypatch):
    folder = copy_case("plain", tmp_path)
    monkeypatch.chdir(folder)

    def emit(event):
        sys.exit(0)

    with pytest.raises(UserError, match=r"test_user_exits\.py:\d+"):
        kdc.compress("recipe.yaml", "run", emit=emit)


def test_ctrl_c_goes_through():
    with pytest.raises(KeyboardInterrupt), exits_refused():
        raise KeyboardInterrupt


def test_errors_of_kdcs_own_go_through():
    with pytest.raises(KdcError, match="as it was"), exits_refused():
        raise KdcError("as it was")
