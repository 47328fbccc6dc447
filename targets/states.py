"""Which outputs of a streaming model are its state: what one call gives and the next call takes.

As typed (`--state OUT=IN`), or by the names: exporters name the two ends of a state alike but for a word that says which
end it is (`state_out` and `state_in`, `hn` and `h0`, `stateN` and `state`, `present.0` and `past.0`). Names alone join no
two ends of unlike shapes or types.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from kdc.core.errors import TargetError
from targets.runtime import Port

Names = tuple[tuple[str, str], ...]
"""Of states: the output, and the input that takes it at the next call."""

# Words that tell the ends of a state apart, and nothing else.
_OUT = frozenset({"out", "output", "next", "new", "present", "updated", "current", "cur", "final"})
_IN = frozenset({"in", "input", "prev", "previous", "past", "old", "last", "init", "initial"})
_STREAM = frozenset(
    {"audio", "chunk", "features", "frame", "samples", "signal", "speech", "wave", "waveform", "x", "y"}
)
_NONE = "none"


class State(NamedTuple):
    """One state: the places of its two ends among an engine's outputs and inputs."""

    output: int
    input: int


def parse_states(given: Sequence[str]) -> Names | None:
    """States from texts such as `hn=h0`; None where there are none, so that names decide; `none` says there are none.

    Raises: TargetError where a text is no pair, or an end stands in two of them.
    """
    if not given:
        return None
    if list(given) == [_NONE]:
        return ()
    pairs = []
    for text in given:
        output, equals, taken = (part.strip() for part in text.partition("="))
        if not (output and equals and taken):
            raise TargetError(
                f"--state {text}: is no output with an input",
                do="write it as `--state OUTPUT=INPUT`, or `--state none`",
            )
        pairs.append((output, taken))
    for end, names in zip(("output", "input"), zip(*pairs, strict=True), strict=True):
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise TargetError(f"--state: the {end} {twice[0]!r} stands in two pairs", do="name each end once")
    return tuple(pairs)


def states_of(inputs: Sequence[Port], outputs: Sequence[Port], given: Names | None) -> tuple[State, ...]:
    """The states of a model, in its outputs' order where names decide.

    Args: given: as `parse_states` gives them.

    Raises: TargetError where a name is unknown, the two ends of a given state do not fit, an end could belong to several
    by its name, or no input is left for the stream itself.
    """
    found = tuple(_by_name(inputs, outputs) if given is None else (_named(inputs, outputs, *pair) for pair in given))
    if len(found) == len(inputs):
        carried = ", ".join(f"{outputs[one.output].name}={inputs[one.input].name}" for one in found)
        raise TargetError(
            f"every input of the model is a state ({carried}), and none is left for the stream's chunks",
            do="name its states alone by --state OUTPUT=INPUT, or say `--state none`",
        )
    return found


def _named(inputs: Sequence[Port], outputs: Sequence[Port], output: str, taken: str) -> State:
    places = []
    for kind, name, ports in (("output", output, outputs), ("input", taken, inputs)):
        names = [port.name for port in ports]
        if name not in names:
            raise TargetError(
                f"--state {output}={taken}: the model has no {kind} {name!r}", do=f"its {kind}s: {', '.join(names)}"
            )
        places.append(names.index(name))
    state = State(*places)
    if not _fit(outputs[state.output], inputs[state.input]):
        raise TargetError(
            f"--state {output}={taken}: the output is {_shown(outputs[state.output])}, the input takes "
            f"{_shown(inputs[state.input])}",
            do="a state's two ends have one shape and one type: name others",
        )
    return state


def _by_name(inputs: Sequence[Port], outputs: Sequence[Port]) -> Iterator[State]:
    taken: dict[int, str] = {}
    for place, output in enumerate(outputs):
        stems = _stems(output.name, _OUT, "n")
        fitting = [
            index
            for index, port in enumerate(inputs)
            if stems & _stems(port.name, _IN, "0") and port.name != output.name and _fit(output, port)
        ]
        clash = [taken[index] for index in fitting if index in taken]
        if len(fitting) > 1 or clash:
            several = [inputs[index].name for index in fitting] if len(fitting) > 1 else [*clash, output.name]
            raise TargetError(
                f"by their names {', '.join(map(repr, several))} could be ends of one state",
                do="say which are: --state OUTPUT=INPUT for each state, or `--state none`",
            )
        if fitting:
            taken[fitting[0]] = output.name
            yield State(place, fitting[0])


def _stems(name: str, words: frozenset[str], last: str) -> set[str]:
    """What is left of a name without the words that say which end it is; and that without its `last`, which may say so too.

    Empty where nothing is left, or what is left names the stream: `input` and `output`, `audio_in` and `audio_out`.
    """
    parts = re.findall(r"[a-z]+|\d+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    kept = [part for part in parts if part not in words]
    if set(kept) <= _STREAM:
        return set()
    end = kept[-1].removesuffix(last) if not kept[-1].isdigit() or kept[-1] == last else kept[-1]
    return {stem for stem in ("_".join(kept), "_".join([*kept[:-1], *filter(None, [end])])) if stem}


def _fit(output: Port, taken: Port) -> bool:
    """Whether the one may be what the other takes: free sizes may turn out equal."""
    sizes = zip(output.shape, taken.shape, strict=False)
    return (
        output.dtype == taken.dtype
        and len(output.shape) == len(taken.shape)
        and all(given == wanted or isinstance(given, str) or isinstance(wanted, str) for given, wanted in sizes)
    )


def _shown(port: Port) -> str:
    return f"{port.dtype} [{', '.join(map(str, port.shape))}]"
