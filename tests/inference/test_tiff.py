"""Every kind of TIFF is decoded as it is meant, or refused: files put together here by the specification (TIFF 6.0)."""

import itertools
import struct
import warnings
import zlib

import numpy as np
import pytest

from pipeline.inference.images import ImageError, decode

HEIGHT, WIDTH = 3, 9  # an odd width, so that rows of single bits end within a byte
SIZES = {3: 2, 4: 4}  # bytes of the types short and long


def pack(values: np.ndarray, bits: int, order: str) -> bytes:
    """Rows of samples (H, n) as a strip; rows begin at a byte."""
    if values.dtype.kind == "f":
        return values.astype(f"{order}f{bits // 8}").tobytes()
    if bits >= 8 and bits % 8 == 0:
        return values.astype(f"{order}{values.dtype.kind}{bits // 8}").tobytes()
    return b"".join(np.packbits((row[:, None] >> np.arange(bits)[::-1]) & 1).tobytes() for row in values)


def tiff(samples: np.ndarray, bits: int, photometric: int, order: str = "<", **options: object) -> bytes:
    """A TIFF of samples (H, W, S).

    Options: ``kind`` (sample format), ``planar``, ``fill`` (order of bits), ``deflate``, ``extra`` (meaning of further
    samples), ``more`` (further tags of shorts).
    """
    height, width, count = samples.shape
    planes = np.moveaxis(samples, 2, 0) if options.get("planar") == 2 else [samples.reshape(height, -1)]
    strips = [pack(plane, bits, order) for plane in planes]
    if options.get("fill") == 2:
        strips = [bytes(int(f"{byte:08b}"[::-1], 2) for byte in strip) for strip in strips]
    if options.get("deflate"):
        strips = [zlib.compress(strip) for strip in strips]
    tags = {256: [width], 257: [height], 258: [bits] * count, 259: [8 if options.get("deflate") else 1]}
    tags |= {262: [photometric], 266: [options.get("fill", 1)], 277: [count], 278: [height]}
    tags |= {284: [options.get("planar", 1)], 339: [options.get("kind", 1)] * count}
    tags |= {338: list(options["extra"])} if options.get("extra") else {}
    shorts = {tag: (3, values) for tag, values in (tags | options.get("more", {})).items()}
    longs = {273: (4, [0] * len(strips)), 279: (4, [len(strip) for strip in strips])}
    fields = dict(sorted((shorts | longs).items()))
    beyond = sum(size for kind, values in fields.values() if (size := SIZES[kind] * len(values)) > 4)
    start = 8 + 2 + 12 * len(fields) + 4
    fields[273] = (4, [start + beyond + sum(map(len, strips[:i])) for i in range(len(strips))])
    entries = rest = b""
    for tag, (kind, values) in fields.items():
        packed = struct.pack(f"{order}{len(values)}{'HI'[kind - 3]}", *values)
        place = packed.ljust(4, b"\0") if len(packed) <= 4 else struct.pack(f"{order}I", start + len(rest))
        rest += packed if len(packed) > 4 else b""
        entries += struct.pack(f"{order}HHI", tag, kind, len(values)) + place
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HIH", 42, 8, len(fields))
    return head + entries + bytes(4) + rest + b"".join(strips)


def expected(photometric: int, shares: np.ndarray, samples: np.ndarray, palette: np.ndarray) -> np.ndarray:
    """What samples (H, W, S) look like, (H, W, 3) from 0 to 255, given also as shares of the largest one."""
    own = shares[..., :1]
    if photometric in (0, 1):
        return 255 * np.repeat(own if photometric else 1 - own, 3, axis=-1)
    if photometric == 2:
        return 255 * shares[..., :3]
    if photometric == 3:
        return palette[:, samples[..., 0]].transpose(1, 2, 0) / 257
    if photometric == 5:
        return 255 * (1 - shares[..., :3]) * (1 - shares[..., 3:4])
    y, blue, red = np.moveaxis(255 * shares - [0, 128, 128], 2, 0)  # ITU-R 601-2
    return np.stack([y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1).clip(0, 255)


# Photometric interpretation: its number of samples.
KINDS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3}
# Those that people have, which must not be refused: photometric, bits, and what else may be, in both orders of bytes.
COMMON = [(0, 1), (0, 8), (1, 1), (1, 8), (1, 16), (2, 8), (2, 16), (3, 4), (3, 8), (5, 8), (6, 8)]


@pytest.mark.parametrize("photometric", KINDS)
def test_right_or_refused(photometric: int) -> None:
    rng = np.random.default_rng(photometric)
    palette = 257 * rng.integers(0, 256, (3, 256))
    read = set()
    for bits, order, planar, fill, deflate, extra in itertools.product(
        (1, 2, 4, 8, 12, 16, 32), "<>", (1, 2), (1, 2), (False, True), ((), (0,), (1,), (2,))
    ):
        white = 2**bits - 1
        samples = rng.integers(0, white, (HEIGHT, WIDTH, KINDS[photometric] + len(extra)), np.uint32, endpoint=True)
        samples[0, 0] = white
        if extra and extra[0]:
            samples[..., -1] = white  # opaque
        more = {320: palette[:, : 2 ** min(bits, 8)].ravel().tolist()} if photometric == 3 else {}
        more |= {530: [1, 1]} if photometric == 6 else {}
        options = {"planar": planar, "fill": fill, "deflate": deflate, "extra": extra, "more": more}
        case = (bits, order, planar, fill, deflate, extra)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pixels = decode(tiff(samples, bits, photometric, order, **options), 3)
            except ImageError:
                continue
        assert photometric != 3 or bits <= 8, case
        meant = expected(photometric, samples / white, samples, palette[:, : 2**bits])
        assert np.abs(pixels - meant).max() <= 3, case
        read.add(case)
    for bits in [bits for kind, bits in COMMON if kind == photometric]:
        for order, deflate in itertools.product("<>", (False, True)):
            assert (bits, order, 1, 1, deflate, ()) in read


GREY = np.array([[[0], [128]]], np.uint32)
REFUSED = {
    "signed 8 bit": (tiff(GREY.astype("i1") + 127, 8, 1, kind=2), "8-bit signed"),
    "signed 16 bit": (tiff(200 * GREY.astype(int), 16, 1, kind=2), "16-bit signed"),
    "signed 32 bit": (tiff(200 * GREY.astype(int), 32, 1, kind=2), "32-bit signed"),
    "unsigned 32 bit": (tiff(GREY << 24, 32, 1), "32-bit unsigned"),
    "white at 0, 16 bit": (tiff(GREY << 8, 16, 0), "16-bit unsigned samples, photometric 0"),
    "white at 0, float": (tiff(GREY / 128, 32, 0, kind=3), "32-bit float samples, photometric 0"),
    "big-endian compressed float": (tiff(GREY / 128, 32, 1, ">", kind=3, deflate=True), "32-bit float"),
    "double": (tiff(GREY / 128, 64, 1, kind=3), "64-bit float"),
    "half": (tiff(GREY / 128, 16, 1, kind=3), "16-bit float"),
    "packed 12 bit": (tiff(GREY, 12, 1), "12-bit unsigned"),
    "planar 16 bit": (tiff(np.repeat(GREY << 8, 3, axis=2), 16, 2, planar=2), "16-bit .*planar 2"),
    "subsampled YCbCr": (tiff(np.repeat(GREY, 3, axis=2), 8, 6, more={530: [2, 2]}), ".*photometric 6"),
    "palette of 8 bit": (tiff(GREY, 8, 3, more={320: [255] * 768}), ".*photometric 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name: str) -> None:
    data, message = REFUSED[name]
    with pytest.raises(ImageError, match=f"TIFF of {message}.*save it with 8 bits"):
        decode(data, 1)


@pytest.mark.parametrize("order, deflate", [("<", False), ("<", True), (">", False)])
def test_floats(order: str, deflate: bool) -> None:
    assert decode(tiff(GREY / 128, 32, 1, order, kind=3, deflate=deflate), 1).ravel().tolist() == [0, 255]


def test_cielab() -> None:
    """White, black, and the red of sRGB, whose place in CIELAB (D50) is 54, 81, 70."""
    lab = np.array([[[255, 0, 0], [0, 0, 0], [138, 81, 70]]], np.uint32)
    assert np.abs(decode(tiff(lab, 8, 8), 3) - [[[255, 255, 255], [0, 0, 0], [255, 0, 0]]]).max() <= 5
