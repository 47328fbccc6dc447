"""The user's code: found, kept from shadowing anything, and blamed by its own file and line."""

import functools
import subprocess
import sys
from pathlib import Path

import pytest

from kdc.core.errors import DataError, ModelError
from kdc.core.usercode import call, load_callable, source_fingerprint


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def refused(folder: Path, spec: str, *parts: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_callable(spec, folder, "teacher", ModelError)
    message = str(caught.value)
    assert message.startswith(f"teacher {spec}")
    assert "\n  → " in message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"


def test_a_callable_is_loaded_by_file_and_called_with_named_arguments(tmp_path: Path):
    write(tmp_path, "net.py", "def build(width, depth=2):\n    return width * depth\n")
    build = load_callable("net.py:build", tmp_path, "teacher", ModelError)
    assert call(build, {"width": 4}, "teacher", ModelError) == 8
    assert call(build, (4, 3), "teacher", ModelError) == 12
    assert build(width=1) == 2


def test_a_callable_is_loaded_from_an_installed_module_by_a_dotted_name():
    made = load_callable("collections.abc:Mapping.get", Path.cwd(), "teacher", ModelError)
    assert made.function.__name__ == "get"


def test_a_package_in_the_base_folder_is_found(tmp_path: Path):
    write(tmp_path, "nets_of_mine/__init__.py", "")
    write(tmp_path, "nets_of_mine/small.py", "def build():\n    return 'small'\n")
    assert load_callable("nets_of_mine.small:build", tmp_path, "teacher", ModelError)() == "small"


def test_a_file_imports_what_lies_beside_it_and_each_folder_gets_its_own(tmp_path: Path):
    for name in ("one", "two"):
        write(tmp_path, f"{name}/shared_part.py", f"NAME = {name!r}\n")
        write(tmp_path, f"{name}/net.py", "import shared_part\n\ndef build():\n    return shared_part.NAME\n")
    for name in ("one", "two", "one"):
        build = load_callable(f"{name}/net.py:build", tmp_path, "teacher", ModelError)
        assert call(build, {}, "teacher", ModelError) == name


def test_an_import_that_happens_at_the_call_finds_its_own_folder(tmp_path: Path):
    for name in ("one", "two"):
        write(tmp_path, f"{name}/late_part.py", f"NAME = {name!r}\n")
        write(tmp_path, f"{name}/net.py", "def build():\n    import late_part\n    return late_part.NAME\n")
    one, two = (load_callable(f"{name}/net.py:build", tmp_path, "teacher", ModelError) for name in ("one", "two"))
    assert [call(build, {}, "teacher", ModelError) for build in (one, two, one)] == ["one", "two", "one"]


def test_a_users_files_shadow_neither_kdc_nor_the_standard_library_nor_an_installed_package(tmp_path: Path):
    for name in ("kdc", "passes", "targets", "json", "colorsys", "yaml"):
        write(tmp_path, f"{name}.py", "raise RuntimeError('shadowed')\n")
    write(
        tmp_path, "random.py", "import colorsys, json, random, yaml\nimport kdc.core, passes, targets\n\nbuild = dict\n"
    )
    code = (
        "import sys\nfrom pathlib import Path\nfrom kdc.core.errors import ModelError\n"
        "from kdc.core.usercode import load_callable\n"
        "load_callable('random.py:build', Path(sys.argv[1]), 'teacher', ModelError)\n"
        "print(Path(sys.path[-1]) == Path(sys.argv[1]).resolve(), sys.modules['random'].__file__)"
    )
    made = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    last, random_file = made.stdout.split()
    assert last == "True"
    assert str(tmp_path) not in random_file


def test_one_file_that_holds_teacher_and_data_is_run_once(tmp_path: Path):
    write(tmp_path, "both.py", "class Net: ...\n\ndef build():\n    return Net()\n\ndef load():\n    return Net\n")
    build = load_callable("both.py:build", tmp_path, "teacher", ModelError)
    load = load_callable("both.py:load", tmp_path, "data", DataError)
    assert isinstance(build(), load())


def test_a_file_that_changed_is_run_anew(tmp_path: Path):
    for value in (1, 2):
        write(tmp_path, "changing.py", f"def build():\n    return {value}\n")
        assert load_callable("changing.py:build", tmp_path, "teacher", ModelError)() == value


# what is refused


def test_a_missing_file_is_told_with_the_folder_it_was_looked_for_in(tmp_path: Path):
    refused(tmp_path, "no.py:build", f"there is no file {tmp_path.resolve() / 'no.py'}", "mend the path")


def test_a_name_without_a_callable_is_refused(tmp_path: Path):
    refused(tmp_path, "net.py", "expected path.py:name or package.module:name", "name the file and the callable")


def test_a_missing_name_is_told_with_those_that_are_there(tmp_path: Path):
    write(
        tmp_path, "net.py", "from pathlib import Path\n\ndef build_net(): ...\ndef other(): ...\ndef _hidden(): ...\n"
    )
    refused(tmp_path, "net.py:build_nett", "there is no 'build_nett'", "it has build_net, other", "mean 'build_net'?")


def test_a_name_that_is_no_callable_is_refused(tmp_path: Path):
    write(tmp_path, "net.py", "build = 3\n")
    refused(
        tmp_path, "net.py:build", "'build'", "is a int; expected a function or a class", "name what is to be called"
    )


def test_a_missing_module_is_told(tmp_path: Path):
    refused(
        tmp_path, "no_such_package.nets:build", "there is no module 'no_such_package'", "install it, or name the file"
    )


def test_a_module_that_imports_a_missing_one_is_blamed_by_its_line(tmp_path: Path):
    path = write(tmp_path, "needs_more.py", "\nimport no_such_package\n")
    refused(tmp_path, "needs_more:build", f"raised at {path}:2", "No module named 'no_such_package'")


def test_a_file_that_raises_when_it_is_run_is_blamed_by_its_line(tmp_path: Path):
    path = write(tmp_path, "net.py", "import json\n\njson.loads('{')\n")
    refused(tmp_path, "net.py:build", f"raised at {path}:3: JSONDecodeError", "mend that line")


def test_a_file_that_is_no_python_is_blamed_by_its_line(tmp_path: Path):
    path = write(tmp_path, "net.py", "x = 1\ndef build(:\n")
    refused(tmp_path, "net.py:build", f"raised at {path}:2: SyntaxError")


def test_a_file_that_leaves_python_is_blamed(tmp_path: Path):
    path = write(tmp_path, "net.py", "import sys\nsys.exit(3)\n")
    refused(tmp_path, "net.py:build", f"raised at {path}:2: SystemExit: 3")


def test_ctrl_c_in_the_users_code_stays_ctrl_c(tmp_path: Path):
    write(tmp_path, "net.py", "def build():\n    raise KeyboardInterrupt\n")
    build = load_callable("net.py:build", tmp_path, "teacher", ModelError)
    with pytest.raises(KeyboardInterrupt):
        call(build, {}, "teacher", ModelError)


def test_a_call_that_raises_is_blamed_by_the_last_line_of_the_users_file(tmp_path: Path):
    path = write(
        tmp_path, "net.py", "import json\n\ndef build():\n    return inner()\n\ndef inner():\n    json.loads('')\n"
    )
    build = load_callable("net.py:build", tmp_path, "data", DataError)
    with pytest.raises(DataError, match="JSONDecodeError") as caught:
        call(build, {}, "data net.py:build", DataError)
    assert f"data net.py:build raised at {path}:7: " in str(caught.value)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_call_that_raises_beside_the_named_file_is_blamed_there(tmp_path: Path):
    path = write(tmp_path, "real_net.py", "def build():\n    raise ValueError('x')\n")
    write(tmp_path, "net.py", "from real_net import build\n")
    build = load_callable("net.py:build", tmp_path, "teacher", ModelError)
    with pytest.raises(ModelError, match="ValueError: x") as caught:
        call(build, {}, "teacher", ModelError)
    assert f"raised at {path}:2" in str(caught.value)


def test_arguments_that_do_not_fit_are_told_beside_the_signature(tmp_path: Path):
    write(tmp_path, "net.py", "def build(width, *, depth=2): ...\n")
    build = load_callable("net.py:build", tmp_path, "teacher", ModelError)
    with pytest.raises(ModelError, match=r"takes \(width, \*, depth=2\) and was given wide: .*'width'") as caught:
        call(build, {"wide": 3}, "teacher", ModelError)
    assert "→ make the arguments in the recipe and the parameters of the callable agree" in str(caught.value)


# the fingerprint


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write(
        tmp_path,
        "net.py",
        "import part\nimport torch\n\ndef build():\n    from sub import deep\n    return deep, part\n",
    )
    write(tmp_path, "part.py", "from sub.deep import X\n")
    write(tmp_path, "sub/__init__.py", "")
    write(tmp_path, "sub/deep.py", "from . import sibling\nX = 1\n")
    write(tmp_path, "sub/sibling.py", "")
    write(tmp_path, "aside.py", "")
    return tmp_path


def fingerprint(folder: Path) -> str:
    return source_fingerprint(load_callable("net.py:build", folder, "teacher", ModelError))


@pytest.mark.parametrize("name", ["net.py", "part.py", "sub/__init__.py", "sub/deep.py", "sub/sibling.py"])
def test_the_fingerprint_changes_with_every_file_that_the_callable_imports(tree: Path, name: str):
    before = fingerprint(tree)
    (tree / name).write_text((tree / name).read_text() + "# changed\n")
    assert fingerprint(tree) != before


def test_the_fingerprint_does_not_change_with_other_files_nor_with_the_folders_name(tree: Path):
    before = fingerprint(tree)
    (tree / "aside.py").write_text("changed = 1\n")
    assert fingerprint(tree) == before
    moved = tree.rename(tree.with_name(f"{tree.name}-moved"))
    assert fingerprint(moved) == before


def test_the_fingerprint_covers_the_named_file_where_the_callable_is_imported_from_another(tmp_path: Path):
    write(tmp_path, "origin_net.py", "def build(): ...\n")
    for text in ("from origin_net import build\n", "from origin_net import build  # changed\n"):
        write(tmp_path, "net.py", text)
    first = fingerprint(tmp_path)
    write(tmp_path, "origin_net.py", "def build(): ...  # changed\n")
    second = fingerprint(tmp_path)
    write(tmp_path, "net.py", "from origin_net import build\n")
    assert len({first, second, fingerprint(tmp_path)}) == 3


def test_a_callable_without_a_source_has_the_fingerprint_of_its_name():
    assert source_fingerprint(len) == source_fingerprint(len) != source_fingerprint(sum)


def test_a_partial_and_a_callable_object_have_the_fingerprint_of_their_file():
    class Called:
        def __call__(self) -> None: ...

    whole = source_fingerprint(write)
    assert source_fingerprint(functools.partial(write, Path())) == whole == source_fingerprint(Called())
