"""What is measured of a screen's cells: means, fractions, covariances, effects of knock-downs.

Axes: C cells, N genes, P targets, Q training conditions.
"""

import math
import re

import numpy as np

from screens.files import blocks
from screens.labels import CONTROL, targets_of, text_of

CELLS_AT_ONCE = 4096


# ---- Populations ---------------------------------------------------------------------------------


def sums_of_cells(X, rows=None):
    """How many cells there are; of each gene, how many express it, the sum and that of squares.

    X (C, N): log1p expression, sparse; rows: some of its rows. Returns a number and (3, N).
    """
    n_genes = X.shape[1]
    cells = 0
    sums = np.zeros((3, n_genes))
    for block in blocks(X, rows):
        cells += block.shape[0]
        x = block.data.astype(np.float64)
        sums += [np.bincount(block.indices, values, n_genes) for values in (x > 0, x, x**2)]
    return cells, sums


def population_statistics(X, rows=None):
    """What a population expresses: mean, level, fraction and variance of each gene, (4, N) float32.

    X, rows: as for `sums_of_cells`. mean: of all cells; level: the mean of the cells that express
    the gene; fraction: how many of the cells do; variance: of the level among these cells. A gene
    that no cell expresses has level and variance 0.
    """
    cells, (expressing, total, squares) = sums_of_cells(X, rows)
    at_least_one = np.maximum(expressing, 1)
    level = total / at_least_one
    variance = np.maximum(squares / at_least_one - level**2, 0)
    return np.stack([total / cells, level, expressing / cells, variance]).astype(np.float32)


def control_statistics(screen, cell_type, elsewhere):
    """What a cell type's controls express: four (N,) statistics, and how many cells they are.

    Mean, level, fraction and variance, as `population_statistics` has them. Genes that these
    controls never express take the level `elsewhere` (N,).
    """
    rows = screen.controls(cell_type)
    mean, level, fraction, variance = population_statistics(screen.X, rows)
    level = np.where(fraction > 0, level, elsewhere)
    return mean, level, fraction, variance, len(rows)


def training_statistics(screen):
    """What was counted in the Q training conditions, and how the genes vary within them.

    Returns how many cells there are (Q, 1), how many of them express each gene (Q, N), their mean
    level (Q, N), and the variance of the level within a condition (N,).
    """
    cells, on, level, squares = [], [], [], []
    for rows in screen.training_groups().values():
        _, mean, fraction, variance = population_statistics(screen.X, rows)
        cells.append([len(rows)])
        on.append(fraction.astype(np.float64) * len(rows))
        level.append(mean)
        squares.append(variance * on[-1])
    degrees = np.maximum(np.array(on) - 1, 0).sum(0)
    variance = np.sum(squares, 0) / np.maximum(degrees, 1)
    return np.array(cells), np.array(on), np.array(level), variance


# Words of the column `perturbation_type`. "CRISPR" alone says neither.
RISE = re.compile("crispra|activat|over-?express|gain", re.IGNORECASE)
FALL = re.compile(
    "crispri|interfer|repress|inhibit|knock|-?ko\\b|rnai|[ls]hrna|sirna", re.IGNORECASE
)
# Names of guides hold names of genes, such as KNOCK, so of them only CRISPRa, i and ko are read.
GUIDE = re.compile("guide|grna", re.IGNORECASE)
IN_GUIDES = re.compile("crispr(?:a|i|ko)(?![a-z])", re.IGNORECASE)


def stated_directions(screen):
    """{cell type: 1.0 or -1.0}: whether its perturbed genes rise or fall, where the file says so.

    By the column `perturbation_type` of its perturbed cells: CRISPRa, activation, overexpression;
    CRISPRi, knock-out, knock-down …; and by CRISPRa, CRISPRi or CRISPRko in names of guides
    (columns such as `guide_id` or `sgRNA`). A type of which they say neither, or both, is left out.
    """
    if screen.kind != "gene":
        return {}
    texts = screen.obs.select_dtypes(["object", "string", "category"])
    guides = [column for column in texts if GUIDE.search(str(column))]
    kinds = np.full(len(screen.perturbation), "")
    if "perturbation_type" in screen.obs:
        kinds = text_of(screen.obs, "perturbation_type", screen.source).astype(str)
    perturbed = screen.perturbation != CONTROL
    stated = {}
    for cell_type in screen.cell_types:
        rows = perturbed & (screen.cell_type == cell_type)
        words = list(np.unique(kinds[rows]))
        for column in guides:
            names = " ".join(map(str, texts.loc[rows, column].unique()))
            words += IN_GUIDES.findall(names)
        said = " ".join(words)
        rise, fall = bool(RISE.search(said)), bool(FALL.search(said))
        if rise != fall:
            stated[cell_type] = 1.0 if rise else -1.0
    return stated


def directions(screen):
    """Whether perturbed genes rise (1.0) or fall (-1.0) in each of K cell types: (K,).

    As the file states it; else by what the perturbed genes' own transcripts did in the other types.
    """
    stated = stated_directions(screen)
    measured = measured_direction(screen, stated)
    return np.array([stated.get(cell_type, measured) for cell_type in screen.cell_types])


def measured_direction(screen, stated):
    """Whether own transcripts rose (1.0) or fell (-1.0), where nothing is stated of the type."""
    position = {gene: i for i, gene in enumerate(screen.genes)}
    moved = 0.0
    for (perturbation, cell_type), shift in mean_shifts(screen).items():
        for target, _ in targets_of(perturbation, screen.kind):
            if target in position and cell_type not in stated:
                moved += shift[position[target]]
    return 1.0 if moved > 0 else -1.0


def mean_of(screen, rows):
    """The mean expression (N,) of some cells."""
    return np.asarray(screen.X[rows].mean(0)).ravel()


def mean_shifts(screen):
    """How far each training condition moved the mean expression from its cell type's controls.

    {(perturbation, cell type): (N,)}, of all training conditions but the controls.
    """
    mean = {key: mean_of(screen, rows) for key, rows in screen.training_groups().items()}
    return {key: mean[key] - mean[CONTROL, key[1]] for key in mean if key[0] != CONTROL}


def hurdle_shifts(screen):
    """How far each training condition moved its cell type's controls, in a hurdle model's terms.

    {(perturbation, cell type): (2, N)}: of the log odds of being on, and of the mean level if
    expressed. Half a cell is added on either side, so that no log odds are infinite; the level of a
    gene that one of the two groups never expresses has not moved.
    """
    described = {}
    for key, rows in screen.training_groups().items():
        _, level, fraction, _ = population_statistics(screen.X, rows).astype(np.float64)
        on = fraction * len(rows)
        described[key] = on, np.log((on + 0.5) / (len(rows) - on + 0.5)), level
    shifts = {}
    for key, (on, log_odds, level) in described.items():
        if key[0] != CONTROL:
            on_before, log_odds_before, level_before = described[CONTROL, key[1]]
            moved = np.where((on > 0) & (on_before > 0), level - level_before, 0)
            shifts[key] = np.stack([log_odds - log_odds_before, moved])
    return shifts


# ---- For the gene network ------------------------------------------------------------------------


def within_covariance(screen, groups, columns=slice(None)):
    """Covariance (N, N) of the genes around the mean of their own group, and the number of cells.

    Pooled over the groups, each an array of row numbers; of some columns only, if asked. Memory is
    N^2, not cells x N: cells are made dense 4,096 at a time.
    """
    products = 0.0
    cells = 0
    for rows in groups:
        mean = mean_of(screen, rows).astype(np.float32)
        for block in np.array_split(rows, max(1, math.ceil(len(rows) / CELLS_AT_ONCE))):
            centred = screen.dense(block) - mean
            products = products + centred.T @ centred[:, columns]
        cells += len(rows)
    return np.asarray(products, np.float64) / cells, cells


def knock_downs(screen, names, sd, signs):
    """What training perturbations did to the means, in units of the genes' standard deviations.

    names: of P targets, all of them measured genes; sd (N,); signs (K,): see `directions`. Of the Q
    training conditions whose targets are all among these: how far each target moved (Q, P), which
    is its own mean in the controls; how far every gene moved (Q, N); and the error variance of that
    (Q, 1).
    """
    shift = mean_shifts(screen)
    place = {name: i for i, name in enumerate(names)}
    gene_of = [int(np.flatnonzero(screen.genes == name)[0]) for name in names]
    height = {}
    for cell_type, sign in zip(screen.cell_types, signs, strict=True):
        height[cell_type] = sign * mean_of(screen, screen.controls(cell_type)) / sd
    falls = []
    moves = []
    variances = []
    for key in shift:
        perturbation, cell_type = key
        targets = dict(targets_of(perturbation, screen.kind))
        if not set(targets) <= set(place):
            continue
        fall = np.zeros(len(names))
        for target in targets:
            fall[place[target]] = height[cell_type][gene_of[place[target]]]
        falls.append(fall)
        moves.append(shift[key] / sd)
        variances.append(error_variance(screen, key))
    return [
        np.reshape(falls, (-1, len(names))),
        np.reshape(moves, (-1, len(sd))),
        np.reshape(variances, (-1, 1)),
    ]


def error_variance(screen, key):
    """The variance of a condition's measured shift, in units of the genes' variances.

    Of the means of both groups of cells, and 0.003 for the linear model itself: effects are not
    linear, so no shift is known to better than 0.05 standard deviations.
    """
    n_perturbed = len(screen.groups[key])
    n_controls = len(screen.controls(key[1]))
    return 1 / n_perturbed + 1 / n_controls + 0.003
