"""With one or two conditions the spread over the halves is shown, and said to be that."""

import numpy as np
import pytest

from evaluate import score_condition, summarise
from report.tables import as_text, make_tables


def row(energy, spread=0.02, **others):
    """A row with E-distances of the model, and of rivals that apply."""
    scores = {"control": 1.0, "perturbed mean": 0.8, "floor": 0.1, "model": energy, **others}
    return {
        "condition": "A@k562",
        "scores": {name: {"E-distance": {"all": value}} for name, value in scores.items()},
        "spread": {name: {"E-distance": {"all": spread}} for name in scores},
    }


def printed(rows):
    """The first table, as text."""
    return as_text(make_tables(summarise(rows), rows)).split("\n\n")[1]


def test_the_spread_is_of_the_scores_of_the_halves():
    """Those of each alone, by the same orders."""
    rng = np.random.default_rng(0)
    measured, controls, model = (rng.gamma(2.0, 1.0, (20, 30)) for _ in range(3))
    orders = [rng.permutation(20) for _ in range(5)]
    spread = {}
    score_condition(measured, controls, {"model": model}, orders=orders, spread=spread)
    emd = [
        score_condition(measured, controls, {"model": model[:10]}, orders=[one] * 5)[0]
        for one in orders
    ]
    assert spread["floor"]["EMD"]["all"] == pytest.approx(
        np.std([scores["floor"]["EMD"]["all"] for scores in emd])
    )


@pytest.mark.parametrize("conditions", [1, 2])
def test_of_few_conditions_the_spread_over_the_halves_is_shown(conditions):
    text = printed([row(0.4, 0.03), row(0.4, 0.05)][:conditions])
    assert text.startswith(f"mean ± standard deviation over the halves (conditions: {conditions},")
    assert f"0.400 ± {(0.03, 0.04)[conditions - 1]:.3f}" in text
    assert "± 0.000" not in text


def test_of_more_conditions_the_spread_is_theirs():
    text = printed([row(0.4), row(0.6), row(0.5)])
    assert text.startswith("mean ± standard deviation over 3 conditions")
    assert f"0.500 ± {np.std([0.4, 0.5, 0.6]):.3f}" in text


def test_a_rival_that_applies_to_few_of_them_has_that_of_the_halves_and_says_so():
    text = printed([row(0.4), row(0.6), row(0.5, additive=0.3)])
    assert "additive: the 1 that it applies to, ± over the halves" in text
    assert "0.300 ± 0.020" in text


def test_scores_that_were_kept_without_their_spread_are_shown_as_they_were():
    """Of runs that were scored by an older version, and are pooled now."""
    rows = [{**one, "spread": {}} for one in (row(0.4), row(0.6))]
    assert printed(rows).startswith("mean ± standard deviation over 2 conditions")
