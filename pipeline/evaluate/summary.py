"""What evaluate says in the terminal."""

from collections.abc import Iterator

from pipeline.core.paths import REPORTS
from pipeline.evaluate import robustness, slices
from pipeline.evaluate.findings import Findings
from pipeline.metrics import by_class
from pipeline.metrics.calibration import remark_bound
from pipeline.metrics.table import TITLES


def summarise(found: Findings) -> str:
    """Return the scores of the test split as a short table, with the recall of every class, and a line on the rest."""
    return "\n".join([*_scores(found), *_trust(found), *_views(found), *_rest(found)])


def _scores(found: Findings) -> Iterator[str]:
    table = by_class.per_class(found.test.targets, found.preds, found.class_names)
    width = max(17, *(len(name) for name in found.class_names))
    yield f"test split, {len(found.test):,} images"
    for name, value in found.result["test"].items():
        low, high = found.intervals[name]
        yield f"  {TITLES[name]:{width}}  {value:.4f}  (95 % interval {low:.4f} to {high:.4f})"
    yield f"  {'class':{width}}  recall  images"
    for name, recall, support in zip(table["class"], table["recall"], table["support"]):
        yield f"  {name:{width}}  {recall:.4f}  {support:6,}"


def _trust(found: Findings) -> Iterator[str]:
    """A sentence on calibration and one on abstention."""
    ece, abstain = found.trust["ece"]["test"], found.trust["abstain"]
    yield (
        f"calibrated at temperature {found.trust['temperature']:g}: ECE {ece['before']:.4f} before, "
        f"{ece['after']:.4f} after"
    )
    if bound := remark_bound(found.trust["temperature"]):
        yield f"that temperature is at the bound: {bound}"
    if abstain["threshold"] is None:
        yield f"no confidence keeps the wrong answers to {abstain['risk']:.0%} on val"
    else:
        test = abstain["test"]
        yield (
            f"sure enough ({abstain['threshold']:.2f}) for {test['coverage']:.0%} of test, of which "
            f"{test.get('risk', 0):.1%} are wrong (wanted: {abstain['risk']:.0%})"
        )


def _views(found: Findings) -> Iterator[str]:
    """A sentence on what the mean over views scores, or, where that is the model, the image alone."""
    if "tta" not in found.trust:
        return
    tta = found.trust["tta"]
    mean = f"the mean over {tta['passes']} views ({', '.join(tta['views'])})"
    beside = found.result["test_plain" if tta["served"] else "test_tta"]
    scores = f"accuracy {beside['accuracy']:.4f}, {found.views_ms:.2f} ms an image"
    if tta["served"]:
        yield f"all of this is of {mean}, which is what is served"
        yield f"the image alone: {scores}"
    else:
        yield f"{mean}, at {tta['passes']} forward passes: {scores}"


def _rest(found: Findings) -> Iterator[str]:
    """Twins, robustness, slices, suspects, and where it all is to be read."""
    clean = found.result["test_clean"]
    if 0 < clean["images"] < len(found.test):
        yield f"without twins of training images, {clean['images']:,} images: accuracy {clean['accuracy']:.4f}"
    if len(found.robust):
        yield robustness.robustness_text(found.robust)
    for line in slices.worse_slices(found.slices):
        yield f"worse than the rest, {line}"
    if found.suspects is None:
        yield "too weak to tell which labels are wrong: it is right no more often than chance could be"
    else:
        yield f"{len(found.suspects)} of the val and test labels are in doubt, see {REPORTS / 'label_suspects.html'}"
    yield f"all of it on one page: {REPORTS / 'report.html'}"
