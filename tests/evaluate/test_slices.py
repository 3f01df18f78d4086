"""Slices worked out by hand, and subsets and accuracies of pictures made worse."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import fisher_exact

from pipeline.core.dataset import Split
from pipeline.evaluate import robustness, slices
from pipeline.evaluate.net import Net
from pipeline.metrics.intervals import accuracy_interval


def grey(values: list[int]) -> np.ndarray:
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), 4, 4, 1))


def tabulate(right: np.ndarray, targets: np.ndarray, images: np.ndarray, **given: object) -> pd.DataFrame:
    """The slices of answers that are right or wrong."""
    names = list("abcd")
    probs = np.eye(len(names))[np.where(right, targets, (targets + 1) % len(names))]
    return slices.tabulate(Split(images, targets, [""] * len(targets)), probs, names, **given)


def test_a_worked_case() -> None:
    # 80 images: of class a 40, all right; of b 40, half right. Root x holds the dark ones, half of each class.
    targets = np.repeat([0, 1], 40)
    right = np.concatenate([np.ones(40, bool), np.arange(40) % 2 == 0])
    dark = np.tile(np.arange(20) < 10, 4)
    roots = np.where(dark, "x", "y")
    columns = {"root": roots, "person": ["someone"] * 80}
    table = tabulate(right, targets, grey(np.where(dark, 50, 200).tolist()), parts=2, columns=columns)
    found = table.set_index(["by", "slice"])
    # Classes c and d have no images; one person is no slice; even pictures are all equally sharp.
    assert [name for name in table["by"].unique()] == ["class", "root", "brightness", "sharpness"]
    b = found.loc[("class", "b")]
    assert (b["images"], b["accuracy"], b["rest"]) == (40, 0.5, 1.0)
    assert (b["low"], b["high"]) == pytest.approx(accuracy_interval(20, 40))
    # Benjamini and Yekutieli: the smallest of m values is multiplied by m (1 + 1/2 + ... + 1/m).
    p = fisher_exact([[20, 20], [40, 0]], alternative="less").pvalue
    m = len(table)
    assert b["p"] == pytest.approx(p * m * sum(1 / i for i in range(1, m + 1)))
    assert table[table["worse"]][["by", "slice"]].values.tolist() == [["class", "b"]]
    (line,) = slices.worse_slices(table)
    assert line.startswith("class b: accuracy 0.5000 [")
    assert line.endswith("on 40 images, 1.0000 on the rest")
    darkest = found.loc[("brightness", "1 of 2, darkest")]
    assert darkest["images"] == dark.sum() == found.loc[("root", "x")]["images"]
    assert darkest["accuracy"] == right[dark].mean()


def test_chance_is_seldom_called_worse() -> None:
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(40):
        right, roots = rng.random(200) < 0.7, rng.integers(0, 5, 200).astype(str)
        table = tabulate(right, rng.integers(0, 4, 200), grey([1] * 200), parts=1, columns={"root": roots})
        called += bool(table["worse"].any())
    assert called <= 4


def test_small_and_nameless_values_of_a_column_are_no_slices() -> None:
    roots = ["big"] * 50 + ["other"] * 30 + ["small"] * 19 + [""] * 30
    right = np.ones(len(roots), bool)
    targets, images = np.zeros(len(roots), int), grey([9] * len(roots))
    table = tabulate(right, targets, images, parts=1, columns={"root": roots})
    assert table[table["by"] == "root"]["slice"].tolist() == ["big", "other"]
    assert not table["worse"].any()


def test_quantiles_hold_equally_many_and_keep_equals_together() -> None:
    places = slices.cut(np.arange(100.0), 4, ("low", "high"))
    names = ["1 of 4, low", "2 of 4", "3 of 4", "4 of 4, high"]
    assert places.tolist() == np.repeat(names, 25).tolist()
    assert len(set(slices.cut(np.ones(10), 4, ("low", "high")))) == 1


def test_subset_keeps_the_classes_shares() -> None:
    targets = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [600, 300, 100]))
    rows = robustness.choose(targets, 100)
    assert len(set(rows.tolist())) == 100
    assert np.abs(np.bincount(targets[rows]) - [60, 30, 10]).max() <= 1
    np.testing.assert_array_equal(rows, robustness.choose(targets, 100))
    assert robustness.choose(targets, None).tolist() == robustness.choose(targets, 5000).tolist() == list(range(1000))


class Threshold(torch.nn.Module):
    """Says that a picture is of class 1 if its mean is above 128."""

    views = ()  # as a Classifier has them: the image alone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        bright = images.float().mean((1, 2, 3)) > 128
        return torch.stack([~bright, bright], 1).float()


def test_accuracy_falls_just_where_a_corruption_crosses_the_threshold() -> None:
    # 115 is right until brightness may add 13 or more (0.05 of 255 is 12.75; 115 + 12.75 rounds to 128, not above it).
    split = Split(np.repeat(grey([115, 255]), 20, axis=0), np.repeat([0, 1], 20), [""] * 40)
    net = Net(Threshold(), torch.device("cpu"), 16)
    table = robustness.measure(net, split, ["brightness", "contrast"], None)
    assert table["level"].tolist() == [0, *range(1, 6), *range(1, 6)]
    assert table["accuracy"][0] == 1
    light = table[table["corruption"] == "brightness"]["accuracy"].tolist()
    assert light[0] == 1 > light[1] == light[4]
    assert (table[table["corruption"] == "contrast"]["accuracy"] == 1).all()
    mean = pytest.approx((1 + 4 * light[1] + 5) / 10)
    assert robustness.headline(table) == {"mean_corruption_accuracy": mean, "clean_accuracy": 1.0, "images": 40}
    assert "brightness costs most" in robustness.robustness_text(table)
    assert robustness.measure(net, split, [], None).empty
