"""Several devices: one process (rank) each, started by torchrun, talking through torch.distributed.

Gloo on the CPU, NCCL on CUDA. One rank alone is the usual case and needs no process group.
"""

import os
import sys
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from pipeline.core.signals import LAUNCHER
from pipeline.models import devices

# A rank that dies closes its connections and ends the others at once; this is for a host that falls silent.
TIMEOUT = timedelta(minutes=10)


class Ranks:
    """This process's place among those that train together."""

    def __init__(self) -> None:
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self.local = int(os.environ.get("LOCAL_RANK", 0))
        self.local_world = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # of this machine

    @property
    def main(self) -> bool:
        """Whether this is the rank that writes and prints."""
        return self.rank == 0

    def join(self, device: torch.device) -> None:
        """Meet the other ranks; call ``leave`` at the end."""
        if self.world > 1:
            own = device if devices.is_accelerator(device) else None  # NCCL connects at once, and to this one
            dist.init_process_group(devices.choose_backend(device), timeout=TIMEOUT, device_id=own)

    def leave(self) -> None:
        """Part from the other ranks."""
        if self.world > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def positions(self, batch_size: int) -> Tensor | None:
        """Places of a global batch that are this rank's, int64 (batch_size / world,); None for all of them.

        The places of a rank are a set that turning the batch round maps to itself, so that mixing a share with
        itself turned round mixes the same pairs as mixing the whole batch.
        """
        if self.world == 1:
            return None
        half = batch_size // self.world // 2
        front = torch.arange(self.rank * half, (self.rank + 1) * half)
        return torch.cat([front, batch_size - 1 - front.flip(0)])

    def any(self, *flags: bool) -> list[bool]:
        """Each flag, or-ed over the ranks."""
        if self.world == 1:
            return list(flags)
        raised = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return [bool(flag) for flag in raised.tolist()]

    def share(self, value: Any = None) -> Any:
        """The main rank's value, for all."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def total(self, value: Tensor | float) -> Tensor | float:
        """Sum over the ranks."""
        if self.world == 1:
            return value
        summed = torch.as_tensor(value, dtype=torch.float64).cpu()
        dist.all_reduce(summed)
        return summed

    def align(self, module: nn.Module) -> None:
        """Give all ranks the main one's buffers: each keeps batch statistics of its own share."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, src=0)

    def take_share(self, rows: np.ndarray) -> np.ndarray:
        """The rows that are this rank's to compute something of."""
        return rows[self.rank :: self.world]

    def gather(self, rows: np.ndarray, count: int) -> np.ndarray:
        """Put together what the ranks computed of ``count`` rows, each for its share."""
        if self.world == 1:
            return rows
        parts: list[Any] = [None] * self.world
        dist.all_gather_object(parts, rows)
        out = np.empty((count, *rows.shape[1:]), rows.dtype)
        for rank, part in enumerate(parts):
            out[rank :: self.world] = part
        return out


def launch(count: int, device: torch.device) -> None:
    """Become torchrun with so many ranks of this very stage, ``UserError`` if there are fewer devices.

    Returns only where there is nothing to start.
    """
    if count == 1 or "RANK" in os.environ:
        return
    devices.check_count(device, count)
    # Threads that fight for cores make ranks on a CPU slower than one rank.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    sys.stdout.flush()
    # Another process image: this one may hold memory of a device.
    os.execv(sys.executable, [sys.executable, "-m", "pipeline.train.distributed", str(count)])


def main() -> None:
    """Be torchrun of the train stage; end with the status of the rank that failed first, which said why."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    status = 0
    os.environ[LAUNCHER] = str(os.getpid())
    try:
        run.run(run.parse_args(["--standalone", "--nproc-per-node", sys.argv[1], "-m", "pipeline.train"]))
    except ChildFailedError as error:
        status = error.get_first_failure()[1].exitcode
    except SignalException as error:
        status = -error.sigval
    sys.exit(status if status >= 0 else 128 - status)  # as shells put a signal


if __name__ == "__main__":
    main()
