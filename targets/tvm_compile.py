"""The process that TVM's compiler runs in: `python tvm_compile.py MODEL.onnx LIBRARY.so`. It imports nothing of kdc's.

A process of its own, because the compiler is another library than the one that runs what it made: a process loads one of
the two, and the compiler loads torch besides.
"""

from __future__ import annotations

import os
import sys


def compile_library(model: str, library: str) -> None:
    """Compile an ONNX file for this machine's processor, free sizes left free, weights inside."""
    os.environ.pop("TVM_USE_RUNTIME_LIB", None)  # which would leave the compiler out
    import onnx
    import tvm
    from tvm.relax.frontend.onnx import from_onnx

    module = from_onnx(onnx.load(model), keep_params_in_input=False)
    built = tvm.compile(module, target=tvm.target.Target.from_device(tvm.cpu()))
    built.export_library(library)


if __name__ == "__main__":
    try:
        compile_library(*sys.argv[1:])
    except Exception as error:  # TVM's errors share no base of their own, and bring C++ traces
        said = [line for line in str(error).strip().splitlines() if line.strip()]
        print(f"{type(error).__name__}: {said[0] if said else 'no message'}", *said[-3:][1:], sep="\n", file=sys.stderr)
        sys.stderr.flush()
        os._exit(1)
