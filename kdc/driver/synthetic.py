"""The training split of a recipe without one: synthesised from its teacher once, and stored."""

from __future__ import annotations

import torch
from safetensors.torch import load_file
from torch import nn

from kdc.core.artifact import Artifact
from kdc.core.data import Split
from kdc.core.observe import Emit
from kdc.core.store import Parts, Store, key_of
from kdc.core.weights import save_weights
from kdc.distill.synthesis.settings import Synthesis
from kdc.distill.synthesis.synthesise import Synthetic, synthesise
from kdc.driver.sources import digests, versions

STEP, SAMPLES = "synthetic", "samples.safetensors"


def synthetic(
    teacher: Artifact[nn.Module], builder: Parts, settings: Synthesis, seed: int, store: Store | None, emit: Emit
) -> Synthetic:
    """The samples, from the store or made now. Those of a synthesis that was killed are in its work folder.

    Args: teacher: of outputs [batch, classes]. builder: what its code makes of it, as parts of the key. store: None:
        nothing is stored.
    """
    classes = int(teacher.outputs[0].shape[1])
    if store is None:
        return synthesise(teacher.model, teacher.inputs, classes, settings, seed, None, emit)
    parts = {
        "teacher": teacher.digest(),
        **builder,
        "inputs": [spec.model_dump(mode="json") for spec in teacher.inputs],
        "settings": settings.model_dump(mode="json"),
        "seed": seed,
        "source": digests(synthesise.__module__),
        "libraries": versions(("torch",)),
        "threads": torch.get_num_threads(),
    }
    key = key_of(parts)
    entry = store.find(STEP, key)
    if entry is None:
        made = synthesise(teacher.model, teacher.inputs, classes, settings, seed, store.work(key), emit)
        tensors = {f"inputs/{index}": tensor for index, tensor in enumerate(made.split.inputs)}
        tensors["labels"] = made.split.labels
        entry = store.write(STEP, parts, {"notes": made.notes}, {SAMPLES: lambda path: save_weights(tensors, path)})
    stored = load_file(entry.file(SAMPLES))
    inputs = tuple(stored[f"inputs/{index}"] for index in range(len(teacher.inputs)))
    return Synthetic(Split(inputs, stored["labels"]), tuple(entry.record["notes"]))


def told_of(given: set[str]) -> tuple[str, ...]:
    """What accuracy means in a run whose training split is synthetic; `given`: the names of the splits that are real."""
    judged = [name for name in ("validation", "test") if name not in given]
    if not given:
        return ("accuracy is agreement with the teacher on synthetic samples; no real data was given",)
    return tuple(
        f"accuracy on the {name} split is agreement with the teacher on synthetic samples: no real one was given"
        for name in judged
    )
