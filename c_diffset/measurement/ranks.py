"""Ranks of values that may be equal and have weights: what correlation, sparsification and detection are made of.

scipy and scikit-learn rank anew for other weights; here a bootstrap ranks once and changes the weights alone.
"""

import numpy as np

Array = np.ndarray


class Ranking:
    """The ascending order of values, equal ones in one group."""

    def __init__(self, values: Array):
        self.order = np.argsort(values, kind="stable")
        ascending = values[self.order]
        self.starts = np.flatnonzero(np.r_[True, ascending[1:] != ascending[:-1]])

    def sums(self, values: Array) -> Array:
        """The sum of each group, in ascending order."""
        return np.add.reduceat(values[self.order], self.starts)

    def ranks(self, weights: Array) -> Array:
        """The weight below each value, and half of the weight that shares its rank."""
        group = self.sums(weights)
        ranks = np.empty(len(self.order))
        ranks[self.order] = np.repeat(group.cumsum() - group / 2, np.diff(self.starts, append=len(self.order)))
        return ranks


def correlation(a: Array, b: Array, weights: Array) -> float:
    """The weighted correlation; 0 where one side is constant."""
    a, b = a - np.average(a, weights=weights), b - np.average(b, weights=weights)
    norm = np.sqrt((weights * a * a).sum() * (weights * b * b).sum())
    return float((weights * a * b).sum() / norm) if norm > 0 else 0.0


def spearman(a: Array, b: Array, weights: Array | None = None) -> float:
    """Rank correlation, ties at their mean rank, as `scipy.stats.spearmanr`; 0 where one side is constant."""
    weights = np.ones(len(a)) if weights is None else weights
    return correlation(Ranking(a).ranks(weights), Ranking(b).ranks(weights), weights)
