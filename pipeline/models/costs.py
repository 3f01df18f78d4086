"""What an answer of a net takes: parameters and floating-point operations."""

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def count_costs(classifier: nn.Module, img_size: int, channels: int) -> dict[str, int]:
    """Count what one image of ``img_size`` px takes, by running one through a ``Classifier`` on the CPU.

    Returns ``parameters``, and ``flops`` of matrix products and convolutions, a multiply-add being two, as torch's
    counter has them; without ``flops`` where it cannot follow a net.
    """
    found = {"parameters": sum(parameter.numel() for parameter in classifier.parameters())}
    flops = count_flops(classifier, torch.zeros(1, img_size, img_size, channels, dtype=torch.uint8))
    return found if flops is None else found | {"flops": flops}


def count_flops(net: nn.Module, images: Tensor) -> int | None:
    """Operations that some images take, counted so; None where torch's counter cannot follow a net in eval mode."""
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            net(images)
    except Exception:  # the counter's hooks do not suit every net, and a count is not worth a trained model
        return None
    return int(counter.get_total_flops())
