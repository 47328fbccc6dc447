"""Group membership beside an independent implementation: torch-pruning (Fang et al. 2023, arXiv:2301.12900)."""

import warnings

import pytest
import torch

tp = pytest.importorskip("torch_pruning")


@pytest.mark.parametrize("name", ["Plain", "ResNet", "DenseNet", "InvertedResidual", "VGG"])
def test_the_layers_that_lose_channels_together_are_those_of_torch_pruning(zoo, name):
    known = zoo(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reference = tp.DependencyGraph().build_dependency(known.model, example_inputs=torch.randn(2, 3, 16, 16))
        names = {module: path for path, module in known.model.named_modules()}
        for group in known.graph.groups:
            if not group.prunable:
                continue
            module = known.model.get_submodule(group.name)
            theirs = reference.get_pruning_group(module, tp.prune_conv_out_channels, idxs=[0])
            layers = {
                names[dep.target.module]
                for dep, _ in theirs
                if dep.handler.__name__ in ("prune_out_channels", "prune_depthwise_conv_out_channels")
                and isinstance(dep.target.module, (torch.nn.Conv2d, torch.nn.Linear))
            }
            # a depthwise layer that makes several channels of each is unknown there, and is passed as if it were dense
            assert layers == set(group.layers) - {"multiplier"}
