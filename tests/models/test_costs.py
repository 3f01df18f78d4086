"""Costs: counts worked out by hand, and times of functions that take a known time."""

import time
from pathlib import Path

import pytest
import torch
from builders import write_exported
from torch import Tensor, nn

from pipeline.inference import graphs, latency
from pipeline.models import costs
from pipeline.tracking import bundles
from pipeline.tracking.store import connect, experiment_id


class Tiny(nn.Module):
    """8x8 grey images through a 3x3 convolution to 4 channels and a layer to 2 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images.permute(0, 3, 1, 2).float()).mean((2, 3))).softmax(1)


def test_counts_by_hand() -> None:
    net = Tiny().eval()
    state = torch.get_rng_state()
    # 8 * 8 places, 4 * 9 multiply-adds each; 4 * 2 in the layer.
    assert costs.count_costs(net, 8, 1) == {"parameters": 36 + 10, "flops": 2 * (64 * 36 + 8)}
    assert torch.equal(torch.get_rng_state(), state)


def test_a_net_that_cannot_be_followed_still_has_its_parameters() -> None:
    class Odd(Tiny):
        def forward(self, images: Tensor) -> Tensor:
            raise RuntimeError("no hooks here")

    assert costs.count_costs(Odd(), 8, 1) == {"parameters": 46}


def test_times_are_medians_taken_in_turns() -> None:
    order = []

    def model(name: str, seconds: float):
        def run() -> None:
            order.append(name)
            # One slow answer in five: a median does not mind, a mean would.
            time.sleep(0.05 if len(order) % 10 == 0 else seconds)

        return run

    quick, slow = latency.measure_ms([model("quick", 0.001), model("slow", 0.004)], rounds=10)
    assert 1 <= quick < 4 <= slow < 20
    assert order[2 * latency.WARM_UP :] == ["quick", "slow"] * 10


def test_a_bundle_is_opened_as_it_is_served(bright_bundle: Path, tmp_path: Path) -> None:
    assert latency.open_model(bright_bundle)().shape == (1, 2)
    assert graphs.served_file(bright_bundle) == ("onnx", bright_bundle / "model.onnx")
    with pytest.raises(FileNotFoundError):
        graphs.served_file(tmp_path)


def test_costs_go_onto_the_run(project: Path, tmp_path: Path) -> None:
    client = connect()
    run_id = client.create_run(experiment_id(client)).info.run_id
    cost = {"parameters": 46, "flops": 99, "size_bytes": 2_000_000}
    folder = write_exported(tmp_path / "bundle", run_id=run_id, cost=cost)
    bundles.log_bundle(folder, folder / "pyfunc", {"cost/latency_ms": 3.5})
    expected = {"cost/parameters": 46, "cost/flops": 99, "cost/size_mb": 2.0, "cost/latency_ms": 3.5}
    assert client.get_run(run_id).data.metrics == expected
