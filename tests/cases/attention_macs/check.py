"""Half the MACs of a model whose attention costs most: the share that pruning goes by, and that of the exported files."""
import json
import torch
from torch import nn
from kdc.core.artifact import Artifact
from kdc.core.spec import TensorSpec
from kdc.numerics.cost import count
from passes.export.lower import lower
from passes.prune.channels import ChannelGraph
from passes.prune.probe import probe
from passes.prune.importance import magnitude
from passes.prune.selection import Limits, Selector
from passes.prune.surgery import remove
class Net(nn.Module):
    def __init__(s):
        super().__init__(); s.embed = nn.Conv2d(3, 16, 1); s.qkv = nn.Linear(16, 48); s.out = nn.Linear(16, 16); s.head = nn.Linear(16, 5)
    def forward(s, x):
        x = s.embed(x).flatten(2).transpose(1, 2); n, t, _ = x.shape
        q, k, v = (p.view(n, t, 4, -1).transpose(1, 2) for p in s.qkv(x).chunk(3, -1))
        y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        return s.head((x + s.out(y.transpose(1, 2).reshape(n, t, -1))).mean(1))
torch.manual_seed(0)
m = Net().eval().requires_grad_(False); image = (TensorSpec(name="x", shape=("batch", 3, 16, 16)),)
def of_file(model): return count(lower(Artifact(model, image, (TensorSpec(name="y", shape=("batch", 5)),)), 18))[1]
g = probe(m, ChannelGraph.of(m, image), image)
kept = Selector(g, magnitude(m, g), Limits(1, 1, 0.9), "global").keep(0.5)
print(json.dumps({"teacher": {"prune": g.macs(g.without([])), "file": of_file(m)}, "student": {"prune": g.macs(kept), "file": of_file(remove(m, g, kept))}}))
