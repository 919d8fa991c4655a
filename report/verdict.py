"""What a scoring says, in three sentences of plain words. All by the E-distance over all genes."""

import numpy as np

import screens
from screens import CONTROL

NO_RIVALS = ("control", "model", "interpolated duplicate", "floor")
FEWEST_TO_DECIDE = 6  # that a sign test counts; to win in 5 of 5 has p = 2 / 2^5, more than 0.05
NOTHING_SCORED = [
    "Nothing was scored: no held-out condition has enough measured cells to compare with.",
    "So it is not known how good these predictions are.",
    "Hold some measured conditions out with --test to find out.",
]


def verdict(what, rows, summary):
    """How good the model is, beside what, and where it fails: three sentences.

    what: on what it was scored (`what_was_predicted`); rows, summary: of `evaluate`.
    """
    if not rows:
        return NOTHING_SCORED
    rival = best_rival(summary)
    return [
        said_of_gap(what, energy(summary, "model")["gap_closed"]),
        said_of_rival(rival, summary),
        said_of_failures(rival, rows),
    ]


def what_was_predicted(screen, conditions):
    """Some held-out conditions [(perturbation, cell type)] in words: what is new about them."""
    training = [key for key in screen.training_groups() if key[0] != CONTROL]
    seen = {target for key in training for target in targets_in(screen, key[0])}
    new = {key: set(targets_in(screen, key[0])) - seen for key in conditions}
    count = counted(len(conditions), "condition")
    if all(new.values()):
        targets = counted(len(set.union(*new.values())), screen.kind)
        done = "perturbed" if screen.kind == "gene" else "given"
        return f"{targets} never {done} in training ({count})"
    if not any(new.values()):
        perturbed = {perturbation for perturbation, _ in training}
        types = {cell_type for _, cell_type in training}
        if not types & {cell_type for _, cell_type in conditions}:
            return f"{count} in cell types never perturbed in training"
        if all(perturbation in perturbed for perturbation, _ in conditions):
            what = "perturbation" if screen.kind == "gene" else "drug at that dose"
            return f"{count} whose {what} was trained on in other cell types only"
        if screen.kind == "gene" and not perturbed & {key[0] for key in conditions}:
            return f"{count} combining genes perturbed in training"
    return f"{count} held out of training"


def targets_in(screen, perturbation):
    """The names of a perturbation's genes or drugs."""
    return [target for target, _ in screens.targets_of(perturbation, screen.kind)]


def counted(n, noun):
    """A number and its noun."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def energy(summary, name):
    """A method's entry of the summary that the verdict is about."""
    return summary[name]["E-distance"]["all"]


def best_rival(summary):
    """The rival nearest to the measured cells, of those that apply to most conditions; or None."""
    rivals = [name for name in summary if name not in NO_RIVALS]
    most = max((energy(summary, name)["conditions"] for name in rivals), default=0)
    of_most = [name for name in rivals if energy(summary, name)["conditions"] == most]
    return min(of_most, key=lambda name: energy(summary, name)["mean"], default=None)


def said_of_gap(what, gap):
    """The first sentence: how much of the gap the model closes."""
    between = "of the gap between doing nothing and a repeat of the experiment"
    if np.isnan(gap):
        return (
            f"On {what} there is no gap to close: untouched control cells are as near to the "
            "measured cells as a repeat of the experiment."
        )
    if gap < 0:
        return f"On {what} the model is worse than doing nothing: it closes {gap:.2f} {between}."
    more = " (above 1: nearer than a repeat of so few cells)" if gap > 1 else ""
    return f"On {what} the model closes {gap:.2f} {between}{more}."


def said_of_rival(rival, summary):
    """The second sentence: how often it is better than the best rival, or than doing nothing."""
    entry = energy(summary, rival or "control")
    wins = entry["beaten_in"]
    n = entry["conditions"]
    name = "doing nothing (no rival applies)"
    if rival:
        gap = round(entry["gap_closed"], 2) + 0.0  # no -0.00
        worse = ", itself worse than doing nothing" if gap < 0 else ""
        name = f"{rival}, the best rival{worse} ({gap:.2f})"
    better = energy(summary, "model")["mean"] < entry["mean"]
    if n == 1:
        said = f"It is better than {name}" if better else f"It loses to {name}"
        return f"{said}; one condition says little."
    many = wins > n / 2
    where = f"in {wins or 'none'} of {n} conditions"
    if better and many:
        said = f"It is better than {name}, {where}"
    elif better:
        said = f"On average it is better than {name}, but that only {where}"
    elif many:
        said = f"On average it loses to {name}, though it is better {where}"
    else:
        said = f"It loses to {name}: it is better {where}"
    units = counted(entry["units"], entry["unit"])
    if entry["units"] < FEWEST_TO_DECIDE:
        return f"{said}; {units} cannot decide."
    if entry["p"] > 0.05:
        return f"{said}, which may be chance (sign test over {units}, p = {entry['p']:.2g})."
    return f"{said} (sign test over {units}, p = {entry['p']:.1g})."


def said_of_failures(rival, rows):
    """The third sentence: in which conditions it is worse than that rival, and than nothing."""
    others = {"doing nothing": "control"}
    if rival:
        others = {rival: rival, **others}
    said = []
    for words, name in others.items():
        worse = conditions_worse(rows, name)
        count = f"all {len(rows)}" if len(worse) == len(rows) > 1 else len(worse)
        where = f"in {count} ({screens.some(worse, 3)})" if worse else "in none"
        said.append(f"worse than {words} {where}")
    return f"It is {' and '.join(said)}."


def conditions_worse(rows, name):
    """The conditions in which the model is farther off than a method, the worst first."""
    excess = {}
    for row in rows:
        if name in row["scores"]:
            model, other = (row["scores"][m]["E-distance"]["all"] for m in ("model", name))
            excess[row["condition"]] = model - other
    worse = [condition for condition in excess if excess[condition] > 0]
    return sorted(worse, key=lambda condition: -excess[condition])
