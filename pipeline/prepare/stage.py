"""Stage 1, ``python -m pipeline.prepare``: source images -> checked, packed uint8 arrays.

Reads ``params.yaml`` (``prepare``) and the source that it names. Writes ``data/prepared/`` (``train.npy``,
``val.npy``, ``test.npy``, ``manifest.csv``, ``classes.json``, ``parity.zip``; with votes also ``train_soft.npy``
and the like), ``reports/audit.json`` and ``reports/audit.html``, all at once at the end: a run that fails or is
stopped leaves what was there before.
"""

import csv
import hashlib
import itertools
import json
import shutil
import signal
import sys
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.lib.format import write_array_header_1_0

from pipeline.core.errors import UserError
from pipeline.core.params import PrepareParams
from pipeline.core.params_file import load_params
from pipeline.prepare import page as audit_page
from pipeline.prepare.array_file import ArrayFile
from pipeline.prepare.audit import build_audit, count_faces, headline
from pipeline.prepare.catalogue import SPLITS, Listing
from pipeline.prepare.columns import Records, flags, sets_of
from pipeline.prepare.decoding import decode_all
from pipeline.prepare.pixels.cache import open_cache
from pipeline.prepare.sources.open import Reading, open_source
from pipeline.prepare.sources.source import Source
from pipeline.prepare.splits import check_counts, cut_missing
from pipeline.prepare.twins.mark import drop_twins, find_twins

PREPARED = Path("data/prepared")
AUDIT = Path("reports/audit.json")
AUDIT_PAGE = Path("reports/audit.html")
PROBE_IMAGES = 16

_BLOCK = 1024  # images written at once
_NO_FACES = "Photos in which no face is found are left out: see prepare.faces and prepare.face_min_size."
_ONLY_TWINS = (
    "All its training images are twins of val or test images, or of images with another label. Mend the source, or "
    "set prepare.duplicates and prepare.conflicts to keep."
)


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
    reading = Reading(params.columns, params.person, params.labels == "soft", params.class_map)
    with open_source(params.source, reading) as source, _staging(PREPARED) as staging:
        with (
            closing(Listing(staging, source, params.class_map, params.person)) as listing,
            closing(_allocate(staging / "pixels", listing.count, params)) as pixels,
            closing(open_cache(pixels.shape[1:], params.face_settings)) as cache,
        ):
            records = Records.of(listing)
            reused = decode_all(source, listing.places(), records, pixels, cache, params.face_settings)
            _check_bad(records, params.max_bad_fraction)
            check_counts(records, listing.given, _NO_FACES if params.faces else "")
            find_twins(records, pixels, staging, progress=True)
            fractions = {"test": params.test_fraction, "val": params.val_fraction}
            cut_missing(records, listing.given, fractions, params.seed)
            drop_twins(records, params.duplicates, params.conflicts)
            check_counts(records, {"train"}, _ONLY_TWINS)
            digests = _pack(records, listing, pixels, staging)
            found = build_audit(records)
            if params.faces:
                found["faces"] = count_faces(records)
            if listing.left_out:
                found["left_out"] = dict(sorted(listing.left_out.items()))
            page = audit_page.render(found, records, pixels)
            _write_manifest(staging / "manifest.csv", records, listing)
            _write_probe(staging / "parity.zip", records, listing, source)
        classes = {
            "class_names": listing.class_names,
            "img_size": params.img_size,
            "channels": params.channels,
            "faces": params.face_settings,
        }
        digest = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        classes |= {
            "digest": digest,
            "split_digests": digests,
            "counts": found["splits"],
            "audit": headline(found),
        }
        _write_json(staging / "classes.json", classes)
        for scratch in ("pixels", "listing.db"):
            (staging / scratch).unlink()
        _publish(staging, found, page)
    _print_summary(found, source, listing, reused)
    return found


def _check_bad(records: Records, max_bad_fraction: float) -> None:
    """Fail on more unreadable files than the parameters allow."""
    bad = np.flatnonzero(records.have("corrupt")).tolist()
    if len(bad) > max_bad_fraction * len(records):
        shown = "\n".join(f"  {file}: {records.problems[i]}" for i, file in zip(bad, records.files(bad[:10])))
        raise UserError(
            f"{records.source}: {len(bad)} of {len(records)} files cannot be read, more than "
            f"prepare.max_bad_fraction ({max_bad_fraction:g}) allows. Mend or remove them, or raise the limit. The "
            f"first:\n{shown}"
        )


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """A folder beside ``target`` to write in; gone at the end, unless it was moved away."""
    staging = target.with_name(f".{target.name}.partial")
    # Left over from a run that was killed outright.
    for left in (staging, _former(target)):
        shutil.rmtree(left, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _allocate(path: Path, count: int, params: PrepareParams) -> ArrayFile:
    """Room on disk for ``count`` images; they are copied once, into their splits."""
    shape = (count, params.img_size, params.img_size, params.channels)
    needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"The arrays need {needed / 1e9:.1f} GB of disk while they are made, and {free / 1e9:.1f} GB are free. "
            "Make room, or lower prepare.img_size."
        )
    return ArrayFile(path, shape)


def _pack(records: Records, listing: Listing, pixels: ArrayFile, folder: Path) -> dict[str, str]:
    """Write the arrays of each split, and return each split's digest."""
    digests = {}
    names, shape = records.class_names, pixels.shape[1:]
    for split in SPLITS:
        chosen = records.members(split)
        digest = hashlib.sha256(json.dumps([split, names, shape]).encode()[:-1] + b", [")
        for start in range(0, len(chosen), _BLOCK):
            labels = json.dumps([names[label] for label in records.labels[chosen[start : start + _BLOCK]]])
            digest.update((", " if start else "").encode() + labels.encode()[1:-1])
        digest.update(b"]]")
        pieces = {f"{split}.npy": (np.uint8, shape, pixels.__getitem__)}
        if listing.soft:
            pieces[f"{split}_soft.npy"] = (np.float32, (len(names),), listing.shares)
        for name, (dtype, inner, read) in pieces.items():
            with (folder / name).open("wb") as file:
                header = {
                    "descr": np.dtype(dtype).str,
                    "fortran_order": False,
                    "shape": (len(chosen), *inner),
                }
                write_array_header_1_0(file, header)
                for start in range(0, len(chosen), _BLOCK):
                    content = read(chosen[start : start + _BLOCK])
                    file.write(content)
                    digest.update(content)
        if records.weights is not None:
            digest.update(records.weights[chosen])
        digests[split] = digest.hexdigest()
    return digests


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _write_manifest(path: Path, records: Records, listing: Listing) -> None:
    """One line a source file, sorted by path; twins have the same number, others none.

    The last columns are there only if the source has them.
    """
    twins = np.zeros(len(records), np.int32)
    for number, members in enumerate(sets_of(records.twins), 1):
        twins[members] = number
    more: dict[str, Iterable[Any]] = {}
    if listing.merged:
        more["root"] = listing.roots()
    if listing.person_count:
        more["person"] = listing.people()
    if records.weights is not None:
        more["weight"] = records.weights
    columns = (records.labels, records.splits, records.used, records.digests, records.marks, twins)
    rows = [itertools.count() for _ in SPLITS]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["file", "label", "split", "row", "sha256", "flags", "twins", *more])
        for name, label, split, used, digest, marks, number, *rest in zip(
            listing.files(), *columns, *more.values()
        ):
            own = (
                name,
                records.class_names[label],
                SPLITS[split],
                next(rows[split]) if used else -1,
                digest.tobytes().hex() if digest.any() else "",
            )
            writer.writerow((*own, flags(marks), number or "", *rest))


def _write_probe(path: Path, records: Records, listing: Listing, source: Source) -> None:
    """The untouched bytes of a few test images of every class, for checks that start from a file."""
    test = records.members("test")
    labels = range(len(records.class_names))
    by_label = [np.flatnonzero(records.labels[test] == label)[:PROBE_IMAGES] for label in labels]
    in_turn = [row for turn in itertools.zip_longest(*by_label) for row in turn if row is not None]
    rows = sorted(in_turn[:PROBE_IMAGES])
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for row, file, fetch in zip(
            rows, listing.files(test[rows]), source.fetch(listing.places(test[rows]))
        ):
            info = zipfile.ZipInfo(f"{row:06d}{PurePosixPath(file).suffix.lower()}")
            info.create_system = 3  # else the bytes differ between platforms
            archive.writestr(info, fetch())


def _former(target: Path) -> Path:
    """Where a folder is put while another takes its place."""
    return target.with_name(f".{target.name}.old")


def _publish(staging: Path, audit: dict[str, Any], page: str) -> None:
    """Put the finished folder and the audit in their places."""
    AUDIT.parent.mkdir(parents=True, exist_ok=True)
    partials = {path: path.with_name(f".{path.name}.partial") for path in (AUDIT, AUDIT_PAGE)}
    _write_json(partials[AUDIT], audit)
    partials[AUDIT_PAGE].write_text(page, encoding="utf-8")
    if PREPARED.exists():
        PREPARED.rename(_former(PREPARED))
    staging.rename(PREPARED)
    shutil.rmtree(_former(PREPARED), ignore_errors=True)
    for path, partial in partials.items():
        partial.replace(path)


def _print_summary(audit: dict[str, Any], source: Source, listing: Listing, reused: int) -> None:
    """What there is, in a few lines."""
    names = listing.class_names
    print(f"{source.path}: {source.form}")
    print(f"{audit['images']} images of {len(names)} classes: {', '.join(names)}")
    for split in SPLITS:
        origin = "" if split in listing.given else " (cut from train)"
        print(f"  {split:5} {sum(audit['splits'][split].values()):7}{origin}")
    print(f"  corrupt {audit['corrupt']} (left out), blank {audit['blank']}")
    if "faces" in audit:
        print(
            f"  photos without a face {audit['faces']['none']} (left out), with several {audit['faces']['several']} "
            "(the largest is taken)"
        )
    for name, kind in (("exact", audit["exact"]), ("near", audit["near"])):
        leaks = audit["leaks"] if name == "exact" else audit["near"]["leaks"]
        print(
            f"  {name} copies {kind['redundant']} in {kind['groups']} sets, {kind['conflicting_groups']} with "
            f"several labels; of {leaks['test_in_train']} test and {leaks['val_in_train']} val images in train"
        )
    if audit["dropped"]:
        print(f"  {audit['dropped']} training images left out for their twins")
    print(f"  see {AUDIT_PAGE}")
    for reason, count in audit.get("left_out", {}).items():
        print(f"  left out {count}: {reason}")
    if listing.person_count:
        print(f"  {listing.person_count} people by prepare.person, none of them in two splits")
    if source.ignored_count:
        print(
            f"  {source.ignored_count} files outside class folders passed over, such as {source.ignored[0]}"
        )
    if reused:
        share = reused / audit["images"]
        print(f"  {reused} images ({share:.1%}) had been decoded before and were not decoded again")
