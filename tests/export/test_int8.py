"""The int8 version of a classifier: near the float one, offered only where it costs little accuracy, and served."""

import base64
from pathlib import Path

import numpy as np
import onnx
import pytest
import timm
import torch
from builders import seal_bundle, write_arrays, write_bundle

import pipeline.models.backbones  # noqa: F401  (registers our nets with timm)
from pipeline.core.dataset import load_prepared
from pipeline.core.errors import UserError
from pipeline.export import int8
from pipeline.inference.graphs import RUNTIMES, load_graph
from pipeline.inference.predictor import Predictor
from pipeline.models import formats, model
from pipeline.serve import batch, locate
from pipeline.tracking.pyfunc import build_pyfunc, example_picture

INT8 = RUNTIMES["int8"]
SIZE, CLASSES = 28, ["happy", "neutral", "sad"]


def smooth(count: int, seed: int) -> np.ndarray:
    """Images with structure, uint8 (N, S, S, 1)."""
    coarse = torch.rand(count, 1, 5, 5, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(0, 1)
    return (255 * images).byte().permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds ``model.onnx``, of a net whose last pool rounds 7 px up to 4, and ``prepared`` data that it labelled."""
    folder = tmp_path_factory.mktemp("int8")
    torch.manual_seed(0)
    preprocessing = {"eval": [{"ToDtype": {}}, {"Normalize": {"mean": [0.5], "std": [0.25]}}]}
    arguments = {"num_classes": 3, "in_chans": 1, "widths": [16, 32, 64], "depths": [1, 1, 1]}
    net = timm.create_model("face_resnet_s", **arguments).train()
    images = smooth(700, 0)
    with torch.no_grad():
        inputs = (torch.from_numpy(images[:256]).permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
        for _ in range(20):  # statistics for batch norm
            net(inputs)
        logits = net.eval()(inputs)
        net.fc.weight.mul_(2 / logits.std(0)[:, None])  # answers that differ, and no class that is rare
        net.fc.bias.sub_(net(inputs).mean(0))
    spec = model.ModelSpec("face_resnet_s", arguments, CLASSES, preprocessing)
    classifier = model.Classifier(net, spec)
    formats.write(formats.trace(classifier, torch.from_numpy(images[:2])), folder / "model.onnx", 18)
    targets = load_graph(folder / "model.onnx")(images).argmax(1)
    splits = {"train": (images[:300], targets[:300]), "val": (images[300:], targets[300:])}
    write_arrays(folder / "prepared", splits, CLASSES)
    return folder


@pytest.fixture(scope="module")
def offered(folder: Path) -> dict:
    return int8.offer_int8(load_prepared(folder / "prepared"), folder, 0.1)


def test_it_answers_nearly_as_the_float_one(folder: Path, offered: dict) -> None:
    """Labels are what the float net answers, so that accuracy is how often both agree."""
    assert offered["absent"] is None
    assert (offered["images"], offered["float_accuracy"]) == (400, 1.0)
    val = np.load(folder / "prepared" / "val.npy")
    expected = load_graph(folder / "model.onnx")(val)
    assert min(np.bincount(expected.argmax(1), minlength=3)) > 10
    got = load_graph(folder / INT8)(val)
    assert np.abs(got - expected).mean() < 0.06  # 0.28 where the pool's border is wrong
    for size in (1, 7):
        np.testing.assert_allclose(load_graph(folder / INT8)(val[:size]), got[:size], atol=1e-5)
    assert offered["accuracy"] == pytest.approx((got.argmax(1) == expected.argmax(1)).mean())
    assert offered["accuracy"] >= 0.9
    sizes = [(folder / name).stat().st_size for name in ("model.onnx", INT8)]
    assert offered["size_bytes"] == sizes[1] < 0.4 * sizes[0]
    assert b"/tmp" not in (folder / INT8).read_bytes()
    assert {path.name for path in folder.iterdir()} == {"model.onnx", INT8, "prepared"}


def test_all_is_in_integers_but_what_follows_the_pool_that_rounds_up(folder: Path, offered: dict) -> None:
    graph = onnx.load(folder / INT8).graph
    assert [node.op_type for node in graph.node].count("AveragePool") == 1  # the others are part of a convolution
    makers = {output: node.op_type for node in graph.node for output in node.output}
    fed = [makers[node.input[0]] for node in graph.node if node.op_type == "Conv"]
    assert (fed.count("DequantizeLinear"), len(fed)) == (9, 10)


def test_no_pair_of_products_overflows_16_bits(folder: Path, offered: dict) -> None:
    """So processors that add pairs in 16 bits give the answers of those that do not."""
    arrays = [onnx.numpy_helper.to_array(one) for one in onnx.load(str(folder / INT8)).graph.initializer]
    weights = [array for array in arrays if array.dtype == np.int8 and array.ndim > 1]
    assert len(weights) > 5
    assert max(np.abs(array.astype(int)).max() for array in weights) * 255 * 2 < 2**15


def test_equal_models_give_equal_bytes(folder: Path, offered: dict, tmp_path: Path) -> None:
    images = np.load(folder / "prepared" / "train.npy")
    int8.quantize(folder / "model.onnx", tmp_path / "again", images[int8.pick_rows(300, int8.CALIBRATION_IMAGES)])
    assert (tmp_path / "again").read_bytes() == (folder / INT8).read_bytes()


def test_what_costs_accuracy_is_left_out(
    folder: Path, offered: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An int8 net that answers at random costs most of the accuracy; one that can't be made costs nothing else."""
    prepared = load_prepared(folder / "prepared")
    (tmp_path / "model.onnx").write_bytes((folder / "model.onnx").read_bytes())

    def blind(source: Path, dest: Path, images: np.ndarray) -> None:
        quantize_really(source, dest, np.zeros_like(images))

    quantize_really = int8.quantize
    monkeypatch.setattr(int8, "quantize", blind)
    found = int8.offer_int8(prepared, tmp_path, 0.05)
    assert found["accuracy"] < 0.9
    assert found["absent"] == f"it costs {1 - found['accuracy']:.4f} of accuracy, and export.int8_drop is 0.05"

    def fail(source: Path, dest: Path, images: np.ndarray) -> None:
        dest.write_bytes(b"half")
        raise RuntimeError("no such operator")

    monkeypatch.setattr(int8, "quantize", fail)
    assert int8.offer_int8(prepared, tmp_path, 0.05) == {"absent": "RuntimeError: no such operator"}
    assert int8.offer_int8(prepared, tmp_path, None) == {"absent": "export.int8_drop is null"}
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
    (tmp_path / "model.onnx").unlink()
    assert "model.onnx, which is absent" in int8.offer_int8(prepared, tmp_path, 0.05)["absent"]


@pytest.fixture(scope="module")
def bundle(folder: Path, offered: dict, tmp_path_factory: pytest.TempPathFactory) -> Path:
    about = {"class_names": CLASSES, "preprocessing": {"img_size": SIZE, "channels": 1}}
    bundle = write_bundle(tmp_path_factory.mktemp("served") / "bundle", **about)
    for name in ("model.onnx", INT8):
        (bundle / name).write_bytes((folder / name).read_bytes())
    return seal_bundle(bundle, **about)


@pytest.fixture(scope="module")
def registered(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    dest = tmp_path_factory.mktemp("registered") / "model"
    build_pyfunc(bundle, dest)
    return dest


def test_it_is_served_on_demand_only(bundle: Path, registered: Path) -> None:
    """From a bundle and from what MLflow holds alike; the answers are those of the file itself."""
    png = example_picture({"img_size": SIZE})
    answers = {}
    for runtime in (None, "onnx", "int8"):
        (row,) = Predictor(bundle, runtime).predict_values([png])
        for place in (bundle, registered):
            predict = locate.open_predictor(locate.locate(str(place), runtime, trust=True), runtime=runtime)
            assert predict([base64.b64decode(png)]) == [row]
        answers[runtime] = row["probabilities"]
    assert answers[None] == answers["onnx"] != answers["int8"]


def test_batch_scores_with_it(bundle: Path, registered: Path, tmp_path: Path) -> None:
    import pandas as pd
    from PIL import Image

    (tmp_path / "faces").mkdir()
    images = smooth(20, 5)
    for i, image in enumerate(images):
        Image.fromarray(image[..., 0]).save(tmp_path / "faces" / f"{i:02d}.png")
    expected = load_graph(bundle / INT8)(images)
    for place in (bundle, registered):
        out = tmp_path / f"{place.name}.parquet"
        batch.score_pictures(tmp_path / "faces", out, str(place), batch.Settings(runtime="int8", trust=True))
        got = pd.read_parquet(out)[[f"prob_{name}" for name in CLASSES]].to_numpy()
        np.testing.assert_allclose(got, expected, atol=1e-5)
    other = write_bundle(tmp_path / "without")
    with pytest.raises(UserError, match=r"no model\.int8\.onnx.*--runtime onnx"):
        batch.score_pictures(tmp_path / "faces", tmp_path / "x.parquet", other, batch.Settings(runtime="int8"))
