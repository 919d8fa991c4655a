"""How long a run will take is said once, after its first steps, and by their speed."""

import io
import re

import pytest

import train
from departures import ImprovedSettings
from examples import screen_of
from report.forecast import Forecast, after_training, in_words
from screens import CONTROL


class Clock:
    """A clock that is read, and set forward by hand."""

    now = 0.0

    def __call__(self):
        return self.now


def said(capsys, pairs, steps, epochs=10, before=20.0, after=lambda step: 50 * step):
    """What is printed in two epochs whose pairs and steps take so many seconds."""
    clock = Clock()
    bar = Forecast(before, epochs, len(steps), after, clock, file=io.StringIO())
    for _ in range(2):
        clock.now += pairs
        bar.update(0)
        for seconds in steps:
            clock.now += seconds
            bar.update()
    return capsys.readouterr().out


def test_a_forecast_is_made_once_of_steps_that_have_settled(capsys):
    """Five slow ones do not count: 20 s, ten epochs of 3 + 100 * 2 s, 50 * 2 s."""
    printed = said(capsys, 3.0, [30.0] * 5 + [2.0] * 95)
    expected = "about 36 minutes in all: fits 20 s, 10 epochs of 3 minutes, sampling and scoring "
    assert printed == expected + "100 s\n"


def test_an_epoch_of_few_steps_is_enough(capsys):
    """Its last step counts; what is not known or not done is not named."""
    printed = said(capsys, 0.5, [9.0, 0.5], epochs=1, before=0.0, after=lambda step: 0.0)
    assert printed == "about 2 s in all: 1 epoch of 2 s\n"


def test_the_bars_estimate_does_not_jump_while_pairs_are_drawn():
    """60 s of pairs and ten steps of 1 s an epoch: it is never off by more than one's pairs."""
    clock = Clock()
    bar = Forecast(0.0, 5, 10, lambda step: 0.0, clock, file=io.StringIO(), total=50)
    for epoch in range(5):
        clock.now += 60
        bar.update(0)
        for step in range(10):
            clock.now += 1
            bar.update()
            shown = bar.format_dict
            remaining = (shown["total"] - shown["n"]) / shown["rate"]
            assert abs(remaining - (5 * 70 - clock.now)) <= 60, (epoch, step)


@pytest.mark.parametrize(
    "seconds, words",
    [
        (0.4, "less than a second"),
        (7.6, "8 s"),
        (42, "40 s"),
        (73, "75 s"),
        (118, "2 minutes"),
        (5900, "98 minutes"),
        (9000, "2.5 hours"),
    ],
)
def test_a_time_is_rounded_as_one_would_say_it(seconds, words):
    assert in_words(seconds) == words


def test_sampling_grows_with_cells_and_steps_and_scoring_with_the_cells_squared():
    """An anchored condition is sampled with 64 cells or more."""
    own = ImprovedSettings(batch=64, steps=50, width=256)
    few, more = (after_training(own, [n], 0.064) for n in (10, 64))
    assert few == pytest.approx(64 * 50 * 0.001 / 4 + 0.1, abs=0.01)
    assert more - few == pytest.approx((64**2 - 10**2) * 0.001 * 60 / (24 * 256))
    assert after_training(own, [64, 64], 0.064) == pytest.approx(2 * more)
    assert after_training(own.paper(), [10], 0.064) < 0.5


def test_a_run_says_it(tmp_path, capsys):
    """With its own number of epochs, and what was held out."""
    means = {(CONTROL, "x"): [1.0] * 4, ("g0", "x"): [1.0, 2, 1, 1], ("g1", "x"): [2.0, 1, 1, 1]}
    screen = screen_of(means, cells=30, noise=0.1)
    screen.held_out = {("g1", "x")}
    own = ImprovedSettings(width=4, embedding=2, grn="coexpression", epochs=2)
    state = {"epoch": 0, "epochs": 1, "optimiser": None, "log": []}
    state |= {"groups": screen.fingerprint(), "library": None}
    model = train.build(screen, own, "cpu")
    train.train(model, screen, own, str(tmp_path), state, "cpu", lambda state: None, before=61.0)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "in all" in line]
    assert re.fullmatch(
        r"about .* in all: fits 60 s, 2 epochs of .*, sampling and scoring .*", line
    )
