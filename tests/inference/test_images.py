"""Decoding and resizing, against pictures whose pixels are known because they were made here."""

import ast
import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from builders import encode
from PIL import Image

from pipeline.inference import images
from pipeline.inference.images import ImageError, decode, load, resize

RGB = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [200, 100, 50]], [[0, 0, 0], [255, 255, 255]]], "uint8")


def luma(rgb: np.ndarray) -> np.ndarray:
    """ITU-R 601-2 luma, worked out in float."""
    return rgb @ np.array([0.299, 0.587, 0.114])


def png(width: int, height: int, bit_depth: int, color_type: int, rows: bytes) -> bytes:
    """A PNG put together by hand (PNG specification, chapter 5), also one that lies about its size."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bit_depth, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "QOI"])
def test_rgb_exact_in_lossless_formats(kind: str) -> None:
    data = encode(RGB, kind, **({"lossless": True} if kind == "WEBP" else {}))
    pixels = decode(data, 3)
    assert pixels.dtype == np.uint8
    np.testing.assert_array_equal(pixels, RGB)
    assert pixels.flags.writeable


def test_grey_is_luma_of_colour_and_colour_of_grey_is_equal_channels() -> None:
    grey = decode(encode(RGB), 1)
    assert grey.shape == (3, 2, 1)
    assert np.abs(grey[..., 0] - luma(RGB)).max() <= 0.51
    values = np.arange(12, dtype="uint8").reshape(3, 4)
    np.testing.assert_array_equal(decode(encode(values), 1)[..., 0], values)
    np.testing.assert_array_equal(decode(encode(values), 3), np.stack([values] * 3, axis=-1))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_is_scaled_not_clipped(kind: str) -> None:
    wide = np.array([[0, 257, 32896], [65535, 300, 51400]], dtype=np.uint16)
    expected = np.rint(wide / 257)  # 8-bit picture stored as 16 bits: v * 257
    np.testing.assert_array_equal(decode(encode(wide, kind), 1)[..., 0], expected)
    np.testing.assert_array_equal(decode(encode(wide, kind), 3)[..., 2], expected)


def test_big_endian_16_bit_tiff() -> None:
    value = 40000
    tags = [(256, 3, 1, 1 << 16), (257, 3, 1, 1 << 16), (258, 3, 1, 16 << 16), (259, 3, 1, 1 << 16)]
    tags += [(262, 3, 1, 1 << 16), (273, 4, 1, 8), (277, 3, 1, 1 << 16), (278, 3, 1, 1 << 16), (279, 4, 1, 2)]
    body = b"MM\0*" + struct.pack(">I", 10) + struct.pack(">H", value) + struct.pack(">H", len(tags))
    body += b"".join(struct.pack(">HHII", *tag) for tag in tags) + b"\0\0\0\0"
    assert Image.open(io.BytesIO(body)).mode == "I;16B"
    assert decode(body, 1)[0, 0, 0] == round(value / 257)


def pnm(kind: str, largest: int, *values: int) -> bytes:
    """A picture one pixel high in a portable format whose samples go to ``largest``."""
    width = len(values) // (3 if kind == "P6" else 1)
    return f"{kind} {width} 1 {largest}\n".encode() + struct.pack(f">{len(values)}H", *values)


DIM = {
    "grey PNG": encode(np.uint16([[0, 4095]])),
    "black PNG": encode(np.uint16([[0, 0]])),
    "colour PNG": png(1, 1, 16, 2, b"\0" + struct.pack(">3H", 1023, 0, 400)),
    "colour PNG with alpha": png(1, 1, 16, 6, b"\0" + struct.pack(">4H", 4095, 4095, 4095, 65535)),
    "TIFF": encode(np.uint16([[0, 4095]]), "TIFF"),
    "grey PNM": pnm("P5", 65535, 1023, 4095),
    "colour PNM": pnm("P6", 65535, 1023, 4095, 0),
}


@pytest.mark.parametrize("name", DIM)
def test_fewer_bits_in_16_are_refused(name: str) -> None:
    """They would be nearly black; a format that says how many bits count is believed."""
    with pytest.raises(ImageError, match=r"below a quarter of white.*10 or 12 bits"):
        decode(DIM[name], 1)
    assert decode(pnm("P5", 1023, 0, 1023, 512), 1).tolist() == [[[0], [255], [128]]]
    assert decode(pnm("P6", 4095, 4095, 0, 0), 3).tolist() == [[[255, 0, 0]]]
    assert decode(encode(np.uint8([[0, 3]])), 1).tolist() == [[[0], [3]]]


@pytest.mark.parametrize("values", [[-0.1, 1], [0, 1.1], [0, 1023], [-1, 1], [0, 65535]])
def test_floats_of_another_range_are_refused(values: list[float]) -> None:
    with pytest.raises(ImageError, match=r"floats from .* scale them to 0 to 1, or to 255"):
        decode(encode(np.float32([values]), "TIFF"), 1)


def ftyp(*brands: bytes) -> bytes:
    """The beginning of a file of the ISO base media family, and bytes that are no picture."""
    return struct.pack(">I4s4sI", 16 + 4 * len(brands[1:]), b"ftyp", brands[0], 0) + b"".join(brands[1:]) + bytes(99)


NAMED = {
    "HEIC": (ftyp(b"heic", b"mif1", b"heic"), r"HEIC, which wants `pip install pillow-heif`; or save it as JPEG"),
    "HEIC by compatible brand": (ftyp(b"mif1", b"mif1", b"heic"), "HEIC, which wants"),
    "AVIF": (ftyp(b"mif1", b"avif", b"mif1"), "AVIF, which this Pillow lacks; or save it as JPEG"),
    "JPEG XL codestream": (b"\xff\x0a" + bytes(99), "JPEG XL, which Pillow does not read; save it as JPEG"),
    "JPEG XL container": (b"\0\0\0\x0cJXL \r\n\x87\n" + bytes(99), "JPEG XL"),
    "a film": (ftyp(b"isom", b"mp41"), "not a picture"),
}


@pytest.mark.parametrize("name", NAMED)
def test_formats_that_want_help_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data, message = NAMED[name]
    own = tuple(kind for kind in images._formats() if kind not in ("AVIF", "HEIF"))
    monkeypatch.setattr(images, "_formats", lambda: own)
    with pytest.raises(ImageError, match=message):
        images.decode_here(data, 1)
    assert {".heic", ".avif", ".jxl", ".jpg"} <= images.suffixes()


def test_heic_is_read_where_its_package_is_installed() -> None:
    """Half white and stored on its side, as phones do."""
    pytest.importorskip("pillow_heif")
    half = np.zeros((64, 128, 3), dtype=np.uint8)
    half[:, 64:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6
    images.suffixes()  # registers it
    pixels = decode(encode(half, "HEIF", exif=exif.tobytes(), quality=95), 1)
    assert pixels.shape == (128, 64, 1)
    assert pixels[:60].max() < 40
    assert pixels[68:].min() > 215


BLACK = Image.new("L", (1, 1), 0)
HALF = np.array([[0, 0.5, 1]], np.float32)
BY_HAND = {
    "one bit": (encode(np.array([[0, 1], [1, 0]], bool)), [[[0], [255]], [[255], [0]]]),
    # One row, filter byte 0: red = 0xFFFF, green = 0x8080, blue = 0.
    "16-bit colour": (png(1, 1, 16, 2, b"\0\xff\xff\x80\x80\0\0"), [[[255, 128, 0]]]),
    "floats up to 1": (encode(HALF, "TIFF"), [[[0], [128], [255]]]),
    "floats up to 255": (encode(255 * HALF, "TIFF"), [[[0], [128], [255]]]),
    "transparent colour": (encode(np.uint8([[[255, 0, 0, 0], [255, 0, 0, 255]]])), [[[255, 255, 255], [255, 0, 0]]]),
    # Alpha 51 is a fifth: a fifth of black and four fifths of white.
    "half transparent grey": (encode(Image.merge("LA", [BLACK, Image.new("L", (1, 1), 51)])), [[[204]]]),
    "half transparent colour": (encode(np.uint8([[[0, 0, 0, 51]]])), [[[204, 204, 204]]]),
    "transparent grey value": (encode(np.uint8([[7, 9]]), transparency=7), [[[255], [9]]]),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_pixels_worked_out_by_hand(name: str) -> None:
    data, expected = BY_HAND[name]
    assert decode(data, len(expected[0][0])).tolist() == expected


def test_palette_with_transparency() -> None:
    picture = Image.new("P", (3, 1))
    picture.putpalette([10, 20, 30, 200, 0, 0, 0, 0, 0])
    for x in range(3):
        picture.putpixel((x, 0), x)
    opaque = [[[10, 20, 30], [200, 0, 0], [0, 0, 0]]]
    assert decode(encode(picture), 3).tolist() == opaque
    for kind in ("PNG", "GIF"):
        with_hole = decode(encode(picture, kind, transparency=1), 3).tolist()
        assert with_hole == [[[10, 20, 30], [255, 255, 255], [0, 0, 0]]]
    # One alpha value for each palette entry, which Pillow itself warns of.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode(encode(picture, transparency=b"\xff\x00\xff"), 3)[0, 1].tolist() == [255, 255, 255]


def test_cmyk_and_ycbcr() -> None:
    cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
    for kind in ("TIFF", "JPEG"):
        assert np.abs(decode(encode(cyan, kind), 3).astype(int) - [0, 255, 255]).max() <= 3
    red = Image.new("RGB", (8, 8), (255, 0, 0)).convert("YCbCr")
    assert np.abs(decode(encode(red, "TIFF"), 3).astype(int) - [255, 0, 0]).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "F", "I;16"])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_mode_has_the_asked_shape(mode: str, channels: int) -> None:
    picture = Image.new(mode, (5, 4))
    picture.putpixel((0, 0), 65535 if mode == "I;16" else picture.getpixel((0, 0)))
    pixels = decode(encode(picture, "TIFF"), channels)
    assert pixels.shape == (4, 5, channels)
    assert pixels.dtype == np.uint8


# The stored picture and what an EXIF orientation of 1 to 8 says it looks like (EXIF 2.32, 4.6.4 A).
ORIENTED = {
    1: [[1, 2], [3, 4], [5, 6]],
    2: [[2, 1], [4, 3], [6, 5]],
    3: [[6, 5], [4, 3], [2, 1]],
    4: [[5, 6], [3, 4], [1, 2]],
    5: [[1, 3, 5], [2, 4, 6]],
    6: [[5, 3, 1], [6, 4, 2]],
    7: [[6, 4, 2], [5, 3, 1]],
    8: [[2, 4, 6], [1, 3, 5]],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(kind: str, orientation: int) -> None:
    stored = np.array(ORIENTED[1], dtype=np.uint8) * 20
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(np.stack([stored] * 3, axis=-1), kind, exif=exif, **options)
    assert (decode(data, 1)[..., 0] // 20).tolist() == ORIENTED[orientation]


def test_exif_rotation_of_a_jpeg() -> None:
    half = np.zeros((16, 32, 3), dtype=np.uint8)
    half[:, 16:] = 255  # right half white; turned clockwise, the lower half is
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = decode(encode(half, "JPEG", exif=exif, quality=95), 1)
    assert pixels.shape == (32, 16, 1)
    assert pixels[:15].max() < 40
    assert pixels[17:].min() > 215


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_no_reason_to_lose_a_picture() -> None:
    data = encode(RGB, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(decode(data, 3), RGB)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ("red", "blue", "green")]
    options: dict[str, object] = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert decode(data, 3)[2, 2].tolist() == [255, 0, 0]


NOISE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "AVIF"])
@pytest.mark.parametrize("part", [0.03, 0.5, 0.9])
def test_truncated(kind: str, part: float) -> None:
    data = encode(NOISE, kind)
    decode(data, 3)
    with pytest.raises(ImageError) as caught:
        decode(data[: int(len(data) * part)], 3)
    assert len(str(caught.value)) < 60
    assert "object at" not in str(caught.value)
    assert "/" not in str(caught.value)


def test_every_cut_and_every_flipped_byte_is_an_image_error_or_a_picture() -> None:
    rng = np.random.default_rng(1)
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"):
        data = encode(NOISE[:12, :12], kind)
        for _ in range(150):
            broken = bytearray(data[: rng.integers(1, len(data) + 1)])
            for place in rng.integers(0, len(broken), 3):
                broken[place] = rng.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(ImageError):
                    assert decode(bytes(broken), 1).dtype == np.uint8


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"  # never run
GARBAGE = [b"\0", b"hello world", bytes(1000), bytes(range(256)) * 8, b"<svg xmlns='http://www.w3.org/2000/svg'/>"]


@pytest.mark.parametrize("data", [*GARBAGE, b"%PDF-1.7", POSTSCRIPT, b"", encode(np.float32([[0, np.nan]]), "TIFF")])
def test_decode_garbage(data: bytes) -> None:
    with pytest.raises(ImageError, match="pixels that are not numbers|not a picture" if data else "empty"):
        decode(data, 1)


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("side", [10_000, 12_000, 60_000])
def test_decompression_bomb_is_refused_before_its_pixels_are_decoded(side: int) -> None:
    with pytest.raises(ImageError, match="million pixels"):
        decode(png(side, side, 8, 0, b""), 1)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_50_megapixel_photograph_is_decoded_at_half_its_size(progressive: bool) -> None:
    """Taken upright, so that it is stored on its side; its left half is white."""
    half = Image.new("L", (8160, 6144))
    half.paste(255, (0, 3072, 8160, 6144))
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels, scale = images.decode_scaled(encode(half, "JPEG", exif=exif, progressive=progressive), 1)
    assert (scale, pixels.shape) == (2, (4080, 3072, 1))
    assert pixels[:, :1530].min() > 250
    assert pixels[:, 1542:].max() < 5


def repeat_scan(data: bytes, times: int) -> bytes:
    """A JPEG whose last scan comes again and again."""
    scan = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + scan * times + b"\xff\xd9"


SMALL = encode(np.full((64, 64, 3), 90, np.uint8), "JPEG", progressive=True)
WIDE = encode(Image.new("RGB", (2048, 2048), (9, 99, 200)), "JPEG", progressive=True)
COSTLY = {
    "JPEG of many scans": (repeat_scan(WIDE, 3000), "too many bytes or scans"),
    "JPEG in arithmetic code": (WIDE.replace(b"\xff\xc2", b"\xff\xca", 1), "arithmetic code"),
    "BMP by run lengths": (
        b"BM" + struct.pack("<IHHI", 1082, 0, 0, 1078)
        + struct.pack("<IiiHHIIiiII", 40, 2**25, 1, 1, 8, 1, 4, 0, 0, 256, 0) + bytes(1024) + b"\0\1\0\1",
        "more than 2.1 million pixels",
    ),
    "QOI": (b"qoif" + struct.pack(">IIBB", 1024, 1024, 3, 0) + bytes(99), "more than 0.7 million pixels"),
    "PPM in words": (b"P3 1024 1024 255\n" + bytes(99), "more than 0.7 million pixels"),
    "PNG of 16-bit colour": (png(4096, 4096, 16, 6, b""), "more than 8.4 million pixels"),
    "palette PNG": (png(8192, 8192, 8, 3, b""), "more than 34 million pixels"),
    "JPEG 2000": (encode(Image.new("L", (2048, 2048)), "JPEG2000"), "more than 2.1 million pixels"),
    "WebP": (encode(Image.new("L", (4096, 4096)), "WEBP"), "more than 13 million pixels"),
}  # fmt: skip


@pytest.mark.parametrize("name", COSTLY)
def test_what_would_hold_a_worker_is_refused_from_its_header(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is decoded: Pillow's decoders are not called."""
    data, message = COSTLY[name]
    monkeypatch.setattr(images.ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ImageError, match=message):
        decode(data, 3)


def test_a_small_jpeg_may_have_hundreds_of_scans() -> None:
    np.testing.assert_array_equal(decode(repeat_scan(SMALL, 300), 3), decode(SMALL, 3))


@pytest.mark.parametrize("name", ["palette", "transparent", "16 bits", "floats"])
def test_large_pictures_are_converted_in_strips_to_the_same_pixels(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.fromarray(NOISE)
    made = {
        "palette": encode(picture.quantize(8), transparency=3),
        "transparent": encode(picture.convert("RGBA").rotate(30)),
        "16 bits": encode(NOISE[..., 0].astype(np.uint16) * 257),
        "floats": encode(np.linspace(0, 1, 1600, dtype=np.float32).reshape(40, 40), "TIFF"),
    }
    whole = decode(made[name], 3)
    monkeypatch.setattr(images, "_STRIP", 120)
    np.testing.assert_array_equal(decode(made[name], 3), whole)


def test_channels_other_than_1_and_3() -> None:
    with pytest.raises(ValueError, match="channels"):
        decode(encode(RGB), 4)


def test_resize_is_pillows_antialiased_bilinear() -> None:
    # A 2 x 2 chequerboard of single pixels, halved, is its mean; without antialiasing it would be 0 or 255.
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    halved = resize(board.astype(np.uint8)[..., None], 16)
    assert halved.shape == (16, 16, 1)
    assert np.abs(halved[2:-2, 2:-2].astype(int) - 127).max() <= 3
    ramp = np.repeat(np.arange(0, 240, 4, dtype=np.uint8)[None], 60, axis=0)
    doubled = resize(np.stack([ramp] * 3, axis=-1), 120)
    assert doubled.shape == (120, 120, 3)
    # At the double size, pixel x lies at (x + 0.5) / 2 - 0.5 of the source.
    expected = ((np.arange(120) + 0.5) / 2 - 0.5).clip(0, 59) * 4
    assert np.abs(doubled[60, :, 1] - expected).max() <= 1


def test_resize_leaves_the_right_size_alone_and_squares_the_rest() -> None:
    image = NOISE[..., :1]
    assert resize(image, 40) is image
    assert resize(NOISE[:10], 24).shape == (24, 24, 3)


def test_load_is_decode_then_resize() -> None:
    data = encode(NOISE[:30], "JPEG")
    np.testing.assert_array_equal(load(data, 20, 1), resize(decode(data, 1), 20))


@pytest.mark.parametrize("path", sorted(Path(images.__file__).parent.glob("*.py")), ids=lambda path: path.stem)
def test_modules_that_ship_import_one_another_by_relative_names(path: Path) -> None:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert not [name for name in {*names, *(node.module for node in froms)} if str(name).startswith("pipeline")]
    assert {node.level for node in froms} <= {0, 1}
