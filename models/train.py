"""Train a reference teacher the way a user would, in plain PyTorch: `python models/train.py digits --epochs 40`.

The folder is named; its `teacher.py:build` and `data.py:load` are used, and `teacher.safetensors` is written there.
"""

import argparse
import importlib.util
import time
from pathlib import Path
from types import ModuleType

import torch
from safetensors.torch import save_file
from torch import nn


def module(path: Path) -> ModuleType:
    """The Python file at `path` as a module, without touching `sys.path`."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@torch.no_grad()
def accuracy(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent of the images that the model classifies right."""
    model.eval()
    right = sum(int((model(x).argmax(1) == y).sum()) for x, y in zip(images.split(500), labels.split(500), strict=True))
    return 100.0 * right / len(labels)


def main() -> None:
    """Train with SGD, one cycle of the learning rate, and bfloat16 where the processor is fast in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a folder beside this file: digits or fashion_mnist")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(__file__).parent / options.model
    torch.manual_seed(options.seed)
    splits = module(folder / "data.py").load()
    images, labels = (torch.as_tensor(array) for array in splits["train"])
    validation = tuple(torch.as_tensor(array) for array in splits["validation"])
    model = module(folder / "teacher.py").build().to(memory_format=torch.channels_last)
    steps = options.epochs * (len(labels) // options.batch)
    optimizer = torch.optim.SGD(model.parameters(), options.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, options.lr, steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(options.seed)
    for epoch in range(options.epochs):
        model.train()
        began = time.monotonic()
        order = torch.randperm(len(labels), generator=generator)
        for batch in order[: len(order) // options.batch * options.batch].split(options.batch):
            x = splits["augment"](images[batch], generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16):
                loss = nn.functional.cross_entropy(model(x).float(), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        seconds = time.monotonic() - began
        print(f"epoch {epoch + 1}: validation {accuracy(model, *validation):.2f} %, {seconds:.0f} s", flush=True)
    test = accuracy(model, *(torch.as_tensor(array) for array in splits["test"]))
    print(f"test {test:.2f} %")
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, folder / "teacher.safetensors")


if __name__ == "__main__":
    main()
