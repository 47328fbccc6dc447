"""Whether gradients reach the weights that the outputs depend on.

kdc trains students made of the teacher's own code, and ranks channels by gradients: a `torch.no_grad()` in forward() would
leave a backbone untrained and its channels ranked by nothing, without a word.
"""

from __future__ import annotations

import ast
import copy
import sys
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.utils import _pytree as pytree

from kdc.core.errors import ModelError
from kdc.core.user_frames import user_lines
from kdc.driver.forward_record import Tensors, Watching

SEED = 7  # of what is random in training mode
DETACHES = ("detach", "detach_", "__get__")  # `x.data` is torch's getter
SWITCHES = ("no_grad", "inference_mode", "set_grad_enabled")
DETACHED_SHARE = 0.1  # of the layers' weights; what detach() keeps from less than that is taken as meant
_LAYERS = (_ConvNd, nn.Linear, nn.RNNBase, nn.MultiheadAttention)
_NAMED = 4  # weights that a message names


@dataclass
class _Seen:
    """What one forward did: the user's lines of the first call without gradients, and of the first that cut them off."""

    without: list[tuple[str, int]] | None = None
    of_weight: bool = False
    inference: bool = False
    cut: list[tuple[str, int]] | None = None


def check_gradients(model: nn.Module, samples: Tensors, where: str) -> None:
    """Look for weights that get no gradient, and whose gradient is not zero once forward() is run without its switches.

    In evaluation mode, in which channels are ranked, and in training mode. Weights that decide through `argmax` alone,
    that forward() freezes by `requires_grad_(False)`, or that it detaches by themselves are not meant.

    Args: model: its structure and values are left as they are. samples: one tensor [batch, ...] for each of its inputs.
        where: how messages call the model.
    Raises: ModelError that names the weights and the user's line.
    """
    for training in (False, True):
        seen = _Seen()
        reached = _reached(model, samples, training, _watching(seen))
        if seen.without is not None:
            lost = _lost(reached, _reached(model, samples, training, _lifting(detaches=False)))
            if lost:
                raise _refused(where, lost, len(reached), seen.without, seen.inference)
        if seen.cut is not None:
            lost = _lost(reached, _reached(model, samples, training, _lifting(detaches=True)))
            if _share_of_layers(model, lost) > DETACHED_SHARE:
                raise _cut_off(where, lost, len(reached), seen.cut)


def _reached(model: nn.Module, samples: Tensors, training: bool, watch: Callable[..., Any]) -> dict[str, str]:
    """Of each weight by its name, what gradient it gets: "none", "zero" or "some"; {} where that cannot be found out."""
    tried = copy.deepcopy(model)
    tried.train(training)
    weights = {name: weight for name, weight in tried.named_parameters() if weight.is_floating_point()}
    for weight in weights.values():
        weight.requires_grad_(True)
        weight.grad = None
    inputs = tuple(tensor.clone() for tensor in samples)
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own advice, of checkpointing for one
        torch.manual_seed(SEED)
        try:
            outputs = Watching(tried, watch)(*inputs)
            if isinstance(outputs, torch.Tensor) and outputs.requires_grad:
                # Random weights: the sum of a softmax's outputs has no slope.
                torch.autograd.backward((outputs * torch.randn(outputs.shape)).sum())
        except RuntimeError as error:  # what inference mode made cannot be gone back through
            if "nference" not in str(error):
                return {}
        except Exception:  # a forward that fails in training mode alone is told where it is trained
            return {}
    return {name: _gradient(weight) for name, weight in weights.items()}


def _gradient(weight: nn.Parameter) -> str:
    if weight.grad is None:
        return "none"
    return "some" if bool(weight.grad.any()) else "zero"


def _lost(reached: dict[str, str], lifted: dict[str, str]) -> list[str]:
    return [name for name, gradient in reached.items() if gradient == "none" and lifted.get(name) == "some"]


def _watching(seen: _Seen) -> Callable[..., Any]:
    """Calls are made as they are; the first of each kind is remembered, best one that has a weight among its arguments."""

    def watch(function: Any, args: Any, kwargs: Any, module: str, run: Callable[[], Any]) -> Any:
        if _detaches(function, args) and seen.cut is None:
            seen.cut = [*user_lines(sys._getframe(2))]
        # The context's own call at its end is still without gradients.
        if not torch.is_grad_enabled() and not _is_switch(function):
            of_weight = any(isinstance(leaf, nn.Parameter) for leaf in pytree.tree_leaves((args, kwargs)))
            if seen.without is None or (of_weight and not seen.of_weight):
                seen.without = [*user_lines(sys._getframe(2))]
                seen.of_weight, seen.inference = of_weight, torch.is_inference_mode_enabled()
        return run()

    return watch


def _lifting(detaches: bool) -> Callable[..., Any]:
    """Every call is made with gradients; and `detach` gives its argument, if asked."""

    def watch(function: Any, args: Any, kwargs: Any, module: str, run: Callable[[], Any]) -> Any:
        if _is_switch(function) or _writes_into_weight(function, args):
            return run()
        if detaches and _detaches(function, args):
            return args[0]
        with torch.inference_mode(False), torch.enable_grad():
            return run()

    return watch


def _is_switch(function: Any) -> bool:
    return getattr(function, "__name__", "") == "_set_grad_enabled"


def _writes_into_weight(function: Any, args: Any) -> bool:
    """`weight.clamp_()` is allowed without gradients alone."""
    name = getattr(function, "__name__", "")
    writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
    return writes and bool(args) and isinstance(args[0], torch.Tensor) and args[0].requires_grad and args[0].is_leaf


def _detaches(function: Any, args: Any) -> bool:
    """Whether the call cuts off a value that was computed: what is detached by itself, as a weight is, is meant to be."""
    name = getattr(function, "__name__", "")
    if name not in DETACHES or (name == "__get__" and function != torch.Tensor.data.__get__):  # type: ignore[attr-defined]
        return False
    return isinstance(args[0], torch.Tensor) and args[0].grad_fn is not None


def _share_of_layers(model: nn.Module, lost: Iterable[str]) -> float:
    """Of the weights of convolutions, linear and recurrent layers and attention, how many are of these parameters."""
    sizes = {
        f"{name}.{own}" if name else own: parameter.numel()
        for name, module in model.named_modules()
        if isinstance(module, _LAYERS)
        for own, parameter in module.named_parameters(recurse=False)
    }
    return sum(sizes.get(name, 0) for name in lost) / max(1, sum(sizes.values()))


def _refused(where: str, lost: list[str], count: int, lines: list[tuple[str, int]], inference: bool) -> ModelError:
    switch, place = _switch(lines, "torch.inference_mode" if inference else "torch.no_grad")
    return ModelError(
        f"{where}: forward() runs without gradients ({switch}{place}): none reaches {_told(lost, count)}, and the outputs "
        "depend on them; such a student cannot be trained, nor its channels be ranked",
        do=f"take {switch} out of forward(): kdc takes no gradients where it needs none",
    )


def _cut_off(where: str, lost: list[str], count: int, lines: list[tuple[str, int]]) -> ModelError:
    place = f" at {lines[0][0]}:{lines[0][1]}" if lines else ""
    return ModelError(
        f"{where}: forward() cuts gradients off (detach() or .data{place}): none reaches {_told(lost, count)}, and the "
        "outputs depend on them; such a student cannot be trained, nor its channels be ranked",
        do="take detach() and .data out of forward()",
    )


def _told(lost: list[str], count: int) -> str:
    rest = ", ..." if len(lost) > _NAMED else ""
    return f"{len(lost)} of {count} parameters ({', '.join(lost[:_NAMED])}{rest})"


def _switch(lines: list[tuple[str, int]], name: str) -> tuple[str, str]:
    """What turned gradients off, and where: the innermost context or decorator around one of these lines."""
    for file, line in lines:
        found = _around(file, line)
        if found is not None:
            return found[1], f" at {file}:{found[0]}"
    return name, f" at {lines[0][0]}:{lines[0][1]}" if lines else ""


def _around(file: str, line: int) -> tuple[int, str] | None:
    """(line, name) of the innermost `with` or decorator around a line that names a switch; else of the last call before."""
    try:
        tree = ast.parse(Path(file).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    around: list[tuple[int, str]] = []
    before: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.With | ast.AsyncWith):
            given: list[ast.expr] = [item.context_expr for item in node.items]
        elif isinstance(node, ast.FunctionDef):
            given = node.decorator_list
            if node.lineno <= line <= (node.end_lineno or 0):
                calls = [one.value for one in ast.walk(node) if isinstance(one, ast.Expr) and one.lineno < line]
                before += [named for one in calls if (named := _named(one)) is not None]
        else:
            continue
        if min(node.lineno, *(one.lineno for one in given), node.lineno) <= line <= (node.end_lineno or 0):
            around += [named for one in given if (named := _named(one)) is not None]
    return max(around or before, default=None)


def _named(expression: ast.expr) -> tuple[int, str] | None:
    """(line, "torch.no_grad") of an expression that is such a switch, or a call of it."""
    inner = expression.func if isinstance(expression, ast.Call) else expression
    text = ast.unparse(inner)
    return (expression.lineno, text) if text.rpartition(".")[2] in SWITCHES else None
