"""Operators: known to the file's opset or to the runtime, and in the form that their schema asks for."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import AttributeProto, NodeProto, TensorProto

from kdc.core.errors import TargetError
from targets.door.walk import SHOWN, named

_STANDARD = ("", "ai.onnx.ml", "ai.onnx.preview", "ai.onnx.preview.training")


def standard(name: str) -> str:
    """A domain's one name: ONNX's own has two."""
    return "" if name == "ai.onnx" else name


def check_operators(
    nodes: Sequence[NodeProto],
    versions: Mapping[str, int],
    functions: Collection[tuple[str, str]],
    domains: Collection[str],
    path: Path,
) -> None:
    """Every node's operator is known, and the node has its form.

    Args: nodes: of one graph or function, bodies included. versions: of operator sets, by domain. functions: those that
    the file defines itself, (domain, name). domains: whose operators the runtime knows.

    Raises: TargetError: for custom operators with how many nodes there are of each.
    """
    custom: Counter[str] = Counter()
    for node in nodes:
        domain = standard(node.domain)
        if (node.domain, node.op_type) in functions or domain in domains:
            continue
        if domain not in _STANDARD:
            custom[f"{domain}::{node.op_type}"] += 1
            continue
        if domain not in versions:
            raise TargetError(
                f"{path}: {named(node)} is of the operator set {domain or 'ai.onnx'!r}, whose version the file does not"
                " name",
                do="export the model again",
            )
        _check_standard(node, domain, versions, path)
    if custom:
        shown = ", ".join(f"{name} ({count} node{'s'[: count > 1]})" for name, count in custom.most_common(SHOWN))
        more = f" and {len(custom) - SHOWN} more" if len(custom) > SHOWN else ""
        raise TargetError(
            f"{path}: custom operators that the runtime does not know: {shown}{more}",
            do="export the model with standard operators, or with these as ONNX functions",
        )


def _check_standard(node: NodeProto, domain: str, versions: Mapping[str, int], path: Path) -> None:
    version = versions[domain]
    opset = f"opset {version}" if domain == "" else f"{domain} {version}"
    try:
        schema = onnx.defs.get_schema(node.op_type, version, domain)
    except onnx.defs.SchemaError as error:
        later = onnx.defs.has(node.op_type, domain=domain)
        if later:
            since = min(one.since_version for one in _schemas() if (one.domain, one.name) == (domain, node.op_type))
            mend = f"export the model for opset {since} or later"
        else:
            close = difflib.get_close_matches(node.op_type, [one.name for one in _schemas() if one.domain == domain], 1)
            mend = f"did its exporter mean {close[0]}?" if close else "export the model with standard operators"
        raise TargetError(f"{path}: {node.op_type!r} ({named(node)}) is no operator of {opset}", do=mend) from error
    if schema.deprecated:
        raise TargetError(
            f"{path}: {named(node)} is no operator of {opset} any more: it ended with version {schema.since_version}",
            do="export the model again for this opset, or for an earlier one",
        )
    _check_form(node, versions, path)


def _schemas() -> Sequence[onnx.defs.OpSchema]:
    return onnx.defs.get_all_schemas_with_history()


def _check_form(node: NodeProto, versions: Mapping[str, int], path: Path) -> None:
    """A node has as many inputs and outputs, and such attributes, as its operator takes."""
    context = onnx.checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    context.opset_imports = dict(versions)
    bare = NodeProto()
    bare.CopyFrom(node)
    # Bodies are looked at as graphs of their own, and a weight's bytes with the weights.
    bare.ClearField("attribute")
    for attribute in node.attribute:
        copy = bare.attribute.add()
        copy.CopyFrom(attribute)
        if attribute.type == AttributeProto.GRAPH:
            copy.g.Clear()
            copy.g.name = "body"
        if attribute.type == AttributeProto.TENSOR:
            copy.t.Clear()
            copy.t.data_type = TensorProto.FLOAT
            copy.t.dims.append(0)
    try:
        onnx.checker.check_node(bare, context)
    except (onnx.checker.ValidationError, ValueError, TypeError) as error:
        reason = (str(error).strip().splitlines() or ["its form is wrong"])[0]
        raise TargetError(f"{path}: {named(node)}: {reason}", do="export the model again") from error
