"""Structured pruning: whole channels leave the tensors, through every layer that they pass."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from kdc.core.budget import Budget, within
from kdc.core.contract import Context, Contract, Decision, Fact, Pass
from kdc.core.device import Device
from kdc.core.observe import Kept as KeptEvent
from kdc.core.observe import Note
from kdc.distill.settings import Training

DEFAULT_KEEP_MACS = 0.25
LIMITS = ("latency_ms", "latency_ms_cold", "min_speedup", "size_mb", "macs")


class Kept(Decision):
    """The output channels that stay, by layer, for every layer that loses some; layers that share channels agree."""

    kept: dict[str, tuple[int, ...]]


class Prune(Pass[Kept]):
    """Remove whole channels that matter least, as many as the budget needs, and train what is left by distillation.

    Source: Fang et al. 2023, arXiv:2301.12900 (dependency groups).
    """

    kind: ClassVar[str] = "prune"
    libraries: ClassVar[tuple[str, ...]] = ("torch", "numpy")
    decision_type: ClassVar[type[Decision]] = Kept

    importance: Literal["taylor", "magnitude"] = Field(
        default="taylor",
        description="taylor: first-order change of the loss (Molchanov et al. 2019, arXiv:1906.10771); magnitude: L2 "
        "norm of the weights (Li et al. 2017, arXiv:1608.08710)",
    )
    scope: Literal["global", "layer"] = Field(
        default="global",
        description="global: channels of all layers compete, by their score over their group's mean (Fang et al. 2023, "
        "arXiv:2301.12900); layer: every layer keeps the same share",
    )
    keep_macs: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="share of the incoming model's multiply-accumulates that is kept; absent: the most that the "
        f"budget's latency, speed-up, size and MACs allow, {DEFAULT_KEEP_MACS} where it has none of them",
    )
    headroom: float = Field(
        default=0.1, ge=0, lt=1, description="share of every limit that is left free by the forecast"
    )
    keep_channels_min: int = Field(default=4, ge=1, description="no layer keeps fewer channels (all, if it has fewer)")
    max_layer_fraction: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="no layer loses a larger share of its channels, or a global rank could empty it",
    )
    alignment: int | None = Field(
        default=None, ge=1, description="kept channels are a multiple of this; absent: the device's channel_alignment"
    )
    samples: int = Field(default=1024, ge=1, description="of the training split, for taylor")
    batch: int = Field(default=16, ge=1, description="samples whose gradient is taken together, for taylor")
    training: Training = Field(default=Training(), description="of the pruned model")

    def contract(self, device: Device) -> Contract:
        """TORCH, FLOAT, FITTED and STATIC in; all of them still true after `tune`."""
        return Contract(requires=frozenset({Fact.TORCH, Fact.FLOAT, Fact.FITTED, Fact.STATIC}))

    def measures(self, budget: Budget) -> bool:
        """Whether the level is chosen by forecasts on the target."""
        return self.keep_macs is None and any(getattr(budget, name) is not None for name in LIMITS)

    def reads(self, budget: Budget) -> tuple[str, ...]:
        """The limits that set the level: those that ask for a forecast, and those that the forecast is held to."""
        if self.keep_macs is not None:
            return ()
        return (*LIMITS, "peak_memory_mb") if self.measures(budget) else LIMITS

    def structural(self) -> Prune:
        """Without the training."""
        return self.model_copy(update={"training": Training()})

    def training_epochs(self) -> float:
        """Those of its training."""
        return self.training.epochs

    def decide(self, artifact: Any, context: Context) -> Kept:
        """Follow the channels, score them on a copy, and keep the best within the level.

        Raises: ModelError where the model cannot be traced.
        """
        from passes.prune.channels import ChannelGraph
        from passes.prune.decision import frozen_summary, kept_channels, renormalized_summary
        from passes.prune.importance import magnitude, normalised, taylor
        from passes.prune.level import choose_level
        from passes.prune.probe import probe
        from passes.prune.selection import Limits, Selector
        from passes.prune.surgery import remove

        model = artifact.model
        timed = context.portion(2, 3)  # where time is limited: the training has the larger part of it
        graph = probe(model, ChannelGraph.of(model, artifact.inputs), artifact.inputs)
        stays = frozen_summary(graph)
        if stays is not None:
            context.emit(Note(stays))
        if not any(group.prunable for group in graph.groups):
            context.emit(Note("no layer of this model can be pruned; it stays as it is"))
            return Kept(kept={})
        if self.importance == "taylor":
            scores = taylor(model, graph, timed.portion(1, 1), samples=self.samples, batch=self.batch)
        else:
            scores = magnitude(model, graph)
        alignment = self.alignment or context.device.channel_alignment
        limits = Limits(alignment, self.keep_channels_min, self.max_layer_fraction)
        selector = Selector(graph, normalised(scores, graph), limits, self.scope)

        def meets(level: float) -> bool:
            candidate = artifact.with_model(remove(model, graph, selector.keep(level)))
            return within(context.forecast(candidate), context.budget, context.teacher_cost, self.headroom)

        level, met = self.keep_macs or DEFAULT_KEEP_MACS, True
        if self.measures(context.budget):
            needed = 0.0 if context.deadline is None else context.deadline.model_seconds
            level, met = choose_level(
                meets, lambda: timed.out_of_time("level", "the level was chosen by fewer forecasts", needed)
            )
        mask = selector.keep(level)
        share = graph.macs(mask) / max(graph.macs(graph.without([])), 1)
        if not met:
            context.emit(
                Note(f"even {share:.1%} of the multiply-accumulates is forecast to miss the budget's headroom")
            )
        elif share > level:
            context.emit(
                Note(f"{share:.1%} of the multiply-accumulates is the least these limits allow; asked {level:.1%}")
            )
        renormalized = renormalized_summary(graph, mask)
        if renormalized is not None:
            context.emit(Note(renormalized))
        kept = kept_channels(graph, mask)
        for layer, channels in kept.items():
            context.emit(KeptEvent(layer, len(channels), len(graph.axes[graph.layers[layer]])))
        return Kept(kept=kept)

    def apply(self, artifact: Any, decision: Kept) -> Any:
        """A copy of the model without the channels that the decision leaves out.

        Raises: ModelError where the decision does not fit the model, or what is left does not run.
        """
        from passes.prune.channels import ChannelGraph
        from passes.prune.decision import kept_units
        from passes.prune.probe import verify
        from passes.prune.surgery import remove

        graph = ChannelGraph.of(artifact.model, artifact.inputs)
        kept = kept_units(graph, decision.kept)
        pruned = remove(artifact.model, graph, kept)
        verify(artifact.model, pruned, graph, kept, artifact.inputs)
        return artifact.with_model(pruned)

    def tune(self, artifact: Any, context: Context) -> Any:
        """Distil the teacher into what is left."""
        from kdc.distill.loop import train

        return artifact.with_model(train(artifact.model, context, self.training))
