"""The model card of a bundle, as Markdown, after Mitchell et al., "Model Cards for Model Reporting" (2019)."""

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

# What is said of a data set whose source has one of these words in its file name.
DATA_NOTES = {
    "sample": (
        "The faces are **drawn by a program** and not photographed. A classifier trained on them is there to try "
        "the pipeline; its scores say nothing about photographs of people."
    ),
    "fer": (
        "FER2013 (Goodfellow et al., \"Challenges in Representation Learning\", 2013) holds 35,887 grey faces of "
        "48x48 px, gathered by web image search on emotion words. It came with a Kaggle contest, and no licence "
        "covers the photographs: the people in them were not asked, and rights in the pictures are not cleared. "
        "Take it as research material. Its labels are noisy (people agree with them about 65 % of the time), "
        "disgust is rare (about 1.5 %), some pictures are no faces, and some stand in it more than once. The "
        "pictures show what a search engine offered in 2013, which over-represents white adults, actors and "
        "posed stock photographs."
    ),
}  # fmt: skip

AUDIT = (
    "The source holds {redundant} redundant copies of images, exact and near ones, {conflicting_groups} sets of such "
    "twins with different labels, and {test_in_train} test images with a twin in its training split."
)

# What is expected of a picture, by whether faces were cut out of photos in training.
CUT_OUT = (
    "One face, cropped roughly as in the training data, is expected, and any picture gets some class. Faces in photos "
    "are found on demand only."
)
PHOTOS = (
    "Photos are expected, in which MTCNN finds the faces. It overlooks some (small, turned, covered or badly lit ones) "
    "and takes some other things for faces; the scores below are on what it found."
)

VIEWS = "An answer, here and as it is served, is the mean over a picture and other views of it: {}."

LIMITS = """\
- **Apparent expression, not felt emotion.** The labels say what an annotator saw in a face. People smile without
  joy and are sad without showing it; Barrett et al. ("Emotional Expressions Reconsidered", 2019) review how weak
  the link is. Never take an answer as evidence of what someone feels, intends or is.
- **Law.** In the European Union, Article 5(1)(f) of the AI Act (Regulation (EU) 2024/1689) forbids AI systems that
  infer emotions of people at work and in education, other than for medical or safety reasons. Other emotion
  recognition is high-risk under its Annex III, and Article 50(3) asks that the people exposed to it be told.
- **Demographic bias.** Accuracy was not measured by age, gender, skin colour or culture, and is known to differ
  between such groups for classifiers of this kind. Measure it for your own population before any use.
- **Pictures.** {pictures} Pictures of other pose, light, age, crop or medium than the training data's are
  outside what the scores below say anything about.
- **Probabilities.** Calibrated by temperature scaling on the val split, and only for pictures like those: elsewhere 0.9
  need not be right nine times in ten.
"""


def render(
    bundle: Mapping[str, Any],
    counts: Mapping[str, Mapping[str, int]],
    params: Mapping[str, Any],
    per_class: Sequence[Mapping[str, str]] = (),
) -> str:
    """Write the card.

    Args:
        bundle: What ``bundle.json`` holds; before there is a bundle, without ``formats``, ``digest`` and ``run_id``,
            and the card says nothing of files.
        counts: Images by split and class.
        params: Flat ``prepare.*`` and ``train.*`` parameters of the training.
        per_class: Rows of ``reports/per_class.csv``, on the test split.

    Returns:
        Markdown, without dates and without paths of this machine.
    """
    source = PurePath(str(params.get("prepare.source", "unknown"))).name
    preprocessing = bundle["preprocessing"]
    colours = "grey" if preprocessing["channels"] == 1 else "colour"
    size = preprocessing["img_size"]
    sections = [
        f"# Facial expression classifier ({bundle['backbone']})",
        f"From one face to probabilities of {len(bundle['class_names'])} apparent expressions: "
        f"{', '.join(bundle['class_names'])}.",
        "## Intended use",
        "Research and teaching on facial-expression recognition, and as a baseline to compare others with. Not for "
        "decisions about people.",
        "## Limits",
        LIMITS.rstrip().format(pictures=PHOTOS if preprocessing.get("faces") else CUT_OUT),
        "## Data",
        f"Source: `{source}`; {size}x{size} px, {colours}; digest `{bundle['data_digest'][:16]}`.",
        *(note for word, note in DATA_NOTES.items() if word in source.lower()),
        _counts_table(counts, bundle["class_names"]),
        *([AUDIT.format(**bundle["audit"])] if bundle.get("audit") else []),
        "## Scores",
        _scores_table(bundle["metrics"]),
        *([VIEWS.format(", ".join(bundle["views"]))] if bundle.get("views") else []),
        "The test split was used for these figures only; the weights were picked on the val split. `test_clean` is "
        "test without the images that have a twin, exact or near, in what was trained on.",
        *([_table(list(per_class[0]), [_rounded(row) for row in per_class])] if per_class else []),
        "## Training",
        _table(["parameter", "value"], _training_rows(params)),
    ]
    if "formats" in bundle:
        sections += [
            "## Files",
            _table(["file", "state"], _format_rows(bundle["formats"], bundle.get("int8", {}))),
            f"Digest of all that decides an answer: `{bundle['digest']}`. MLflow run: `{bundle['run_id']}`.",
        ]
    return "\n\n".join(sections) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table; bars and line breaks in cells are escaped."""
    lines = [header, ["---"] * len(header), *rows]
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in cells)


def _counts_table(counts: Mapping[str, Mapping[str, int]], class_names: Sequence[str]) -> str:
    """Images by class (rows) and split (columns)."""
    splits = list(counts)
    rows = [[name, *(counts[split].get(name, 0) for split in splits)] for name in class_names]
    rows.append(["**all**", *(sum(counts[split].values()) for split in splits)])
    return _table(["class", *splits], rows)


def _scores_table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """Scores by split."""
    rows = [
        [split, name, f"{value:.4f}" if isinstance(value, float) else value]
        for split in scores
        for name, value in scores[split].items()
    ]
    return _table(["split", "metric", "value"], rows)


def _rounded(row: Mapping[str, str]) -> list[str]:
    """A row of the per-class table; fractions to three digits."""
    return [f"{float(cell):.3f}" if "." in cell and name != "class" else cell for name, cell in row.items()]


def _training_rows(params: Mapping[str, Any]) -> list[list[str]]:
    """The train parameters; of a weights file only the name, as its folder belongs to one machine."""
    rows = []
    for key, value in params.items():
        if key.startswith("train."):
            shown = PurePath(value).name if key == "train.weights" and value else value
            rows.append([key.removeprefix("train."), f"`{shown}`"])
    return rows


def _format_rows(formats: Mapping[str, str | None], int8: Mapping[str, Any]) -> list[list[str]]:
    """Each format, and why it is not there; of the int8 one also what it costs."""
    rows = [["weights.safetensors", "present"]]
    rows += [[f"model.{name}", f"absent: {why}" if why else "present"] for name, why in formats.items()]
    if int8.get("absent"):
        rows.append(["model.int8.onnx", f"absent: {int8['absent']}"])
    elif int8:
        cost = "accuracy {accuracy:.4f} on {images:,} val images, where model.onnx has {float_accuracy:.4f}"
        rows.append(["model.int8.onnx", f"present: {cost.format(**int8)}"])
    return rows
