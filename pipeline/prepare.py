"""Stage 1, ``python -m pipeline.prepare``: source images -> checked, packed uint8 arrays.

Reads ``params.yaml`` (``prepare``) and the source that it names. Writes ``data/prepared/`` (``train.npy``,
``val.npy``, ``test.npy``, ``manifest.csv``, ``classes.json``, ``probe.zip``), ``reports/audit.json`` and
``reports/audit.html``, all at once at the end: a run that fails or is stopped leaves what was there before.
"""

import csv
import hashlib
import json
import os
import shutil
import signal
import sys
import threading
import warnings
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from tqdm import tqdm

from pipeline import audit_page
from pipeline.audit import SPLITS, Record, build_audit, flags, grouped, headline, look_at, pixel_digest
from pipeline.errors import UserError, stage_main
from pipeline.images import ImageError, decode, resize
from pipeline.params import PrepareParams, load_params
from pipeline.sources import Source, open_source
from pipeline.splits import check_counts, cut_missing
from pipeline.twins import drop_twins, find_twins

PREPARED = Path("data/prepared")
AUDIT = Path("reports/audit.json")
AUDIT_PAGE = Path("reports/audit.html")
PROBE_IMAGES = 16

_CHUNK = 32  # images a task: small enough for a live progress bar, large enough that tasks cost nothing


def main() -> None:
    """Run the stage with the parameters of the working folder."""
    # As an exception, so that a stopped run clears up after itself.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    prepare(load_params().prepare)


def prepare(params: PrepareParams) -> dict[str, Any]:
    """Read the source and write its arrays, relative to the working folder.

    Returns:
        The audit, as in ``reports/audit.json``.

    Raises:
        UserError: The source cannot be used, or too many of its images are bad.
    """
    with open_source(params.source) as source, _staging(PREPARED) as staging:
        class_names = sorted({entry.label for entry in source.entries})
        given = {entry.split or "train" for entry in source.entries}
        pixels = _allocate(staging / "pixels.npy", len(source.entries), params)
        records = decode_all(source, pixels, params)
        _check_bad(records, params.max_bad_fraction)
        check_counts(records, class_names, given)
        find_twins(records, pixels, staging, progress=True)
        fractions = {"test": params.test_fraction, "val": params.val_fraction}
        cut_missing(records, class_names, given, fractions, params.seed)
        drop_twins(records, params.duplicates, params.conflicts)
        check_counts(
            records,
            class_names,
            {"train"},
            "All its training images are twins of val or test images, or of images with another label. Mend the "
            "source, or set prepare.duplicates and prepare.conflicts to keep.",
        )
        digests = _pack(records, pixels, class_names, staging)
        audit = build_audit(records, class_names)
        page = audit_page.render(Path(params.source).name, audit, records, pixels, class_names)
        del pixels
        (staging / "pixels.npy").unlink()
        classes = {"class_names": class_names, "img_size": params.img_size, "channels": params.channels}
        digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        classes |= {"digest": digest, "split_digests": digests, "counts": audit["splits"]}
        classes["audit"] = headline(audit)
        _write_json(staging / "classes.json", classes)
        _write_manifest(staging / "manifest.csv", records)
        _write_probe(staging / "probe.zip", records, source)
        _publish(staging, audit, page)
    _print_summary(audit, class_names, given, source.ignored)
    return audit


def decode_all(source: Source, pixels: np.ndarray, params: PrepareParams) -> list[Record]:
    """Decode every file into ``pixels``, uint8 (N, S, S, C), in parallel and with a progress bar.

    Threads and not processes: Pillow decodes, and hashlib hashes, without Python's lock.

    Returns:
        One record a file, in the order of ``source.entries``, whatever order they were decoded in.
    """
    records = [Record(entry.file, entry.label, entry.split or "train") for entry in source.entries]

    stop = threading.Event()

    def work(start: int) -> int:
        chunk = records[start : start + _CHUNK]
        for i, record in enumerate(chunk, start):
            if stop.is_set():
                break
            try:
                image = decode(source.read(record.file), params.channels)
            except ImageError as error:
                record.problem = str(error)
                continue
            record.sha256 = pixel_digest(image)
            record.size = image.shape[:2]
            record.marks = look_at(image, params.img_size)
            pixels[i] = resize(image, params.img_size)
        return len(chunk)

    with (
        warnings.catch_warnings(),
        ThreadPoolExecutor(
            len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        ) as pool,
        tqdm(total=len(records), desc="prepare", unit="img") as bar,
    ):
        warnings.simplefilter("ignore")  # Pillow's remarks on odd but readable files
        try:
            for task in as_completed([pool.submit(work, start) for start in range(0, len(records), _CHUNK)]):
                bar.update(task.result())
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return records


def _check_bad(records: list[Record], max_bad_fraction: float) -> None:
    """Fail on more unreadable files than the parameters allow."""
    bad = [record for record in records if record.problem]
    if len(bad) > max_bad_fraction * len(records):
        shown = "\n".join(f"  {record.file}: {record.problem}" for record in bad[:10])
        raise UserError(
            f"{len(bad)} of {len(records)} files cannot be read, more than prepare.max_bad_fraction "
            f"({max_bad_fraction:g}) allows. Mend or remove them, or raise the limit. The first:\n{shown}"
        )


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to write in; gone at the end, unless it was moved away."""
    staging = target.with_name(f".{target.name}.partial")
    # Left over from a run that was killed outright.
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _allocate(path: Path, count: int, params: PrepareParams) -> np.ndarray:
    """Room on disk for ``count`` images, uint8 (count, S, S, C); they are copied once, into their splits."""
    shape = (count, params.img_size, params.img_size, params.channels)
    # Checked because a mapped file on a full disk kills the process without a word.
    needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"The arrays need {needed / 1e9:.1f} GB of disk while they are made, and {free / 1e9:.1f} GB are free. "
            "Make room, or lower prepare.img_size."
        )
    return open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)


def _pack(records: list[Record], pixels: np.ndarray, class_names: list[str], folder: Path) -> dict[str, str]:
    """Write one array file a split, give the records their rows, and return each split's digest."""
    digests = {}
    for split in SPLITS:
        chosen = [i for i, record in enumerate(records) if record.split == split and record.used]
        array = open_memmap(
            folder / f"{split}.npy", mode="w+", dtype=np.uint8, shape=(len(chosen), *pixels.shape[1:])
        )
        labels = [records[i].label for i in chosen]
        digest = hashlib.sha256(json.dumps([split, class_names, pixels.shape[1:], labels]).encode())
        for row, i in enumerate(chosen):
            records[i].row = row
        for start in range(0, len(chosen), 1024):
            block = pixels[chosen[start : start + 1024]]
            array[start : start + 1024] = block
            digest.update(block)
        array.flush()
        digests[split] = digest.hexdigest()
    return digests


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_manifest(path: Path, records: list[Record]) -> None:
    """One line a source file, sorted by path; twins have the same number as group, others none."""
    numbers = {group[0].group: i for i, group in enumerate(grouped(records, "group"), 1)}
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "label", "split", "row", "sha256", "flags", "group"])
        for record in records:
            own = (record.file, record.label, record.split, record.row, record.sha256)
            writer.writerow((*own, flags(record), numbers.get(record.group, "")))


def _write_probe(path: Path, records: list[Record], source: Source) -> None:
    """The untouched bytes of a few test images of every class, for checks that start from a file."""
    by_label: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.split == "test" and record.used:
            by_label[record.label].append(record)
    in_turn = [record for turn in zip_longest(*by_label.values()) for record in turn if record]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for record in sorted(in_turn[:PROBE_IMAGES], key=lambda record: record.row):
            info = zipfile.ZipInfo(f"{record.row:06d}{PurePosixPath(record.file).suffix.lower()}")
            info.create_system = 3  # else the bytes differ between platforms
            archive.writestr(info, source.read(record.file))


def _publish(staging: Path, audit: dict[str, Any], page: str) -> None:
    """Put the finished folder and the audit in their places."""
    AUDIT.parent.mkdir(parents=True, exist_ok=True)
    partials = {path: path.with_name(f".{path.name}.partial") for path in (AUDIT, AUDIT_PAGE)}
    _write_json(partials[AUDIT], audit)
    partials[AUDIT_PAGE].write_text(page, encoding="utf-8")
    if PREPARED.exists():
        old = PREPARED.with_name(f".{PREPARED.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        PREPARED.rename(old)
        staging.rename(PREPARED)
        shutil.rmtree(old)
    else:
        staging.rename(PREPARED)
    for path, partial in partials.items():
        partial.replace(path)


def _print_summary(
    audit: dict[str, Any], class_names: list[str], given: set[str], ignored: list[str]
) -> None:
    """What there is, in a few lines."""
    print(f"{audit['images']} images of {len(class_names)} classes: {', '.join(class_names)}")
    for split in SPLITS:
        origin = "" if split in given else " (cut from train)"
        print(f"  {split:5} {sum(audit['splits'][split].values()):7}{origin}")
    print(f"  corrupt {audit['corrupt']} (left out), blank {audit['blank']}")
    for name, kind in (("exact", audit["exact"]), ("near", audit["near"])):
        leaks = audit["leaks"] if name == "exact" else audit["near"]["leaks"]
        print(
            f"  {name} copies {kind['redundant']} in {kind['groups']} groups, {kind['conflicting_groups']} with "
            f"several labels; of {leaks['test_in_train']} test and {leaks['val_in_train']} val images in train"
        )
    if audit["dropped"]:
        print(f"  {audit['dropped']} training images left out for their twins")
    print(f"  see {AUDIT_PAGE}")
    if ignored:
        print(f"  {len(ignored)} files outside class folders passed over, such as {ignored[0]}")


if __name__ == "__main__":
    stage_main(main)
