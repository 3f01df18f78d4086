"""Training speed of backbones on prepared faces, as a ratio to resnet18 in the same run.

Run: python benchmarks/backbones.py [NAME ...]   (after `dvc repro prepare`; needs a quiet machine)

One update is forward, backward and optimizer step on one constant batch, in float32, without augmentation. Nets are as
timm builds them; `--stem adapt` adapts them to small faces, which takes longer.
"""

import argparse
import statistics
import time

import budget
import torch
from torch import nn

from pipeline.core.dataset import load_prepared
from pipeline.core.params_file import load_params
from pipeline.models import model

PEER = "resnet18"
NAMES = [
    "face_resnet_s", "face_resnet_m", "face_resnet_l", "regnetx_002", "efficientnet_b0", "mobilenetv3_small_100",
    "mobilenetv4_conv_small", "convnext_atto", "vit_tiny_patch16_224", "mobilevit_xxs", "ghostnet_100",
    "swin_tiny_patch4_window7_224",
]  # fmt: skip


def images_per_s(name: str, stem: str, batch_size: int, updates: int) -> tuple[float, float, int]:
    """Median and spread (interquartile range) of img/s over single updates, and the net's parameters."""
    prepared = load_prepared()
    params = load_params().train.model_copy(update={"backbone": name, "backbone_args": {}, "stem": stem})
    spec = budget.plan(params, prepared)
    net = model.build_model(spec).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    size, channels = spec.preprocessing["input_size"], spec.preprocessing["in_chans"]
    images = torch.randn(batch_size, channels, size, size).to(memory_format=torch.channels_last)
    targets = torch.arange(batch_size) % len(spec.class_names)
    rates = []
    for update in range(updates + 2):
        start = time.perf_counter()
        nn.functional.cross_entropy(net(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if update >= 2:  # the first ones allocate
            rates.append(batch_size / (time.perf_counter() - start))
    low, median, high = statistics.quantiles(rates, n=4)
    return median, high - low, sum(parameter.numel() for parameter in net.parameters())


def main() -> None:
    """Print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME", help="timm names")
    parser.add_argument("--stem", choices=("keep", "adapt"), default="keep", help="(%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="images an update (%(default)s)")
    parser.add_argument("--updates", type=int, default=8, help="timed updates (%(default)s)")
    arguments = parser.parse_args()
    chosen = arguments.stem, arguments.batch_size, arguments.updates
    peer = images_per_s(PEER, *chosen)
    print(
        f"{torch.get_num_threads()} threads, batch {arguments.batch_size}, n = {arguments.updates} updates, "
        f"train.stem: {arguments.stem}\n"
    )
    print(f"| backbone | parameters, M | img/s (IQR) | of {PEER} |\n|---|---|---|---|")
    for name in [PEER, *arguments.names]:
        rate, spread, size = peer if name == PEER else images_per_s(name, *chosen)
        print(f"| {name} | {size / 1e6:.1f} | {rate:.0f} ({spread:.0f}) | {rate / peer[0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
