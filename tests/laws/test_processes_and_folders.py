"""Every temporary folder comes from one place, and every process that is started ends with the one that started it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted(path for top in ("kdc", "passes", "targets") for path in (ROOT / top).rglob("*.py"))

# A file without a name, a folder's path that is only read, and where a process of kdc's is told its folder.
TEMPORARY = {
    "kdc/core/scratch.py": {"mkdtemp", "gettempdir"},
    "targets/remote/line.py": {"TemporaryFile"},
    "targets/remote/agent.py": {"gettempdir"},
    "kdc/driver/trials.py": {"tempdir"},
}

# What is started, and why it does not outlive its parent.
STARTED = {
    "kdc/distill/launching.py": "kdc.driver.member asks for it itself",
    "targets/fresh.py": "targets.worker asks for it itself, targets.apart gives a tied command",
    "targets/converter.py": "tied",
    "targets/energy.py": "tied",
    "targets/emulation.py": "a program that ends by itself within 30 s",
    "targets/remote/line.py": "it ends with its standard input",
    "targets/remote/adb.py": "it ends by itself within 60 s",
    "targets/remote/agent.py": "it is only named there: targets.fresh starts it",
    "targets/site.py": "it is only named there: targets.fresh starts it",
}


def attributes(path: Path, module: str) -> set[str]:
    """What a file takes of a module."""
    tree = ast.parse(path.read_text())
    taken = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module
    }
    named = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == module
        for alias in node.names
    }
    return taken | named


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_temporary_folders_come_from_scratch_alone(path):
    assert attributes(path, "tempfile") <= TEMPORARY.get(str(path.relative_to(ROOT)), set())


def test_it_is_known_of_every_process_that_is_started_how_it_ends():
    starting = {
        str(path.relative_to(ROOT))
        for path in FILES
        if attributes(path, "subprocess") & {"Popen", "run", "call", "check_call", "check_output"}
        or attributes(path, "os") & {"system", "popen", "fork", "posix_spawn", "spawnv", "forkpty"}
    }
    assert starting == set(STARTED)
    for name, how in STARTED.items():
        assert how != "tied" or "tied(" in (ROOT / name).read_text()


def test_nothing_of_kdcs_opens_a_socket():
    """What listens is the libraries', told to stay on loopback; `kdc.distill.launching` only asks for interfaces' names."""
    for path in FILES:
        assert attributes(path, "socket") <= {"if_nameindex", "gethostname"}, path
        assert not attributes(path, "socketserver")
        assert not attributes(path, "http")
