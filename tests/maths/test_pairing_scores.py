"""How course/pairing.py scores a pairing whose truth is known, and where pairing may look."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from course.pairing import against_truth, gene_spaces, log_normalise

N = 200


@pytest.fixture
def cells():
    return np.random.default_rng(0).normal(size=(N, 5))


def test_a_perfect_pairing_has_the_best_scores(cells):
    """All are found, nothing is nearer, at no distance."""
    assert against_truth(cells, cells, np.arange(N)) == (1.0, 0.0, 0.0)


def test_a_random_pairing_has_the_scores_of_chance(cells):
    """One in 200 is found, half of the pool is nearer (5 standard errors), at the mean distance."""
    drawn = np.random.default_rng(0).permutation(N)
    found, nearer, distance = against_truth(cells, cells, drawn)
    assert found < 0.05
    assert abs(nearer - 0.5) < 5 * np.sqrt(1 / 12 / N)
    assert distance == pytest.approx(1, abs=0.1)


def test_the_rank_of_chance_is_half_of_the_pool_also_where_the_pool_is_small(cells):
    """A quarter as many others as cells (5 standard errors of the pool's drawn members)."""
    pool = np.random.default_rng(1).normal(size=(N // 4, 5))
    drawn = np.random.default_rng(2).integers(0, N // 4, N)
    assert abs(against_truth(cells, pool, drawn)[1] - 0.5) < 5 * np.sqrt(1 / 12 / N)


def test_the_rank_counts_the_cells_that_are_nearer(cells):
    """Of 199 others: 1 where everyone gets the nearest other, 199 where the farthest."""
    order = cdist(cells, cells).argsort(1)
    assert against_truth(cells, cells, order[:, 1])[1] == pytest.approx(1 / 199)
    assert against_truth(cells, cells, order[:, -1])[1] == pytest.approx(1)


def test_the_distance_is_relative_to_the_pools(cells):
    """Twice as far apart in all genes is the same score; the pool may be other cells."""
    pool = np.random.default_rng(1).normal(size=(N, 5))
    drawn = np.random.default_rng(2).permutation(N)
    distance = against_truth(cells, pool, drawn)[2]
    moved = np.linalg.norm(cells - pool[drawn], axis=1)
    assert distance == pytest.approx(moved.mean() / cdist(cells, pool).mean())
    assert against_truth(2 * cells, 2 * pool, drawn)[2] == pytest.approx(distance)


@pytest.fixture(scope="module")
def controls():
    """400 cells of 60 genes, whose means and variances rise."""
    noise = np.random.default_rng(0).normal(size=(400, 60))
    return (noise * np.linspace(0.1, 2, 60) + np.arange(60)).astype(np.float32)


def seen_in(controls, name):
    """The cells in one of the spaces, (C, k)."""
    return torch.from_numpy(controls) @ gene_spaces(controls)[name]


def test_pairing_may_look_at_all_genes(controls):
    """As they are."""
    assert np.allclose(seen_in(controls, "all genes"), controls)


def test_pairing_may_look_at_the_50_highest_genes(controls):
    """The ten of the lowest mean are left out."""
    seen = seen_in(controls, "50 highest genes").numpy()
    assert np.allclose(np.sort(seen, 1), np.sort(controls[:, 10:], 1))


def test_pairing_may_look_at_the_leading_components(controls):
    """They are uncorrelated, with the 20 largest eigenvalues of the covariance as variances."""
    leading = np.linalg.eigvalsh(np.cov(controls.T))[::-1][:20]
    assert np.allclose(np.cov(seen_in(controls, "20 PCs").numpy().T), np.diag(leading), atol=1e-2)


def test_counts_are_normalised_as_the_loader_does():
    """To the median library size, and log1p; here three cells of 2, 4 and 8 counts."""
    counts = np.array([[1, 1], [4, 0], [2, 6]])
    expected = np.log1p([[2.0, 2.0], [4.0, 0.0], [1.0, 3.0]])
    assert np.allclose(log_normalise(counts), expected)
