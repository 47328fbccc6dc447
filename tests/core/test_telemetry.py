"""Telemetry is off in every process of kdc's before a library is imported, on devices too."""

import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from kdc.core.telemetry import MODULE, VARIABLES
from targets.remote.bundle import bundle

ROOT = Path(__file__).parents[2]
STATE = f"""
import json, os, sys
absent = sys.modules.get({MODULE!r}, "there") is None
heavy = sorted({{"onnxruntime", "openvino", "torch"}} & set(sys.modules))
print(json.dumps([{{name: os.environ.get(name) for name in {list(VARIABLES)!r}}}, absent, heavy]))
"""
# Where a process of kdc's begins: the command line, the interface from Python, what measures, what shares a training, what
# looks at a model apart, what converts, and a runtime by itself.
STARTS = (
    "kdc", "kdc.cli.main", "kdc.driver.member", "kdc.driver.trials", "targets.worker", "targets.node_runs",
    "targets.sustained_run", "targets.litert_convert", "targets.onnxruntime", "targets.openvino", "passes",
    "targets.remote.agent",
)  # fmt: skip


def without_variables():
    return {name: value for name, value in os.environ.items() if name not in VARIABLES}


def state(code, **options):
    done = subprocess.run(
        [sys.executable, "-c", code + STATE],
        capture_output=True,
        text=True,
        check=True,
        env=without_variables(),
        **options,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("module", ["kdc", "targets", "passes"])
def test_an_import_of_any_package_turns_it_off_and_imports_nothing_heavy(module):
    assert state(f"import {module}") == [dict(VARIABLES), True, []]


@pytest.mark.parametrize("module", STARTS)
def test_it_is_off_before_a_process_imports_a_library(module):
    """The first import of onnxruntime or openvino is where it would be too late."""
    hook = f"""
import importlib.abc, os, sys
class Gate(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name in ("onnxruntime", "openvino", "nncf", "accelerate"):
            assert os.environ.get("ORT_DISABLE_TELEMETRY") == "1", name
            assert sys.modules.get({MODULE!r}, "there") is None, name
sys.meta_path.insert(0, Gate())
import {module}
"""
    assert state(hook)[:2] == [dict(VARIABLES), True]


def test_a_value_that_the_user_set_to_leave_it_on_is_overruled(tmp_path):
    assert state("import os; os.environ['ORT_DISABLE_TELEMETRY'] = '0'; import kdc")[0] == dict(VARIABLES)


def test_what_the_users_program_has_imported_before_stays_its_own():
    code = f"import sys; sys.modules[{MODULE!r}] = mine = type(sys)({MODULE!r}); import kdc; "
    code += f"assert sys.modules[{MODULE!r}] is mine"
    assert state(code)[1] is False


def test_openvinos_converter_uses_its_stub():
    pytest.importorskip("openvino")
    code = "import kdc, openvino\nfrom openvino.tools.ovc import telemetry_utils\n"
    code += "assert telemetry_utils.tm.__name__ == 'openvino.tools.ovc.telemetry_stub', telemetry_utils.tm\n"
    assert state(code)[1] is True


def test_the_agent_on_a_device_turns_it_off_before_it_imports_its_runtime(tmp_path):
    """Its own main file is the first that runs there: it may import no more than numpy before."""
    with zipfile.ZipFile(io.BytesIO(bundle("targets.onnxruntime"))) as archive:
        archive.extractall(tmp_path)
    main = (tmp_path / "__main__.py").read_text()
    assert "onnxruntime" not in main
    for module in ("targets.worker", "targets.remote.agent", "targets.onnxruntime"):
        code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import {module}, kdc; "
        code += f"assert kdc.__file__.startswith({str(tmp_path)!r})"
        assert state(code)[:2] == [dict(VARIABLES), True]


def test_the_host_loop_that_ships_turns_onnxruntimes_off():
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(ROOT / "targets")!r})
import run_cascade
try:
    run_cascade._session(Path("none.onnx"), {{}}, 1)
except Exception:
    pass
"""
    assert state(code)[0]["ORT_DISABLE_TELEMETRY"] == "1"
