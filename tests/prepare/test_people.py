"""Who is who by file names: found in the names of known data sets, and not in counters, copies and hashes."""

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import draw_noise, prepare_params, write_zip

from pipeline.prepare.catalogue import Listing
from pipeline.prepare.people import find_pattern, find_people
from pipeline.prepare.sources.source import Item
from pipeline.prepare.stage import prepare

CLASSES = ("anger", "disgust", "fear", "happy", "neutral", "sadness", "surprise")


def name_files(style: str, rng: random.Random) -> list[str]:
    """Paths in class folders, as a data set has them or a program numbers them; ``{e}`` is the class."""
    ids, few, digits = range(1, 40), range(3), "0123456789abcdef"
    persons = ("KA", "KL", "KM", "KR", "MK", "NA", "NM", "TM")
    every = {
        "CK+48": (f"{{e}}/S{i:03}_{k:03}_0000001{k}.png" for i, k in product(ids, few)),
        "KDEF": (f"{{e}}/{s}{g}{i:02}{{E}}{a}.JPG" for s in "AB" for g in "FM" for i in ids for a in ("S", "HL")),
        "JAFFE": (f"{{e}}/{p}.{{E}}{k}.{rng.randint(1, 213)}.tiff" for p in persons for k in few),
        "RaFD": (f"{{e}}/Rafd090_{i:02}_Caucasian_male_{{e}}_{g}.jpg" for i in ids for g in ("left", "right")),
        "FACES": (f"{{e}}/{3 * i:03}_o_m_{{E}}_{k}.jpg" for i in ids for k in "ab"),
        "LFW": (f"{{e}}/{a}_{b}_{k:04}.jpg" for a, b, k in product(("Ann", "Bob", "Kim"), ("Bush", "Li", "Roy"), few)),
        "Yale": (f"{{e}}/subject{i:02}.{{e}}{k}.png" for i in ids for k in few),
        "Oulu-CASIA": (f"P{i:03}/{{e}}/{k:03}.jpeg" for i in ids for k in few),
        "Parquet": (f"train-0.parquet/{rng.randint(0, 10**7):07}-S{i:03}_{k}{{E}}.png" for i in ids for k in few),
        "FER2013": (f"{{e}}/{s}_{rng.randint(0, 10**6)}.jpg" for s in ("Training", "PublicTest") for _ in range(99)),
        "numbered": (f"{{e}}/{n}{i:03}.png" for n in ("im", "") for i in ids),
        "people's numbers": (f"{{e}}/{n}{i:03}.png" for n in ("person_", "S") for i in ids),
        "numbered by class": (f"{{e}}/{{e}}_{i:04}.png" for i in ids),
        "class by number": (f"{{e}}/{i:04}_{{e}}.png" for i in ids),
        "augmented": (f"{{e}}/im{i}_aug{k}.png" for i in ids for k in few),
        "augmented numbers": (f"{{e}}/{i:04}_{k}.png" for i in ids for k in few),
        "Roboflow": (f"{{e}}/im{i}_png.rf.{''.join(rng.choices(digits, k=32))}.jpg" for i in ids for _ in few),
        "hashes": (f"{{e}}/{''.join(rng.choices(digits, k=56))}.jpg" for _ in range(300)),
        "AffectNet": (f"{i}/{''.join(rng.choices(digits, k=56))}.jpg" for i in ids for _ in range(7)),
        "RAF-DB": (f"{{e}}/{s}_{rng.randint(0, 99999):05}_aligned.jpg" for s in ("train", "test") for _ in range(99)),
        "ExpW": (f"{{e}}/{a}_{b}_{k}.jpg" for a, b, k in product(("afraid", "sad"), ("old", "kid", "man", "all"), few)),
        "photos": (f"{{e}}/IMG_2021{m:02}{rng.randint(10, 28)}_{rng.randint(0, 9999)}.jpg" for m in ids for _ in few),
    }  # fmt: skip
    return list(every[style])


def read(names: list[str], root: str | None = None) -> list[tuple[str, int, str | None]]:
    """Names, filled in with each class, as a listing gives them."""
    filled = [(name.format(e=e, E=e[:2].upper()), i, root) for name in names for i, e in enumerate(CLASSES)]
    return [(f"{root}/{file}" if root else file, label, root) for file, label, root in filled]


@pytest.mark.parametrize(
    "style, person, people",
    [
        ("CK+48", r"S\d+", 39),
        ("KDEF", r"[FM]\d+", 78),  # two sessions of each
        ("JAFFE", r"^[A-Z]{2,3}(?=[._-])", 8),
        ("RaFD", r"(?<=Rafd\d{3}_)\d+", 39),
        ("FACES", r"^\d+(?=[._-])", 39),
        ("LFW", None, 9),
        ("Yale", None, 39),
        ("Oulu-CASIA", None, 39),
        ("Parquet", r"S\d+", 39),
    ],
)
def test_people_are_found_in_names(
    listing_of: Callable[..., Listing], style: str, person: str | None, people: int
) -> None:
    named = read(name_files(style, random.Random(0)))
    found = find_pattern(named, CLASSES)
    assert found
    assert person in (None, found)
    # The value that is named gives these people.
    items = [Item(file, CLASSES[label], None, []) for file, label, _ in named]
    assert listing_of(items, person=found).person_count == people
    assert len(np.unique(find_people(listing_of(items), "auto").numbers)) == people


@pytest.mark.parametrize(
    "style",
    [
        "FER2013", "numbered", "people's numbers", "numbered by class", "class by number", "augmented",
        "augmented numbers", "Roboflow", "hashes", "AffectNet", "RAF-DB", "ExpW", "photos",
    ],
)  # fmt: skip
def test_counters_copies_and_hashes_are_nobody(style: str) -> None:
    assert find_pattern(read(name_files(style, random.Random(0))), CLASSES) is None


@pytest.mark.parametrize(
    "styles, person, people",
    [
        (["CK+48", "JAFFE", "FER2013"], r"S\d+|^[A-Z]{2,3}(?=[._-])", 39 + 8),
        # With folders in it a pattern is about paths: then neither CK-48 nor S1 is anybody.
        (
            ["CK+48", "FER2013", "JAFFE", "Oulu-CASIA"],
            r"S\d+(?=[^/]*$)|(?<![^/])[A-Z]{2,3}(?=[._-])(?=[^/]*$)|(?<![^/])[SP]\d+(?=/)",
            39 + 8 + 39,
        ),
    ],
)
def test_of_several_data_sets_each_has_its_pattern(
    listing_of: Callable[..., Listing], styles: list[str], person: str, people: int
) -> None:
    roots = {"CK+48": "CK-48", "JAFFE": "JA/S1x"}
    named = [file for s in styles for file in read(name_files(s, random.Random(0)), roots.get(s, s))]
    found = find_people(listing_of([Item(file, CLASSES[i], None, [], root=root) for file, i, root in named]), "auto")
    assert found.pattern == person
    assert len(np.unique(found.numbers)) == people + 1  # of one data set nobody is known


def test_one_class_a_person_is_a_copy_and_few_are_no_people() -> None:
    named = read(name_files("CK+48", random.Random(0)))
    assert (
        find_pattern([(file.replace("/S0", f"/S{label}"), label, root) for file, label, root in named], CLASSES) is None
    )
    for people in (7, 8):
        some = [item for item in named if int(item[0].split("/S")[1][:3]) <= people]
        assert (find_pattern(some, CLASSES) is None) == (people < 8)


@pytest.mark.heavy
@pytest.mark.parametrize("person", ["auto", None])
@pytest.mark.parametrize("own", [False, True])
def test_prepare_counts_people_in_two_splits_and_names_the_remedy(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], person: str | None, own: bool
) -> None:
    rng = random.Random(1)
    tree = {f"{rng.choice(CLASSES[:3])}/S{i:03}_{k}.png": draw_noise(9 * i + k) for i in range(20) for k in range(8)}
    if own:
        tree = {f"{rng.choice(('train', 'train', 'val', 'test'))}/{name}": data for name, data in tree.items()}
    source = write_zip(tmp_path / "s.zip", tree)
    people = prepare(prepare_params(source, person=person))["people"]
    table = pd.read_csv("data/prepared/manifest.csv")
    assert "person" not in table
    whose = table["file"].str.extract(r"(S\d+)")[0]
    in_train = whose.isin(whose[table["split"] == "train"])
    counts = {split: (in_train & (table["split"] == split)).sum() for split in ("test", "val")}
    assert people["count"] == 20
    assert {split: people["leaks"][f"{split}_in_train"] for split in counts} == counts
    assert min(counts.values()) > 10
    told = f"{counts['test']} of {(table['split'] == 'test').sum()} test"
    page = Path("reports/audit.html").read_text(encoding="utf-8")
    for text in (capsys.readouterr().out, page.replace("&#39;", "'")):
        assert told in text
        assert r"prepare.person: 'S\d+'" in text
        assert ("take the source's own splits away" in text) == own
    if not own:
        apart = prepare(prepare_params(source, person=people["pattern"]))["people"]
        assert (apart["kept_apart"], set(apart["leaks"].values())) == (True, {0})
        assert "20 people by prepare.person, none of them in two splits" in capsys.readouterr().out


@pytest.mark.heavy
def test_people_of_a_table_are_counted_when_nobody_minds(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(0)
    (tmp_path / "faces").mkdir()
    lines = ["path,label,subject"]
    for i in range(90):
        (tmp_path / "faces" / f"{i}.png").write_bytes(draw_noise(i))
        lines.append(f"{i}.png,{'ab'[rng.randint(0, 1)]},{i % 9}")
    (tmp_path / "faces" / "labels.csv").write_text("\n".join(lines))
    found = prepare(prepare_params(tmp_path / "faces", person=None))["people"]
    assert (found["count"], found["images"], found["pattern"]) == (9, 90, None)
    assert found["leaks"]["test_in_train"] > 0
    assert "prepare.person: auto" in capsys.readouterr().out
    assert set(prepare(prepare_params(tmp_path / "faces"))["people"]["leaks"].values()) == {0}
