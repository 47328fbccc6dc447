"""The user's own Python: loaded by file path under a private name, called, and blamed by file and line when it raises.

A user's file can shadow nothing: its folder goes to the end of `sys.path`, so that kdc, the standard library and every
installed package are found before what lies beside it.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from kdc.core.errors import UserError
from kdc.core.imports import PROTECTED, files_of

_appended: list[str] = []  # the users' folders in `sys.path`, in their order there


@dataclass(frozen=True)
class UserCallable:
    """A callable of the user's, and the file that it was named in (which may import it from elsewhere)."""

    function: Callable[..., Any]
    file: Path | None

    def __call__(self, *positional: Any, **named: Any) -> Any:
        """The bare call; `call` blames the user's line when it raises."""
        return self.function(*positional, **named)


def load_callable(spec: str, base: Path, what: str, error: type[UserError]) -> UserCallable:
    """The callable that `spec` names.

    Args: spec: "path.py:name" (relative to `base`) or "package.module:name"; the name may be dotted.
        what: what it is for, as errors call it ("teacher").
        error: the type raised.
    Raises: `error` where there is no such file, module or name, it is not callable, or the file raises when it is run.
    """
    place, _, name = spec.rpartition(":")
    what = f"{what} {spec}"
    if not place or not name:
        raise error(f"{what}: expected path.py:name or package.module:name", do="name the file and the callable")
    file: Path | None
    if place.endswith(".py"):
        file = (base / place).resolve()
        if not file.is_file():
            raise error(f"{what}: there is no file {file}", do=f"mend the path; it is relative to {base.resolve()}")
        module = _load_file(file, what, error)
    else:
        module = _import(place, base, what, error)
        file = None if module.__file__ is None else Path(module.__file__).resolve()
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            _raise_missing(part, found, module, what, error)
        found = getattr(found, part)
    if not callable(found):
        raise error(
            f"{what}: {name!r} in {module.__file__} is a {type(found).__name__}; expected a function or a class",
            do="name what is to be called",
        )
    return UserCallable(found, file)


def call(
    function: Callable[..., Any], arguments: Mapping[str, Any] | tuple[Any, ...], what: str, error: type[UserError]
) -> Any:
    """What the user's callable returns for these arguments: by name (a mapping), or by position (a tuple).

    Raises: `error` naming the user's file and line and the exception, where the arguments do not fit or it raises.
    """
    named = dict(arguments) if isinstance(arguments, Mapping) else {}
    positional = () if isinstance(arguments, Mapping) else arguments
    inner = function.function if isinstance(function, UserCallable) else function
    file = file_of(function)
    try:
        signature = inspect.signature(inner)
    except (TypeError, ValueError):  # a callable written in C tells none
        signature = None
    if signature is not None:
        try:
            signature.bind(*positional, **named)
        except TypeError as problem:
            given = ", ".join(named) or f"{len(positional)} positional ones"
            raise error(
                f"{what}: it takes {signature} and was given {given}: {problem}",
                do="make the arguments in the recipe and the parameters of the callable agree",
            ) from problem
    if file is not None:
        _activate(file.parent)
    with blamed(what, error, file):
        return inner(*positional, **named)


@contextmanager
def blamed(what: str, error: type[UserError], file: Path | None) -> Iterator[None]:
    """The user's code that raises inside is named with its file and line: the last one in `file`, or in its folder.

    Raises: `error` for whatever was raised, but for an `error` itself and for Ctrl-C.
    """
    try:
        yield
    except error:
        raise
    except (Exception, SystemExit) as raised:  # a script that ends with sys.exit() would end kdc without a word
        where = _line_of(raised, file)
        reason = f"{type(raised).__name__}: {raised}".rstrip(": ")
        raise error(
            f"{what} raised at {where}: {reason}" if where else f"{what} raised {reason}",
            do="mend that line, or run it alone in Python to see the whole traceback",
        ) from raised


def source_fingerprint(function: Callable[..., Any]) -> str:
    """SHA-256 of the callable's file and of the modules beside it that it imports, however far down.

    Installed packages are not read: their versions stand for them. A callable without a source counts by its name.
    """
    sha = hashlib.sha256()
    file = file_of(function)
    if file is None:
        inner = function.function if isinstance(function, UserCallable) else function
        name = getattr(inner, "__qualname__", type(inner).__qualname__)
        sha.update(f"{getattr(inner, '__module__', None)}:{name}".encode())
        return sha.hexdigest()
    for label, path in files_of(file):
        content = path.read_bytes()
        sha.update(f"{label}\0{len(content)}\0".encode())
        sha.update(content)
    return sha.hexdigest()


def _load_file(file: Path, what: str, error: type[UserError]) -> ModuleType:
    """The file as a module; one name for one content, so that a teacher and its data in one file are run once."""
    content = hashlib.sha256(str(file).encode() + b"\0" + file.read_bytes()).hexdigest()[:16]
    name = f"_kdc_user_{file.stem}_{content}"
    _activate(file.parent)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up while the file still runs
    try:
        with blamed(what, error, file):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import(name: str, base: Path, what: str, error: type[UserError]) -> ModuleType:
    _activate(base.resolve())
    with blamed(what, error, None):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as missing:
            if missing.name is None or not f"{name}.".startswith(f"{missing.name}."):
                raise  # the module is there, and imports another that is not
            raise error(
                f"{what}: there is no module {missing.name!r}, neither installed nor in {base.resolve()}",
                do="install it, or name the file: path/to/file.py:callable",
            ) from missing


def _raise_missing(part: str, holder: Any, module: ModuleType, what: str, error: type[UserError]) -> None:
    names = [name for name, value in vars(holder).items() if callable(value) and not name.startswith("_")]
    own = [name for name in names if getattr(getattr(holder, name), "__module__", None) == module.__name__] or names
    close = difflib.get_close_matches(part, names, 1)
    have = f"it has {', '.join(sorted(own)[:10])}" if own else "it has no callables"
    raise error(
        f"{what}: there is no {part!r} in {module.__file__}; {have}",
        do=f"did you mean {close[0]!r}?" if close else "name one of them, or define it there",
    )


def file_of(function: Any) -> Path | None:
    """Where a function, a class, or an object's class is written; None where it is written in C."""
    if isinstance(function, UserCallable):
        return function.file
    inner: Any = inspect.unwrap(function)
    while hasattr(inner, "func"):  # functools.partial
        inner = inner.func
    if not (inspect.isroutine(inner) or inspect.isclass(inner)):
        inner = type(inner)
    try:
        found = inspect.getsourcefile(inner)
    except TypeError:  # written in C
        return None
    return Path(found).resolve() if found else None


def _line_of(raised: BaseException, file: Path | None) -> str | None:
    """The last line of the traceback in the user's file, else in its folder; without a file, the last line of all."""
    if isinstance(raised, SyntaxError) and raised.filename:
        return f"{raised.filename}:{raised.lineno}"
    frames = [
        frame
        for frame in traceback.extract_tb(raised.__traceback__)
        if not frame.filename.startswith("<") and frame.filename != __file__
    ]
    if file is not None:
        own = [frame for frame in frames if Path(frame.filename).resolve() == file]
        beside = [frame for frame in frames if Path(frame.filename).resolve().parent == file.parent]
        # What ends the program is looked for in the line itself, which may be in a module beside the file.
        frames = beside or own if isinstance(raised, SystemExit) else own or beside
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None


def _activate(folder: Path) -> None:
    """Append the folder to `sys.path`, before other users' folders: each one's `import net` means its own `net.py`."""
    place = str(folder)
    if place in sys.path and place not in _appended:
        return  # Python's own: the current folder, or PYTHONPATH
    if _appended[:1] == [place] and place in sys.path:
        return
    others = [name for name in _appended if name != place]
    for name, module in list(sys.modules.items()):
        source = getattr(module, "__file__", None)
        if source is None or "." in name or name.startswith("_kdc_user_") or name in PROTECTED:
            continue
        path = Path(source)
        home = path.parent.parent if path.name == "__init__.py" else path.parent
        if str(home) in others:
            for loaded in [n for n in sys.modules if n == name or n.startswith(f"{name}.")]:
                del sys.modules[loaded]
    for name in _appended:
        if name in sys.path:
            sys.path.remove(name)
    _appended[:] = [place, *others]
    sys.path.extend(_appended)
    importlib.invalidate_caches()
