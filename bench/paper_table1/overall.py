"""One figure of several: the normalised overall of i2L's Table 1, and the harmonic mean of S_txt and S_img.

    n_k(m) = (x_k(m) - min_j x_k(j)) / (max_j x_k(j) - min_j x_k(j))
    overall(m) = mean over k of n_k(m)

x_k(m): mean score of method m in metric k, higher is better; j runs over all methods measured side by side. The
paper (arXiv 2606.13809, section 4.3) says "the mean of normalized scores across all metrics" and not how: min-max
is our reading. It makes the overall independent of each metric's unit and zero, and a figure of the table, not of
the method alone: another method in the table changes it.

    H = 2 S_txt S_img / (S_txt + S_img)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

Scores = Mapping[str, Mapping[str, float]]  # method -> figure -> mean over all pictures


def telling(scores: Scores, figures: Sequence[str]) -> list[str]:
    """The figures in which the methods differ; the others normalise to 0 / 0 and have no say in the overall."""
    return [k for k in figures if len({row[k] for row in scores.values()}) > 1]


def overall(scores: Scores, figures: Sequence[str]) -> dict[str, float] | None:
    """Method -> 0 (worst in every figure) to 1 (best in every figure), or None where no two methods differ."""
    figures = telling(scores, figures)
    if not figures:
        return None
    total = dict.fromkeys(scores, 0.0)
    for k in figures:
        column = [row[k] for row in scores.values()]
        low, high = min(column), max(column)
        for method, row in scores.items():
            total[method] += (row[k] - low) / (high - low)
    return {method: value / len(figures) for method, value in total.items()}


def harmonic(text: float, image: float) -> float:
    """Of two cosines; 0, its limit, where one of them is not above 0."""
    return 2 * text * image / (text + image) if min(text, image) > 0 else 0.0
