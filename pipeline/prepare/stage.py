"""Stage 1, ``python -m pipeline.prepare``: source images -> checked, packed uint8 arrays.

Reads ``params.yaml`` (``prepare``) and the source that it names. Writes ``data/prepared/`` (``train.npy``,
``val.npy``, ``test.npy``, ``manifest.csv``, ``classes.json``, ``parity.zip``; with votes also ``train_soft.npy``
and the like), ``reports/audit.json`` and ``reports/audit.html``, all at once at the end: a run that fails or is
stopped leaves what was there before.
"""

import hashlib
import json
import shutil
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core import paths
from pipeline.core.errors import UserError
from pipeline.core.files import replacing, write_json
from pipeline.core.library_names import check_names
from pipeline.core.params import PrepareParams
from pipeline.core.params_file import load_params
from pipeline.core.stage_files import DatasetFile
from pipeline.prepare.array_file import ArrayFile
from pipeline.prepare.audit import build_audit, headline, print_summary
from pipeline.prepare.catalogue import Listing
from pipeline.prepare.columns import Records
from pipeline.prepare.corrections import apply_corrections, read_corrections
from pipeline.prepare.decoding import check_classes, decode_all
from pipeline.prepare.outputs import write_arrays, write_manifest, write_parity_pictures
from pipeline.prepare.page import render_page
from pipeline.prepare.people import find_people
from pipeline.prepare.pixels.cache import open_cache
from pipeline.prepare.sources.form import Reading
from pipeline.prepare.sources.open import open_source
from pipeline.prepare.sources.source import Source
from pipeline.prepare.splits import check_counts, check_cut, cut_missing
from pipeline.prepare.twins.mark import drop_twins, find_twins

AUDIT = paths.REPORTS / "audit.json"
AUDIT_PAGE = paths.REPORTS / "audit.html"

_NO_FACES = "Photos in which no face is found are left out: see prepare.faces and prepare.face_min_size."
_ONLY_TWINS = (
    "All its training images are twins of val or test images, or of images with another label. Mend the source, or "
    "set prepare.duplicates and prepare.conflicts to keep."
)


def main() -> None:
    """Run the stage with the parameters of the working folder."""
    params = load_params()
    check_names(params.train)  # before pictures are decoded for a net that there is not
    prepare(params.prepare)


def prepare(params: PrepareParams) -> dict[str, Any]:
    """Read the source, write its arrays, relative to the working folder, and return the audit.

    Raises:
        UserError: The source cannot be used, or too many of its images are bad.
    """
    corrections = read_corrections(paths.CORRECTIONS)
    with (
        open_source(params.source, Reading.of(params)) as source,
        replacing(AUDIT_PAGE) as page_file,
        replacing(AUDIT) as audit_file,
        replacing(paths.PREPARED) as folder,
    ):
        folder.mkdir()
        manifest, pictures = folder / "manifest.csv", folder / "parity.zip"
        with (
            tempfile.TemporaryDirectory(dir=folder) as scratch,
            closing(Listing(Path(scratch), source, params.class_map, params.person)) as listing,
            closing(_allocate(Path(scratch) / "pixels", listing.count, params)) as pixels,
        ):
            records, people = Records.of(listing), find_people(listing, params.person)
            fractions = {"test": params.test_fraction, "val": params.val_fraction}
            check_cut(records, listing.given, fractions)
            check_classes(source.fetch, listing.places, records)
            reused = _decode(source, listing, records, pixels, params)
            find_twins(records, pixels, Path(scratch))
            cut_missing(records, listing.given, fractions, params.seed)
            corrected = apply_corrections(records, corrections, params.corrections, paths.CORRECTIONS)
            drop_twins(records, params.duplicates, params.conflicts)
            check_counts(records, {"train"}, _ONLY_TWINS)
            digests = write_arrays(folder, records, listing, pixels)
            audit = build_audit(records, params.faces is not None, listing.left_out, listing.notes, people)
            if corrected:
                audit["corrections"] = corrected
            page_file.write_text(render_page(audit, records, pixels), encoding="utf-8")
            write_manifest(manifest, records, listing)
            write_parity_pictures(pictures, records, listing, source)
        DatasetFile(
            class_names=listing.class_names,
            img_size=params.img_size,
            channels=params.channels,
            faces=params.face_settings,
            digest=hashlib.sha256(json.dumps(digests).encode()).hexdigest(),
            split_digests=digests,
            counts=audit["splits"],
            audit=headline(audit),
            files={path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (manifest, pictures)},
        ).save(folder)
        write_json(audit_file, audit)
    print_summary(audit, source, listing, reused, AUDIT_PAGE)
    return audit


def _allocate(path: Path, count: int, params: PrepareParams) -> ArrayFile:
    """Room on disk for ``count`` images; they are copied once, into their splits."""
    shape = (count, params.img_size, params.img_size, params.channels)
    needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(path.parent).free
    if needed > free:
        raise UserError(
            f"The arrays need {needed / 1e6:,.1f} MB of disk while they are made, and {free / 1e6:,.1f} MB are free in "
            f"{path.parent}. Make room there, or lower prepare.img_size."
        )
    return ArrayFile(path, shape)


def _decode(source: Source, listing: Listing, records: Records, pixels: ArrayFile, params: PrepareParams) -> int:
    """Put all images into ``pixels`` and what was seen in them into ``records``; returns how many were known before.

    Too many that cannot be read, or a class without any in a split, are a ``UserError``.
    """
    fetches, faces = source.fetch(listing.places()), params.face_settings
    with closing(open_cache(pixels.shape[1:], faces)) as cache:
        reused = decode_all(fetches, records, pixels, cache, faces=faces, max_bad_fraction=params.max_bad_fraction)
    check_counts(records, listing.given, _NO_FACES if params.faces else "")
    return reused
