"""What one picture costs to decode and resize, above the idle process: CPU time and memory, over the formats.

    python benchmarks/decoding.py

Each picture is the largest of its kind that is accepted, or one that is made to cost much. It is decoded in a process
of its own, warm, to colour. Where another process decodes, both count: their time, and their memory at each moment.
"""

import contextlib
import io
import json
import resource
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile

from pipeline.inference import apart, images

ImageFile.MAXBLOCK = 2**26  # or Pillow cannot write large progressive JPEGs


def draw(width: int, height: int) -> Image.Image:
    """A smooth picture with some noise, as photos have it."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels += rng.integers(-6, 7, pixels.shape, dtype=np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encode(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def side(pixels: int) -> int:
    return int(pixels**0.5)


def write_tiff(width: int, tile: int, body: bytes) -> bytes:
    """A small TIFF whose one tile is large."""
    tags = [(256, 4, width), (257, 4, width), (258, 3, 8 << 16 >> 16), (259, 3, 8), (262, 3, 1), (277, 3, 1)]
    tags += [(322, 4, tile), (323, 4, tile), (324, 4, 8), (325, 4, len(body))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)


def repeat_scan(data: bytes, times: int) -> bytes:
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * times + b"\xff\xd9"


def pictures() -> Iterator[tuple[str, bytes]]:
    """Largest ones and harmful ones, one at a time."""
    photo = draw(8160, 6144)
    yield "JPEG, 50 megapixels", encode(photo, "JPEG", quality=92)
    yield "JPEG, 50 megapixels, 4:4:4", encode(photo, "JPEG", quality=95, subsampling=0)
    yield "JPEG, 50 megapixels, progressive", encode(photo, "JPEG", quality=92, progressive=True)
    most = photo.crop((0, 0, 6144, 5460))
    yield "JPEG, 33.5 megapixels", encode(most, "JPEG", quality=92)
    yield "JPEG, 33.5 megapixels, progressive", encode(most, "JPEG", quality=92, progressive=True)
    yield (
        "JPEG, 24 megapixels, progressive, 4:4:4",
        encode(photo.crop((0, 0, 6000, 4000)), "JPEG", quality=95, progressive=True, subsampling=0),
    )
    yield "PNG, grey", encode(most.convert("L"), "PNG", compress_level=1)
    yield "PNG, palette with transparency", encode(most.quantize(64), "PNG", compress_level=1, transparency=3)
    yield "GIF", encode(most.quantize(256), "GIF")
    quarter = photo.crop((0, 0, 4096, 4096))
    for kind in ("PNG", "BMP"):
        yield f"{kind}, colour", encode(quarter, kind)
    clear = quarter.copy()
    clear.putalpha(quarter.convert("L"))
    yield "PNG, transparent", encode(clear, "PNG", compress_level=1)
    yield "PNG, 16-bit grey", encode(Image.fromarray(np.asarray(quarter)[..., 0].astype(np.uint16) * 257), "PNG")
    for packing in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "zstd", "lzma"):
        with contextlib.suppress(Exception):  # a build of Pillow may lack it
            yield f"TIFF, {packing}", encode(quarter, "TIFF", compression=packing)
    size = side(3 * 2**22)
    part = clear.crop((0, 0, size, size))
    yield "WebP, lossy", encode(part.convert("RGB"), "WEBP", method=0)
    yield "WebP, lossless, transparent", encode(part, "WEBP", lossless=True, method=0, quality=0)
    yield "AVIF", encode(part.convert("RGB"), "AVIF", speed=10)
    yield "AVIF, 4:4:4, transparent", encode(part, "AVIF", speed=10, subsampling="4:4:4", quality=90)
    part = photo.crop((0, 0, side(2**21), side(2**21)))
    yield "JPEG 2000, lossless", encode(part, "JPEG2000")
    part = photo.crop((0, 0, side(2**21 // 3), side(2**21 // 3)))
    yield "QOI", encode(part, "QOI")
    width, height = part.size
    yield "PPM, 12 bits", b"P6 %d %d 4095\n" % (width, height) + (np.asarray(part).astype(">u2") * 16).tobytes()
    yield "PPM, in words", b"P3 %d %d 255\n" % (width, height) + b" ".join(b"%d" % v for v in np.asarray(part).ravel())

    flat = Image.new("RGB", (4096, 4096), (9, 99, 200))
    yield "! JPEG, 3000 scans", repeat_scan(encode(flat, "JPEG", progressive=True), 3000)
    flat = flat.crop((0, 0, 2048, 2048))
    yield "! JPEG, 300 scans", repeat_scan(encode(flat, "JPEG", progressive=True), 300)
    yield "! JPEG, 2000 small scans", repeat_scan(encode(flat.crop((0, 0, 800, 800)), "JPEG", progressive=True), 2000)
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (2048, 2048, 3), dtype=np.uint8))
    data = encode(noise, "JPEG", progressive=True, quality=95, subsampling=0)
    yield "! JPEG, noise in many scans", repeat_scan(data, (2**24 - len(data)) // 400_000)
    head = struct.pack("<IHHI", 1082, 0, 0, 1078) + struct.pack("<IiiHHIIiiII", 40, 2**26, 1, 1, 8, 1, 4, 0, 0, 256, 0)
    yield "! BMP, 2^26 by run lengths", b"BM" + head + bytes(1024) + b"\0\1\0\1"
    yield "! palette PNG, 8192^2", encode(Image.new("P", (8192, 8192)), "PNG")
    yield "! QOI, 8192^2", b"qoif" + struct.pack(">IIBB", 8192, 8192, 3, 0) + b"\xfd" * (2**26 // 62) + bytes(8)
    yield "! WebP, 8192^2", encode(Image.new("RGB", (8192, 8192)), "WEBP", method=0)
    small = Image.new("L", (1448, 1448))
    yield "! JPEG 2000, smallest blocks", encode(small, "JPEG2000", codeblock_size=(4, 4))
    precincts = {"codeblock_size": (4, 4), "precinct_size": (4, 4), "num_resolutions": 1}
    yield "! JPEG 2000, smallest precincts", encode(small, "JPEG2000", **precincts)
    yield "! TIFF, tile of 30000^2", write_tiff(16, 30_000, zlib.compress(bytes(30_000**2), 9))


class Watch(threading.Thread):
    """The most memory that this process and another one have at one time, above what they have now."""

    def __init__(self, other: int) -> None:
        super().__init__()
        self.other, self.peak, self.done = other, 0, threading.Event()
        self.idle = self.now()

    def now(self) -> int:
        try:
            return _status("self", "VmRSS") + _status(self.other, "VmRSS")
        except (OSError, StopIteration):  # the other has ended
            return 0

    def run(self) -> None:
        while not self.done.wait(0.002):
            self.peak = max(self.peak, self.now() - self.idle)


def measure(path: Path) -> dict[str, object]:
    """Decode and resize a file in this process."""
    tiny = encode(Image.new("L", (9, 9)), "WEBP")
    images.load(tiny, 48, 3)
    (worker,) = apart._idle
    idle = [_status(worker.pid, "VmRSS"), _cpu(worker.pid)]
    data = path.read_bytes()
    Path("/proc/self/clear_refs").write_text("5")
    own, start = _status("self", "VmRSS"), time.process_time()
    together = Watch(worker.pid)
    together.start()
    try:
        said = "{1} x {0}".format(*images.decode(data, 3).shape)
        images.load(data, 48, 3)
    except images.ImageError as error:
        said = str(error)
    seconds, peak = time.process_time() - start, _status("self", "VmHWM") - own
    together.done.set()
    together.join()
    apart._end_all()
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds += ended.ru_utime + ended.ru_stime - idle[1]
    halved = seconds / 2 if " x " in said else seconds
    return {"seconds": halved, "mb": max(peak, ended.ru_maxrss * 1024 - idle[0], together.peak) / 1e6, "said": said}


def _status(process: int | str, field: str) -> int:
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _cpu(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def main() -> None:
    if sys.argv[1:]:
        print(json.dumps(measure(Path(sys.argv[1]))))
        return
    worst = [0.0, 0.0]
    print("| picture (! made to harm) | bytes | CPU s | MB | answer |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, data in pictures():
            path = Path(folder, "picture")
            path.write_bytes(data)
            found = json.loads(subprocess.check_output([sys.executable, __file__, str(path)]))
            worst = [max(worst[0], found["seconds"]), max(worst[1], found["mb"])]
            row = (name, f"{len(data):,}", f"{found['seconds']:.2f}", f"{found['mb']:.0f}", found["said"])
            print(f"| {' | '.join(row)} |", flush=True)
    print(f"| **most** | | {worst[0]:.2f} | {worst[1]:.0f} | |")


if __name__ == "__main__":
    main()
