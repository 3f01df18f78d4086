"""What an answer of a net takes: parameters and floating-point operations."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def count(classifier: nn.Module, img_size: int, channels: int) -> dict[str, int]:
    """Count what one image takes, by running one through a classifier.

    Args:
        classifier: From uint8 images (B, H, W, C) to probabilities, in eval mode, on the CPU.
        img_size: Height and width of the image, px.
        channels: 1 or 3.

    Returns:
        ``parameters``, and ``flops`` of matrix products and convolutions, a multiply-add being two, as torch's counter
        has them; without ``flops`` where it cannot follow a net.
    """
    found = {"parameters": sum(parameter.numel() for parameter in classifier.parameters())}
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            classifier(torch.zeros(1, img_size, img_size, channels, dtype=torch.uint8))
    except Exception:  # the counter's hooks do not suit every net, and a count is not worth a trained model
        return found
    return found | {"flops": int(counter.get_total_flops())}
