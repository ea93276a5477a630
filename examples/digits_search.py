"""A search for good parameters: how well a support vector machine reads handwritten digits, over a grid of two.

    pip install ".[examples]"
    python examples/digits_search.py [--steps N] [--folds N] [--digits N] [--picture FILE] [--workers N]
                                     [--no-serial]

Each point of the grid is one item of `pmap`, which shows its progress: a cross-validation on scikit-learn's set of
digits, or a part of it. Points differ in cost several times over, and each goes to the next free worker. It prints the
best parameters and the time that the same takes serially, and saves a picture of the whole grid.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import time
from pathlib import Path

# One thread for each process: see singular_values.py.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"):
    os.environ.setdefault(variable, "1")

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.model_selection import StratifiedKFold, cross_val_score  # noqa: E402
from sklearn.svm import SVC  # noqa: E402

import hybriddist as hd  # noqa: E402

matplotlib.use("Agg")  # into a file: no display is needed


@functools.cache
def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, scaled to 0 to 1, and what they show. They come with scikit-learn: each worker reads its own copy."""
    images, labels = load_digits(return_X_y=True)
    return images[:count] / 16, labels[:count]


def accuracy(penalty: float, gamma: float, *, count: int, folds: int) -> float:
    """The share of so many digits that are read correctly by a machine that was trained without them."""
    images, labels = digits(count)
    splits = StratifiedKFold(folds, shuffle=True, random_state=0)
    scores = cross_val_score(SVC(C=penalty, gamma=gamma), images, labels, cv=splits)
    return float(scores.mean())


def grid(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of both parameters that are tried."""
    return np.logspace(-2, 3, steps), np.logspace(-4, 1, steps)


def edges(values: np.ndarray) -> np.ndarray:
    """The borders of the cells around values on a logarithmic scale."""
    half = (values[1] / values[0]) ** 0.5
    return np.geomspace(values[0] / half, values[-1] * half, len(values) + 1)


def draw(penalties: np.ndarray, gammas: np.ndarray, accuracies: np.ndarray, picture: Path) -> None:
    """Save a map of the grid, with the best point marked.

    Args:
        accuracies: a row for each penalty, a column for each gamma.
    """
    from matplotlib import pyplot

    row, column = np.unravel_index(np.argmax(accuracies), accuracies.shape)
    figure, axes = pyplot.subplots(figsize=(7.5, 5.5), layout="constrained")
    mesh = axes.pcolormesh(edges(gammas), edges(penalties), accuracies, cmap="viridis")
    for (i, j), value in np.ndenumerate(accuracies):
        color = "black" if value > 0.6 else "white"
        axes.text(gammas[j], penalties[i], f"{value:.1%}", color=color, size=8, ha="center", va="center")
    axes.plot(gammas[column], penalties[row], marker="o", markersize=38, fillstyle="none", color="red", linestyle="")
    axes.set(xscale="log", yscale="log", xlabel="gamma", ylabel="penalty C")
    axes.set_title(
        f"Digits read correctly: {accuracies[row, column]:.2%} at best (C = {penalties[row]:.3g}, "
        f"gamma = {gammas[column]:.3g})"
    )
    figure.colorbar(mesh, ax=axes, label="accuracy in cross-validation")
    figure.savefig(picture, dpi=120)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Search for the parameters of a classifier of digits, in parallel.")
    parser.add_argument("--steps", type=int, default=7, metavar="N", help="values of each parameter (%(default)s)")
    parser.add_argument("--folds", type=int, default=3, metavar="N", help="of the cross-validation (%(default)s)")
    parser.add_argument("--digits", type=int, default=900, metavar="N", help="100 to 1797 (%(default)s)")
    parser.add_argument("--picture", type=Path, default=Path("digits_search.png"), metavar="FILE", help="%(default)s")
    parser.add_argument("--workers", type=int, metavar="N", help="default: one for each usable CPU")
    parser.add_argument("--no-serial", action="store_true", help="do not compute serially as well, to compare")
    options = parser.parse_args()
    if min(options.steps, options.folds, 2 if options.workers is None else options.workers + 1) < 2:
        parser.error("--steps and --folds must be at least 2, --workers at least 1")
    if not 100 <= options.digits <= 1797 or options.folds > 9:
        parser.error("--digits must be from 100 to 1797, --folds at most 9")  # some of each digit in each fold
    if not options.picture.parent.is_dir():
        parser.error(f"not a folder: {options.picture.parent}")
    penalties, gammas = grid(options.steps)
    # As two arrays of the grid's shape: so is the result.
    every_penalty, every_gamma = np.meshgrid(penalties, gammas, indexing="ij")
    score = functools.partial(accuracy, count=options.digits, folds=options.folds)

    workers = hd.addprocs(options.workers)
    hd.everywhere("import sklearn.svm, sklearn.model_selection, sklearn.datasets")  # before the clock starts
    start = time.perf_counter()
    accuracies = hd.pmap(score, every_penalty, every_gamma, progress=True)
    seconds = time.perf_counter() - start
    row, column = np.unravel_index(np.argmax(accuracies), accuracies.shape)
    draw(penalties, gammas, accuracies, options.picture)
    print(f"grid              {options.steps} x {options.steps}, {options.folds} folds of {options.digits} digits")
    print(f"best accuracy     {accuracies[row, column]:.2%}")
    print(f"at                C = {penalties[row]:.3g}, gamma = {gammas[column]:.3g}")
    print(f"picture           {options.picture}")
    print(f"\nparallel: {seconds:.2f} s with {len(workers)} workers")
    if not options.no_serial:
        start = time.perf_counter()
        serial = np.vectorize(score)(every_penalty, every_gamma)
        serial_seconds = time.perf_counter() - start
        print(f"serial:   {serial_seconds:.2f} s, {serial_seconds / seconds:.2f} times as long")
        if not np.array_equal(serial, accuracies):
            sys.exit("the results differ")
        print("the results are equal")


if __name__ == "__main__":
    main()
