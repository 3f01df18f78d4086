"""How often are reruns of one setting called different, and how often is a real difference found?

    python benchmarks/seeds.py FOLDER [OTHER]

Each folder has the ``predictions.csv`` of several seeds of one setting, on one test set, as ``evaluate`` writes it.
Of the first: all pairs of seeds by McNemar's exact test, random disjoint groups of seeds by
``pipeline.metrics.seed_anova``, and all ordered pairs by the gate of ``hyojo promote`` as params.yaml sets it, latency
and size left aside, all at 5 %. With a second folder: groups of the one against groups of the other. Pairs and splits
overlap, since they are drawn from the same few seeds, so a rate has less behind it than its number of splits.
"""

import argparse
import itertools
import sys
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))
from pipeline.core.params_file import load_params
from pipeline.experiments import gate
from pipeline.experiments.contenders import Contender, read_predictions
from pipeline.metrics.paired import mcnemar
from pipeline.metrics.seed_anova import compare_groups, mean_interval

LEVEL = 0.05


def read_right(folder: Path) -> np.ndarray:
    """Which answers were right, bool (S, N), samples in one order."""
    tables = [pd.read_csv(path, dtype=str).set_index("file").sort_index() for path in sorted(folder.glob("*.csv"))]
    if len(tables) < 2 or any(not table.index.equals(tables[0].index) for table in tables):
        sys.exit(f"{folder} must hold the predictions of 2 or more seeds on one test set")
    return np.array([table["label"] == table["predicted"] for table in tables])


def gate_rates(folder: Path) -> None:
    """Print how many ordered pairs of seeds the gate lets through, with and without their spread known to it."""
    seeds = [
        Contender(path.stem, "", {}, {}, {}, read_predictions(path.read_bytes(), str(path)))
        for path in sorted(folder.glob("*.csv"))
    ]
    sd = float(np.std([seed.right.mean() for seed in seeds], ddof=1))
    params = load_params().promote.model_copy(update={"level": LEVEL, "latency_ratio": None, "size_ratio": None})
    assumed = params.seed_sd
    for words, known, sure in (
        ("not considered", None, None),
        ("assumed", None, assumed),
        ("known", sd, None),
    ):
        count = 0 if known is None else len(seeds)
        verdicts = [
            gate.judge(*(
                gate.Evidence(
                    seed.name, seed.class_names, seed.files, seed.targets, seed.probs, seed.preds, "the same",
                    seed_sd=known, seed_runs=count,
                )
                for seed in pair
            ), params.model_copy(update={"seed_sd": sure}))
            for pair in itertools.permutations(seeds, 2)
        ]  # fmt: skip
        better = np.mean([verdict.figures["p_value"] <= LEVEL for verdict in verdicts])
        recall = np.mean([any("recall" in reason for reason in verdict.reasons) for verdict in verdicts])
        passed = np.mean([verdict.passed for verdict in verdicts])
        print(
            f"gate, rule {params.rule}, seeds' spread {words}: p <= {LEVEL} in "
            f"{better:.3f} of {len(verdicts)} ordered pairs, refused for recall {recall:.3f}, passed {passed:.3f}"
        )


def splits(count: int, size: int, limit: int, rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Random pairs of disjoint groups of ``size`` out of ``count`` seeds."""
    drawn = [rng.permutation(count)[: 2 * size] for _ in range(limit)]
    return [(one[:size], one[size:]) for one in drawn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--splits", type=int, default=500)
    arguments = parser.parse_args()
    rng, right = np.random.default_rng(0), read_right(arguments.folder)
    accuracy = mean_interval(right.mean(axis=1))
    print(f"{len(right)} seeds, {right.shape[1]} samples: accuracy {accuracy.mean:.4f}, sd {accuracy.sd:.4f}")
    pairs = list(itertools.combinations(right, 2))
    called = np.mean([mcnemar(*pair) < LEVEL for pair in pairs])
    print(f"single seeds, McNemar: {called:.3f} of {len(pairs)} pairs called different")
    gate_rates(arguments.folder)
    other = None
    if arguments.other:
        other = read_right(arguments.other)
        accuracy = mean_interval(other.mean(axis=1))
        print(f"other: {len(other)} seeds: accuracy {accuracy.mean:.4f}, sd {accuracy.sd:.4f}")
        called = np.mean([mcnemar(a, b) < LEVEL for a in right for b in other])
        print(f"single seeds of either, McNemar: {called:.3f} of {len(right) * len(other)} pairs")
    for size in (2, 3, 5, 8):
        if 2 * size <= len(right):
            drawn = splits(len(right), size, arguments.splits, rng)
            found = np.array([compare_groups(right[a], right[b]).p_value for a, b in drawn])
            print(f"{size} against {size}, same setting: {np.mean(found < LEVEL):.3f} of {len(drawn)} splits")
        if other is not None and size <= min(len(right), len(other)):
            found = [
                compare_groups(
                    right[rng.permutation(len(right))[:size]], other[rng.permutation(len(other))[:size]]
                ).p_value
                for _ in range(arguments.splits)
            ]
            print(f"{size} against {size}, other setting: {np.mean(np.array(found) < LEVEL):.3f} of {len(found)}")


if __name__ == "__main__":
    main()
