"""How long a run will take, said after its first seconds.

A run has three parts: what is fitted before training (known by then), the epochs (from the speed of
the first steps), and sampling and scoring (from the same speed, by how many operations they take).
"""

import time

from tqdm import tqdm

FIRST = 5  # steps that are not counted: buffers are made in them
WATCHED = 15  # steps that are


def in_words(seconds):
    """A time as one would say it: to a second, to five, to a minute, to half an hour."""
    if seconds < 1:
        return "less than a second"
    if seconds < 9.5:
        return f"{seconds:.0f} s"
    if seconds < 117.5:
        return f"{5 * round(seconds / 5)} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} minutes"
    return f"{round(seconds / 1800) / 2:g} hours"


def after_training(settings, cells, step):
    """Seconds of sampling and scoring conditions of so many `cells` each.

    step: seconds of a training step. It takes 24 operations for every pair, gene and hidden unit; a
    step of the sampler takes 10 for every cell, and is as fast as 6, for its batches are larger;
    comparing two cells takes 60 for every gene (docs/performance.md).
    """
    pair = step / settings.batch
    sampled = sum(max(n, 64) if settings.anchor else n for n in cells)
    compared = sum(n**2 for n in cells)
    sampling = sampled * settings.steps * pair / 4
    scoring = compared * pair * 60 / (24 * settings.width) + 0.1 * len(cells)
    return sampling + scoring


class Forecast(tqdm):
    """A progress bar of training that says, once, how long all will take.

    It is told by update(0) that the pairs are drawn and the steps begin. before: seconds that fits
    took, 0 if that is not known; epochs: those to come, of so many `steps`; after: seconds of a
    step -> seconds of what follows training. The bar's own estimate is of whole epochs: pairs are
    drawn before the first step of each, and by the speed of the last steps alone it would jump.
    """

    def __init__(self, before, epochs, steps, after, clock=time.perf_counter, **bar):
        super().__init__(**bar)
        self.before, self.epochs, self.steps, self.after = before, epochs, steps, after
        self.clock = clock
        self.begun = self.last = clock()
        self.times = []  # when the pairs were drawn, and after every step
        self.enough = 1 + min(FIRST + WATCHED, steps)
        self.drawing = self.stepping = 0.0  # seconds
        self.drawn = 0  # epochs whose pairs are drawn

    def update(self, n=1):
        """Count a step."""
        now = self.clock()
        if n:
            self.stepping += now - self.last
        else:
            self.drawing += now - self.last
            self.drawn += 1
        self.last = now
        super().update(n)
        if not self.disable and len(self.times) < self.enough:
            self.times.append(now)
            if len(self.times) == self.enough:
                self.write(self.said())

    @property
    def format_dict(self):
        """What the bar shows: tqdm's, with the mean rate over whole epochs, of pairs and steps."""
        shown = super().format_dict
        done = self.n - self.initial
        if done:
            step = self.stepping / done
            shown["rate"] = self.steps / (self.drawing / self.drawn + self.steps * step)
        return shown

    def said(self):
        """The forecast, as a line."""
        watched = self.times[min(FIRST, self.steps - 1) :]
        step = (watched[-1] - watched[0]) / (len(watched) - 1)
        epoch = self.times[0] - self.begun + self.steps * step
        after = self.after(step)
        parts = [f"fits {in_words(self.before)}"] if self.before else []
        parts.append(f"{self.epochs} epoch{'s' * (self.epochs > 1)} of {in_words(epoch)}")
        parts += [f"sampling and scoring {in_words(after)}"] if after else []
        whole = self.before + self.epochs * epoch + after
        return f"about {in_words(whole)} in all: {', '.join(parts)}"
