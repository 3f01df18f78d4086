"""Exported files give the classifier's own probabilities at any batch size, and the probe tells what can't be."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from pipeline.core.errors import UserError
from pipeline.inference.graphs import Graph, load_graph
from pipeline.models import formats

SIZE, CLASSES, OPSET = 32, 5, 18


class Toy(nn.Module):
    """Preprocessing as eval does it, antialiased resize included, two convolutions and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.preprocess = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Resize((20, 20), antialias=True), v2.Normalize([0.5], [0.25])]
        )
        self.conv1, self.conv2 = nn.Conv2d(1, 8, 3, 2), nn.Conv2d(8, 8, 3, 2)
        self.norm, self.act, self.head = nn.BatchNorm2d(8), nn.Hardswish(inplace=True), nn.Linear(8, CLASSES)

    def features(self, images: Tensor) -> Tensor:
        x = self.preprocess(images.permute(0, 3, 1, 2))
        return self.conv2(self.act(self.norm(self.conv1(x)))).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return (10 * self.head(self.features(images))).softmax(1)


class FixedBatch(Toy):
    """As a graph, right at the traced batch size only."""

    def forward(self, images: Tensor) -> Tensor:
        if not torch.compiler.is_exporting():
            return super().forward(images)
        return self.head(self.features(images)).reshape(2, CLASSES).softmax(1)


class PythonBranch(Toy):
    """Decides in Python by the pixels' values, which no graph can hold."""

    def forward(self, images: Tensor) -> Tensor:
        if images.float().mean().item() > 100:
            return super().forward(images)
        return super().forward(255 - images)


class Unmappable(Toy):
    """An operator that ONNX has none for."""

    def forward(self, images: Tensor) -> Tensor:
        values = torch.special.bessel_j0(self.head(self.features(images)))
        return values.softmax(1)


@pytest.fixture(scope="module")
def toy() -> Toy:
    torch.manual_seed(0)
    return Toy().eval()


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (65, SIZE, SIZE, 1), dtype=np.uint8)


@pytest.fixture(scope="module")
def files(toy: Toy, faces: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("formats")
    program = formats.trace(toy, torch.from_numpy(faces[:2]))
    for fmt in formats.FORMATS:
        formats.write(program, folder / f"model.{fmt}", OPSET)
    return {fmt: folder / f"model.{fmt}" for fmt in formats.FORMATS}


@pytest.mark.parametrize("fmt", formats.FORMATS)
@pytest.mark.parametrize("batch", [1, 2, 7, 65])
def test_any_batch_agrees_with_the_classifier(
    toy: Toy, faces: np.ndarray, files: dict[str, Path], fmt: str, batch: int
) -> None:
    probs = load_graph(files[fmt])(faces[:batch])
    assert probs.shape == (batch, CLASSES)
    assert probs.dtype == np.float32
    with torch.inference_mode():
        np.testing.assert_allclose(probs, toy(torch.from_numpy(faces[:batch])), atol=1e-5)


def test_onnx_is_one_valid_file_with_a_free_batch(files: dict[str, Path]) -> None:
    onnx.checker.check_model(str(files["onnx"]), full_check=True)
    assert sorted(path.name for path in files["onnx"].parent.iterdir()) == ["model.onnx", "model.pt2"]
    model = onnx.load(files["onnx"])
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [OPSET]
    session = onnxruntime.InferenceSession(str(files["onnx"]))
    ((images,), (probs,)) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(uint8)", ["batch", SIZE, SIZE, 1])
    assert (probs.name, probs.type, probs.shape) == ("probabilities", "tensor(float)", ["batch", CLASSES])


@pytest.mark.parametrize("fmt", formats.FORMATS)
def test_files_name_no_path_of_this_machine(files: dict[str, Path], fmt: str) -> None:
    data = files[fmt].read_bytes()
    for path in (Path(__file__).parents[1], Path(torch.__file__).parent.parent, Path.home()):
        assert str(path).encode() not in data


@pytest.mark.parametrize("fmt", formats.FORMATS)
def test_equal_classifiers_give_equal_bytes(
    toy: Toy, faces: np.ndarray, files: dict[str, Path], fmt: str, tmp_path: Path
) -> None:
    example = faces[3:7] if fmt == "onnx" else faces[:2]  # pt2 keeps its example
    formats.write(formats.trace(toy, torch.from_numpy(example)), tmp_path / f"model.{fmt}", OPSET)
    assert (tmp_path / f"model.{fmt}").read_bytes() == files[fmt].read_bytes()


def test_the_classifier_is_left_as_it_is(faces: np.ndarray, capfd: pytest.CaptureFixture) -> None:
    classifier = Toy().train()
    assert formats.check_exportable(classifier, SIZE, 1, ["pt2", "onnx"], OPSET) == {"pt2": None, "onnx": None}
    assert classifier.training
    assert classifier.act.inplace
    assert capfd.readouterr() == ("", "")


def test_probe_tells_what_cannot_be_exported(capfd: pytest.CaptureFixture) -> None:
    branch = formats.check_exportable(PythonBranch(), SIZE, 1, ["pt2", "onnx"], OPSET)
    assert all(branch.values())
    only_pt2 = formats.check_exportable(Unmappable(), SIZE, 1, ["pt2", "onnx"], OPSET)
    assert only_pt2["pt2"] is None
    assert "bessel_j0" in only_pt2["onnx"]
    for reason in (*branch.values(), only_pt2["onnx"]):
        assert "\n" not in reason
        assert len(reason) <= 200
        assert str(Path(torch.__file__).parent) not in reason
    assert capfd.readouterr() == ("", "")


def test_probe_finds_a_graph_that_is_wrong_at_another_batch(
    toy: Toy, faces: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Path) -> Graph:
        run = load_graph(path)
        return lambda images: run(images) if len(images) < 7 else run(images[::-1].copy())

    monkeypatch.setattr(formats, "_open_graph", load)
    assert "batch 7" in formats.check_exportable(toy, SIZE, 1, ["onnx"], OPSET)["onnx"]


def test_check_exportable_opset_that_is_not_written(toy: Toy) -> None:
    """The exporter would fall back to 18 and say nothing."""
    assert formats.check_exportable(toy, SIZE, 1, ["onnx"], 20) == {"onnx": None}
    with pytest.raises(UserError, match=r"export\.opset: .* cannot write 40"):
        formats.check_exportable(toy, SIZE, 1, ["onnx"], 40)


def test_a_batch_frozen_by_the_network_is_reported() -> None:
    assert formats.check_exportable(FixedBatch(), SIZE, 1, ["pt2"], OPSET)["pt2"]


def test_one_line_takes_the_root_cause() -> None:
    banner = RuntimeError("A long banner\n\n")
    banner.__cause__ = KeyError("bad\nnews")
    assert formats.one_line(banner) == "KeyError: 'bad\\nnews'"
    assert formats.one_line(ValueError("\n in /usr/lib/python3/x.py:\n more")) == "ValueError: in x.py:"
    assert formats.one_line(ValueError()) == "ValueError"


@pytest.mark.slow
def test_bytes_are_equal_across_processes(tmp_path: Path) -> None:
    code = """
import sys, torch
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_formats import OPSET, SIZE, Toy
from pipeline.models import formats
torch.manual_seed(0)
toy, example = Toy().eval(), torch.zeros(2, SIZE, SIZE, 1, dtype=torch.uint8)
for fmt in formats.FORMATS:
    formats.write(formats.trace(toy, example), Path({folder!r}, "model." + fmt), OPSET)
"""
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
        text = code.format(tests=str(Path(__file__).parent), folder=str(folder))
        subprocess.run([sys.executable, "-c", text], check=True, cwd=Path(__file__).parents[2])
    for name in ("model.pt2", "model.onnx"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
