"""Mutants of scoring, metrics and tables: (file, old text, new text, why it is wrong)."""

METRICS = [
    (
        "report/metrics.py",
        "return energy if squared else energy**0.5",
        "return energy**0.5 if squared else energy",
        "root and square exchanged",
    ),
    (
        "report/metrics.py",
        "within_x = mean_kernels(x, x, kernels, True)",
        "within_x = mean_kernels(x, x, kernels)",
        "biased: a cell's distance to itself counts",
    ),
    (
        "report/metrics.py",
        "return 2 * between - within_x - within_y",
        "return between - within_x - within_y",
        "the cross term counted once",
    ),
    (
        "report/metrics.py",
        "return 2 * between - within_x - within_y",
        "return 2 * between - within_x",
        "the spread of the measured cells is not taken off",
    ),
    (
        "report/metrics.py",
        "block -= values.trace(offset=start, dtype=np.float64)",
        "pass",
        "biased: a cell's distance to itself counts",
    ),
    (
        "report/metrics.py",
        "values.trace(offset=start, dtype=np.float64)",
        "values.trace(dtype=np.float64)",
        "from the second block on, the wrong distances are left out",
    ),
    (
        "report/metrics.py",
        "    x = np.sort(x, 0)\n    y = np.sort(y, 0)\n",
        "    x = np.sort(x, 1)\n    y = np.sort(y, 1)\n",
        "genes sorted within cells",
    ),
    (
        "report/metrics.py",
        "gap -= y[edges[:-1] // n]",
        "gap -= y[edges[:-1] // m % m]",
        "quantiles of unequal samples misaligned",
    ),
    (
        "report/metrics.py",
        "return -two_sample(",
        "return two_sample(",
        "sign of MMD^2",
    ),
    (
        "report/metrics.py",
        "return 1 / median if median > 0 else 1.0",
        "return 1 / median**2 if median > 0 else 1.0",
        "the kernel's width in squares of squared distances",
    ),
    (
        "report/metrics.py",
        "upper = np.triu_indices(len(x), 1)",
        "upper = np.triu_indices(len(x))",
        "a cell's distance to itself sets the kernel's width",
    ),
    (
        "report/metrics.py",
        "correlation((x > 0).mean(0), (y > 0).mean(0))",
        "correlation(x.mean(0), y.mean(0))",
        "correlation of means instead of activation",
    ),
    (
        "report/metrics.py",
        "return correlation(x.mean(0) - reference, y.mean(0) - reference)",
        "return correlation(x.mean(0), y.mean(0))",
        "cells correlate whatever a perturbation does",
    ),
    (
        "report/metrics.py",
        "np.mean((far < own) + 0.5 * (far == own))",
        "np.mean(far < own)",
        "a prediction that tells nothing apart looks perfect",
    ),
    (
        "report/metrics.py",
        "equal_var=False",
        "equal_var=True",
        "Student's t where Welch's is meant",
    ),
    (
        "report/metrics.py",
        "return 1 - (score - floor) / (control - floor)",
        "return (score - floor) / (control - floor)",
        "the gap left instead of the gap closed",
    ),
    (
        "report/metrics.py",
        "own = np.delete(np.abs(y.mean(0) - x.mean(0)), without).sum()",
        "own = np.abs(y.mean(0) - x.mean(0)).sum()",
        "the genes left out count in one of two distances",
    ),
    (
        "report/metrics.py",
        "return float(np.mean(far > own))",
        "return float(np.mean(far >= own))",
        "a prediction that tells nothing apart has the best centroid accuracy",
    ),
    (
        "report/metrics.py",
        "weights = ((t - t.min()) / np.ptp(t)) ** 2",
        "weights = (t - t.min()) / np.ptp(t)",
        "weights that are not squared",
    ),
    (
        "report/metrics.py",
        "return weights / weights.sum()",
        "return weights",
        "weights that do not add up to 1",
    ),
    (
        "report/metrics.py",
        "variance = weights @ (change - weights @ change) ** 2",
        "variance = weights @ change**2",
        "R^2 against no change in place of the mean change",
    ),
]

CALIBRATION = [
    (
        "report/calibration.py",
        "alpha = 1 - stats.false_discovery_control(",
        "alpha = 1 - (",
        "p-values that are not adjusted",
    ),
    (
        "report/calibration.py",
        "return half + (1 - alpha) * (mean - of_half[0])",
        "return half + alpha * (mean - of_half[0])",
        "the average where genes differ, measured where they do not",
    ),
    (
        "report/calibration.py",
        "np.nan_to_num(p, nan=1.0)",
        "np.nan_to_num(p, nan=0.0)",
        "a gene that nobody expresses counts as different",
    ),
    (
        "report/calibration.py",
        "return (positive - negative) / (perfect - negative)",
        "return (positive - negative) / perfect",
        "range as a share of the perfect score",
    ),
    (
        "report/calibration.py",
        "return 2 * r / (1 + r)",
        "return r",
        "the ceiling of half the cells for that of all",
    ),
    (
        "report/calibration.py",
        "others = distances.sum() - 2 * between - within",
        "others = distances.sum() - between - within",
        "distances between the groups counted as within the second",
    ),
    (
        "report/calibration.py",
        "chosen = np.vstack([first, rng.permuted(",
        "chosen = np.vstack([rng.permuted(first), rng.permuted(",
        "the groups themselves are not tested",
    ),
]

SCORING = [
    (
        "evaluate.py",
        " and len(screen.controls(key[1])) >= 2\n",
        "\n",
        "a type with one control is a traceback",
    ),
    (
        "evaluate.py",
        "    if copied:\n",
        "    if False:\n",
        "the truth passes for a prediction without a word",
    ),
    (
        "evaluate.py",
        "    if (X.data == np.round(X.data)).all() and",
        "    if False and",
        "counts are scored against logs without a word",
    ),
    (
        "report/metrics.py",
        "within_y = mean_kernels(y, y, kernels, True) if own is None else own",
        "within_y = mean_kernels(y, y, kernels, True) if own is None else 0",
        "the table's distances lack the spread of the measured cells",
    ),
    (
        "evaluate.py",
        "two_sample(a, b, kernels[genes], own[genes])",
        'two_sample(a, b, kernels[genes], own["all"])',
        "the spread of all genes taken for that of the DE genes",
    ),
    (
        "evaluate.py",
        "ranked = np.argsort(-welch_t(measured, of_controls)",
        "ranked = np.argsort(welch_t(measured, of_controls)",
        "the twenty genes that change least",
    ),
    (
        "evaluate.py",
        'drawn["floor"] = measured[order[half : half + size]]',
        'drawn["floor"] = target',
        "the floor scored against itself",
    ),
    (
        "evaluate.py",
        'drawn["floor"] = measured[order[half : half + size]]',
        'drawn["floor"] = measured[rng.permutation(len(measured))[:half]]',
        "the floor shares cells with the half that it is scored against",
    ),
    (
        "evaluate.py",
        "size = min(half, *(len(cells) for cells in methods.values()))",
        "size = half",
        "few predicted cells look worse than they are",
    ),
    (
        "evaluate.py",
        "rng = own_generator(seed, name, *condition, split)",
        "rng = own_generator(seed, len(drawn), *condition, split)",
        "a method's random numbers depend on what stands before it",
    ),
    (
        "evaluate.py",
        'scores["E-distance"][genes] = rooted(energy, squared)',
        'scores["E-distance"][genes] = rooted(energy)',
        "--squared has no effect",
    ),
    (
        "evaluate.py",
        "in halves.items() if other[1] == key[1] and other != key]",
        "in halves.items() if other[1] == key[1]]",
        "the true condition competes with itself",
    ),
    (
        "evaluate.py",
        "controls[rng.permutation(len(controls))[: len(measured)]]",
        "controls[rng.integers(0, len(controls), len(measured))]",
        "controls drawn twice",
    ),
    (
        "evaluate.py",
        "rows = np.concatenate(list(screen.training_groups().values()))",
        "rows = np.concatenate(list(screen.groups.values()))",
        "held-out cells set the kernel's width",
    ),
    (
        "evaluate.py",
        "better = x - model if metric in DISTANCES else model - x",
        "better = model - x",
        "farther counts as better",
    ),
    (
        "evaluate.py",
        "stats.binomtest(above, contested)",
        "stats.binomtest(above, len(differences))",
        "ties count against the model",
    ),
    (
        "evaluate.py",
        "contested = above + int((differences < 0).sum())",
        "contested = int((differences != 0).sum())",
        "an undefined score counts against the model",
    ),
    (
        "evaluate.py",
        "gap_closed(x.mean(), control.mean(), floor.mean())",
        "gap_closed(x[0], control[0], floor[0])",
        "the gap of one condition for that of all",
    ),
    (
        "evaluate.py",
        "in sums.items() if other[1] == key[1] and other != key]",
        "in sums.items() if other != key]",
        "genes weighed against the cells of other types",
    ),
    (
        "evaluate.py",
        "gap_closed(x.mean(), average.mean(), floor.mean())",
        "gap_closed(x.mean(), control.mean(), average.mean())",
        "the perturbed mean at 1 and not at 0",
    ),
    (
        "evaluate.py",
        'adjusted = stats.false_discovery_control([row["p_anything"] for row in rows])',
        'adjusted = [row["p_anything"] for row in rows]',
        "p-values not adjusted over conditions",
    ),
    (
        "evaluate.py",
        "told = np.mean(positive < negative if farther else positive > negative)",
        "told = np.mean(positive > negative)",
        "farther counts as better in what a metric is worth",
    ),
    (
        "report/tables.py",
        'return entry is not None and entry["told"] >= LEAST_TOLD',
        "return entry is not None",
        "a metric that tells nothing is not marked",
    ),
    (
        "evaluate.py",
        "return [place[gene] for gene in genes]",
        "return sorted(place[gene] for gene in genes)",
        "genes compared with other genes",
    ),
    (
        "evaluate.py",
        "    screen.held_out |= set(conditions)\n",
        "    pass\n",
        "the rivals are fitted on the cells that they are scored on",
    ),
    (
        "evaluate.py",
        'isin(("test", "ood"))',
        'isin(("ood",))',
        "the rivals see what the file marks as test",
    ),
    (
        "evaluate.py",
        "scores = averaged([row",
        "scores = (lambda several: several[0])([row",
        "of several seeds only the first counts",
    ),
    (
        "report/tables.py",
        "{entry['mean']:.3f} ± {entry['sd']:.3f}",
        "{entry['sd']:.3f} ± {entry['mean']:.3f}",
        "mean and deviation exchanged",
    ),
    (
        "report/tables.py",
        'CONVENTION.replace("root of the unbiased energy", "unbiased energy")',
        "CONVENTION",
        "squared distances are said to be rooted",
    ),
]

CHEATING = [
    (
        "evaluate.py",
        "beaten = (others > mean[name] if lower else others < mean[name]).sum()",
        "beaten = (others < mean[name]).sum()",
        "of distances the largest ranks first",
    ),
    (
        "evaluate.py",
        "beaten = (others > mean[name] if lower else others < mean[name]).sum()",
        "beaten = (others >= mean[name] if lower else others <= mean[name]).sum()",
        "a cheat that is as good as all others fools a metric",
    ),
    (
        "evaluate.py",
        "for start in range(0, len(rows), at_once):",
        "for start in range(at_once, len(rows), at_once):",
        "the first cells of the training set may be copied",
    ),
    (
        "evaluate.py",
        "correlation(x0.mean(0) - doctored_controls(given).mean(0), change)",
        "correlation(x0.mean(0), change)",
        "what doctored controls gain is not what they gain",
    ),
    (
        "rivals/cheats.py",
        "level + factor**0.5 * (x - level)",
        "level + factor * (x - level)",
        "variance times sixteen",
    ),
    (
        "rivals/cheats.py",
        "(factor - 1) * (given.x.mean(0) - given.x0.mean(0))",
        "factor * (given.x.mean(0) - given.x0.mean(0))",
        "four times the shift",
    ),
    (
        "rivals/cheats.py",
        "given.rng.normal(size=x.shape) * x.std(0)",
        "given.rng.normal(size=(len(x), 1)) * x.std(0)",
        "one noise for all genes",
    ),
    (
        "report/cheats.py",
        'return standing["cheat"] and standing["rank"] == 1',
        'return standing["rank"] == 1',
        "an honest method that is the best is starred",
    ),
]

MUTANTS = {
    "maths/test_metrics.py": METRICS + CALIBRATION,
    "program/test_evaluation.py": SCORING,
    "program/test_cheats.py": CHEATING,
}
