"""Labels that are probably wrong, as far as a model tells."""

import numpy as np
import pandas as pd

from pipeline.core.dataset import Split

COLUMNS = ["file", "split", "row", "label", "suggested", "prob_label", "prob_suggested"]
PERMUTATIONS, LEVEL = 999, 0.01


def find_suspects(targets: np.ndarray, probs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the samples whose label is probably wrong.

    Confident learning (Northcutt, Jiang and Chuang, "Confident learning: estimating uncertainty in dataset
    labels", 2021). A sample counts as of a class if its probability there is at least the mean over the samples with
    that label, and as of the likeliest of several such classes. Suspects are those whose label is another one: the
    off-diagonals of the paper's confident joint.

    Args:
        targets: Class indices, integers (N,).
        probs: Class probabilities, floats (N, K), of a model that was not trained on these samples.

    Returns:
        The suspects, int64 (M,), those first whose suggested class is likelier than their label by most, and the
        suggested classes, int64 (M,).
    """
    samples = np.arange(len(targets))
    own = probs[samples, targets]
    count = np.bincount(targets, minlength=probs.shape[1])
    usual = np.bincount(targets, own, minlength=probs.shape[1]) / np.maximum(count, 1)
    usual[count == 0] = np.inf  # of a class without samples nothing is known: it is never suggested
    sure = np.where(probs >= usual, probs, -1.0)
    suggested = np.where(sure.max(axis=1) >= 0, sure.argmax(axis=1), targets)
    margin = probs[samples, suggested] - own
    order = np.argsort(-margin, kind="stable")
    order = order[suggested[order] != targets[order]]
    return order, suggested[order]


def beats_chance(targets: np.ndarray, probs: np.ndarray) -> bool:
    """Whether a model is right more often than its answers, dealt out anew, would be.

    The permutation test of Ojala and Garriga ("Permutation tests for studying classifier performance", JMLR 11, 2010).
    Saying the commonest class of all samples is no better than chance, however common it is.

    Args:
        targets: Class indices, integers (N,).
        probs: Class probabilities, floats (N, K).
    """
    rng, answers = np.random.default_rng(0), probs.argmax(axis=1)
    right = (answers == targets).sum()
    by_chance = sum((answers == rng.permutation(targets)).sum() >= right for _ in range(PERMUTATIONS))
    return bool((1 + by_chance) / (1 + PERMUTATIONS) <= LEVEL)


def tabulate(splits: dict[str, Split], probs: dict[str, np.ndarray], class_names: list[str]) -> pd.DataFrame | None:
    """List the suspects of several splits, judged together.

    Args:
        splits: Splits that the model was not trained on, by name.
        probs: The probabilities of each, floats (N, K).
        class_names: The K class names.

    Returns:
        The columns ``COLUMNS``, ``row`` being that in the split; None where the model is no better than chance.
    """
    targets = np.concatenate([split.targets for split in splits.values()])
    together = np.concatenate([probs[name] for name in splits])
    names = np.array(class_names, dtype=object)
    if not beats_chance(targets, together):
        return None
    found, suggested = find_suspects(targets, together)
    everything = pd.DataFrame(
        {
            "file": [file for split in splits.values() for file in split.files],
            "split": np.repeat(list(splits), [len(split) for split in splits.values()]),
            "row": np.concatenate([np.arange(len(split)) for split in splits.values()]),
            "label": names[targets],
        }
    )
    table = everything.iloc[found].reset_index(drop=True)
    table["suggested"] = names[suggested]
    table["prob_label"] = together[found, targets[found]]
    table["prob_suggested"] = together[found, suggested]
    return table
