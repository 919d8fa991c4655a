"""What must hold for each exercise: laws of what a function returns, not of single random draws.

A law is a function of the student's function. Its docstring is the law, in words that a student
reads; it raises `Broken` with what was seen instead. The laws of an exercise stand in the order in
which one would look for a mistake, and the grader reports the first that is broken.

Random draws must lie within six standard errors of what the law says, so that a right solution
fails one check in a hundred million, in whatever order it draws its numbers. This file needs torch
and numpy only, and holds no solution.
"""

import inspect
import math
from contextlib import contextmanager
from numbers import Real
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from course.noise import Noise

CELLS = 4000  # draws of a gene, with GENES of them
GENES = 4
ERRORS = 6  # standard errors
F64 = torch.float64


class Broken(Exception):
    """What was seen of a function that breaks a law; the law's docstring says what should be."""


class Unfit(Exception):
    """What is wrong with the form of what a function returns, or what it did to its arguments."""


class CoarseNoise(Noise):
    """Uniform numbers are multiples of 1/8, so that one in eight is exactly 0."""

    def uniform(self, like):
        """0, 1/8 … 7/8, each as likely."""
        return (8 * super().uniform(like)).floor() / 8


class TopNoise(Noise):
    """Uniform numbers are the largest below 1."""

    def uniform(self, like):
        """1 - 2^-24 in float32, 1 - 2^-53 in float64."""
        return torch.full_like(like, 1 - torch.finfo(like.dtype).eps / 2)


def must(holds, seen):
    """Raise `Broken` with what was seen unless something holds."""
    if not holds:
        raise Broken(seen)


@contextmanager
def hinting(hint, kind=Exception):
    """Give an exception that the student's function raises a `hint` for the message."""
    try:
        yield
    except kind as error:
        error.hint = hint
        raise


# ---- The student's function ----------------------------------------------------------------------


class Watched:
    """A student's function: every call checks its form, and that it leaves its arguments alone.

    form: a function of the arguments and of what was returned, which raises `Unfit`.
    """

    def __init__(self, function, form):
        self.function = function
        self.form = form

    def __call__(self, *arguments, **options):
        before = [copied(argument) for argument in arguments]
        returned = self.function(*arguments, **options)
        names = inspect.signature(self.function).bind(*arguments, **options).arguments
        for name, argument, copy in zip(names, arguments, before, strict=False):
            if not same(argument, copy):
                raise Unfit(f"it changes its argument `{name}` in place; leave it as it came")
        self.form(arguments, returned)
        return returned


def copied(argument):
    """A copy of a tensor or an array; anything else is not watched."""
    if isinstance(argument, torch.Tensor):
        return argument.detach().clone()
    return argument.copy() if isinstance(argument, np.ndarray) else argument


def same(argument, copy):
    """Whether an argument still equals its copy."""
    if isinstance(argument, torch.Tensor):
        return torch.equal(argument, copy)
    return not isinstance(argument, np.ndarray) or np.array_equal(argument, copy)


def tensor(returned, shape, kinds, what="it"):
    """Check that something is a tensor of a shape, of one of some types, without NaN."""
    if not isinstance(returned, torch.Tensor):
        kind = "nothing" if returned is None else f"a {type(returned).__name__}"
        raise Unfit(f"{what} returns {kind} where a torch tensor of shape {tuple(shape)} is due")
    if returned.shape != shape:
        raise Unfit(f"{what} returns the shape {tuple(returned.shape)} where {tuple(shape)} is due")
    if returned.dtype not in kinds:
        raise Unfit(f"{what} returns {returned.dtype} where {kinds[0]} is due")
    must(bool(torch.isfinite(returned).all()), f"{what} returns NaN or infinity")


def like_the(place):
    """The form of what has the shape and type of one of the arguments."""

    def form(arguments, returned):
        tensor(returned, arguments[place].shape, [arguments[place].dtype])

    return form


def states(arguments, returned):
    """The form of d: as the first argument, of 0.0 and 1.0."""
    like_the(0)(arguments, returned)
    other = returned[(returned != 0) & (returned != 1)]
    if len(other):
        raise Unfit(f"it returns {other[0]:.3g}, and a gene is on or off: 1.0 or 0.0")


def costs(arguments, returned):
    """The form of a cost matrix: rows for the first argument, columns for the second."""
    tensor(returned, (len(arguments[0]), len(arguments[1])), [arguments[0].dtype])


def columns(arguments, returned):
    """The form of drawn columns: an integer for each row of the plan, of a column that exists."""
    n, m = arguments[0].shape
    tensor(returned, (n,), [torch.int64, torch.int32])
    lost = returned[(returned < 0) | (returned >= m)]
    must(not len(lost), f"it draws column {listed(lost[:1])} of a plan with columns 0 to {m - 1}")


def responses(arguments, returned):
    """The form of responses (P, N)."""
    tensor(returned, (len(arguments[1]), len(arguments[0])), [arguments[0].dtype])


def loss(arguments, returned):
    """The form of a loss: one number, as a tensor."""
    tensor(returned, (), [arguments[0].dtype])


def prediction(arguments, returned):
    """The form of what the sampler returns: two tensors like x0."""
    if not isinstance(returned, (tuple, list)) or len(returned) != 2:
        raise Unfit("it does not return two tensors, the prediction and the level")
    for part, what in zip(returned, ("the first of what it", "the second of what it"), strict=True):
        if isinstance(part, torch.Tensor) and not torch.isfinite(part).all():
            raise Unfit(
                f"{what} returns is NaN or infinite; does a step begin at t = 1, where no time is"
                " left?"
            )
        tensor(part, arguments[1].shape, [arguments[1].dtype], what)


def number(arguments, returned):
    """The form of a distance: one number."""
    zero_dimensional = isinstance(returned, np.ndarray) and returned.ndim == 0
    if not zero_dimensional and not isinstance(returned, Real):
        raise Unfit(f"it returns a {type(returned).__name__} where one number is due")
    must(bool(np.isfinite(returned)), f"it returns {returned}")


def of_genes(arguments, returned):
    """The form of a distance for each gene: an array (N,)."""
    if not isinstance(returned, np.ndarray):
        raise Unfit(f"it returns a {type(returned).__name__} where a numpy array is due")
    genes = arguments[0].shape[1:]
    if returned.shape != genes:
        raise Unfit(f"it returns the shape {returned.shape} where {genes} is due")
    must(bool(np.isfinite(returned).all()), "it returns NaN or infinity")


FORMS = {
    "bridge_sample": like_the(0),
    "bridge_drift": like_the(0),
    "euler_maruyama_step": like_the(0),
    "endpoint_loss": loss,
    "mixture_sample": states,
    "ctmc_rate": like_the(2),
    "ctmc_step": states,
    "activation_loss": loss,
    "transport_cost": costs,
    "sinkhorn": like_the(0),
    "draw_partners": columns,
    "propagate": responses,
    "sample": prediction,
    "e_distance": number,
    "wasserstein": of_genes,
}
LAWS = {exercise: [] for exercise in FORMS}


def law_of(exercise):
    """Enter a function among the laws of an exercise."""

    def enter(law):
        LAWS[exercise].append(law)
        return law

    return enter


# ---- What several laws look at -------------------------------------------------------------------


def full(value, cells=CELLS, genes=GENES):
    """One number for all cells and genes, (B, N), in float64."""
    return torch.full((cells, genes), float(value), dtype=F64)


def random_cells(seed, cells, genes, kind=F64):
    """Cells of normal levels, (B, N)."""
    return Noise(seed).normal(torch.empty(cells, genes, dtype=kind))


def worst(found, expected):
    """The place of the largest difference, or None where all agree to six digits."""
    away = (found - expected).abs() / (1 + expected.abs())
    if away.max() < 1e-6:
        return None
    return tuple(int(i) for i in torch.unravel_index(away.argmax(), away.shape))


def listed(values, most=4):
    """Numbers as text, the first of many."""
    text = ", ".join(f"{float(value):.3g}" for value in values[:most])
    return text + " …" if len(values) > most else text


def follows(draw):
    """Look whether draw(noise) takes its random numbers from the noise that it is given."""
    first, second, other = draw(Noise(1)), draw(Noise(1)), draw(Noise(2))
    must(torch.equal(first, second), "two runs from one seed differ")
    must(not torch.equal(first, other), "two noises of different seeds give the same draw")
    noise = Noise(3)
    must(not torch.equal(draw(noise), draw(noise)), "two draws from one noise are the same")


def look_at_mean(draws, expected, variance, where):
    """Look at the mean of independent draws of a known variance."""
    error = ERRORS * math.sqrt(variance / draws.numel()) + 1e-9
    found = draws.mean().item()
    must(abs(found - expected) < error, f"{where} the mean is {found:.3f} and not {expected:.3f}")


def look_at_variance(draws, expected, where):
    """Look at the variance of independent normal draws."""
    error = ERRORS * math.sqrt(2 / draws.numel())
    found = draws.var().item()
    must(abs(found / expected - 1) < error, f"{where} the variance is {found:.3g}")


def look_at_share(draws, p, where):
    """Look at the share of ones among independent draws of 0 and 1."""
    error = ERRORS * math.sqrt(p * (1 - p) / draws.numel()) + 1e-9
    found = draws.to(F64).mean().item()
    must(abs(found - p) < error, f"{where} a share of {found:.3f} is on and not {p:.3f}")


def look_at_independence(draws):
    """Look at correlations between genes, and between cells, of draws (B, N)."""
    z = (draws - draws.mean()) / draws.std().clamp_min(1e-12)
    n = len(z)
    for one, other in ((z[::2], z[1::2]), (z[: n // 2], z[n // 2 :])):
        found = (one * other).mean().item()
        most = ERRORS / math.sqrt(len(one))
        must(abs(found) < most, f"what two cells draw has the correlation {found:.2f}")
    between_genes = (z.T @ z / n).triu(1)
    found = between_genes.flatten()[between_genes.abs().argmax()].item()
    most = ERRORS / math.sqrt(n)
    must(abs(found) < most, f"what two genes of a cell draw has the correlation {found:.2f}")


def look_at_normality(draws):
    """Look at the share of draws within a standard deviation of their mean."""
    z = (draws - draws.mean()) / draws.std()
    found = (z.abs() < 1).to(F64).mean().item()
    error = ERRORS * math.sqrt(0.683 * 0.317 / draws.numel())
    must(abs(found - 0.683) < error, f"{found:.0%} of the draws are within a standard deviation")


# ---- bridge_sample -------------------------------------------------------------------------------


@law_of("bridge_sample")
def bridge_is_pinned(bridge_sample):
    """A bridge is pinned at both ends: x_0 at t = 0 and x_T at t = 1, however large sigma is."""
    x0, xT = random_cells(0, 20, 3), 4 + random_cells(1, 20, 3)
    for t, end, name in ((0, x0, "x_0"), (1, xT, "x_T")):
        x = bridge_sample(x0, xT, full(t, 20, 1), 3.0, Noise(0))
        away = (x - end).abs().max().item()
        must(
            away < 1e-6,
            f"at t = {t} and sigma = 3 your bridge is up to {away:.3g} away from {name}",
        )


@law_of("bridge_sample")
def bridge_has_a_straight_mean(bridge_sample):
    """The mean moves on a straight line from x_0 to x_T."""
    x0, xT = random_cells(0, 9, 3), 4 + random_cells(1, 9, 3)
    for t in (0.1, 0.3, 0.5, 0.9):
        x = bridge_sample(x0, xT, full(t, 9, 1), 0.0, Noise(0))
        place = worst(x, x0.lerp(xT, t))
        if place:
            raise Broken(
                f"without noise, from {x0[place]:.2f} to {xT[place]:.2f}, your bridge is at"
                f" {x[place]:.2f} at t = {t}"
            )


@law_of("bridge_sample")
def bridge_has_a_time_for_each_cell(bridge_sample):
    """Each cell has a time of its own: row i of t (B, 1) is the time of row i of x_0 and x_T."""
    t = torch.linspace(0.1, 0.9, 9, dtype=F64)[:, None]
    x0, xT = random_cells(0, 9, 3), 4 + random_cells(1, 9, 3)
    x = bridge_sample(x0, xT, t, 0.0, Noise(0))
    place = worst(x, x0.lerp(xT, t))
    if place:
        cell = place[0]
        raise Broken(
            f"where the cells have different times, without noise, from {x0[place]:.2f} to"
            f" {xT[place]:.2f}, your bridge is at {x[place]:.2f} at t = {t[cell, 0]:.1f}"
        )


@law_of("bridge_sample")
def bridge_has_noise_for_each(bridge_sample):
    """Every gene of every cell has noise of its own: nothing correlates."""
    look_at_independence(bridge_sample(full(0), full(0), full(0.5, genes=1), 1.0, Noise(0)))


@law_of("bridge_sample")
def bridge_has_its_variance(bridge_sample):
    """Brownian motion pinned at both ends has the variance sigma^2 t (1 - t)."""
    for t, sigma in ((0.5, 1.0), (0.1, 1.0), (0.9, 1.0), (0.3, 0.4)):
        x = bridge_sample(full(1), full(2), full(t, genes=1), sigma, Noise(0))
        where = f"at t = {t} and sigma = {sigma:g},"
        look_at_variance(x, sigma**2 * t * (1 - t), where)
        look_at_mean(x, 1 + t, sigma**2 * t * (1 - t), where)


@law_of("bridge_sample")
def bridge_is_gaussian(bridge_sample):
    """x_t is normal: 68 % of the draws are within a standard deviation of the mean."""
    look_at_normality(bridge_sample(full(0), full(0), full(0.5, genes=1), 1.0, Noise(0)))


@law_of("bridge_sample")
def bridge_follows_noise(bridge_sample):
    """All random numbers come from `noise`: one seed gives one draw, another seed another."""
    x = full(0, 5, 3).float()
    follows(lambda noise: bridge_sample(x, x, full(0.5, 5, 1).float(), 1.0, noise))


# ---- bridge_drift --------------------------------------------------------------------------------


@law_of("bridge_drift")
def drift_arrives(bridge_drift):
    """The drift is the velocity that, kept up for the time that is left, arrives at x_T."""
    single = random_cells(0, 6, 3, torch.float32)
    bridge_drift(single, single + 1, 0.5)  # its type is looked at
    x, xT = random_cells(0, 6, 3), 4 + random_cells(1, 6, 3)
    some_times = torch.linspace(0.0, 0.9, 6, dtype=F64)[:, None]
    for t in (0.0, 0.5, 0.9, some_times):
        v = bridge_drift(x, xT, t)
        end = x + (1 - t) * v
        place = worst(end, xT)
        if place:
            time = t if isinstance(t, float) else t[place[0], 0].item()
            raise Broken(
                f"from x = {x[place]:.2f} at t = {time:.1f}, with the end at {xT[place]:.2f}, your"
                f" drift is {v[place]:.2f}: at t = 1 it would be at {end[place]:.2f}"
            )


# ---- euler_maruyama_step -------------------------------------------------------------------------


@law_of("euler_maruyama_step")
def step_moves_along_the_drift(euler_maruyama_step):
    """Without noise, a step of length h moves h times the drift at the time where it begins."""
    x, xT = random_cells(0, 6, 3), 4 + random_cells(1, 6, 3)
    for t, h in ((0.0, 0.1), (0.5, 0.25), (0.75, 0.05), (0.75, 0.25)):
        end = euler_maruyama_step(x, xT, t, h, 0.0, Noise(0))
        place = worst(end, x + (xT - x) * (h / (1 - t)))
        if place:
            raise Broken(
                f"with sigma = 0, a step of h = {h} at t = {t} from {x[place]:.2f} towards"
                f" {xT[place]:.2f} goes to {end[place]:.2f}"
            )


@law_of("euler_maruyama_step")
def step_has_noise_for_each(euler_maruyama_step):
    """Every gene of every cell has noise of its own: nothing correlates."""
    look_at_independence(euler_maruyama_step(full(0), full(0), 0.5, 0.1, 1.0, Noise(0)))


@law_of("euler_maruyama_step")
def step_has_its_variance(euler_maruyama_step):
    """Brownian motion gathers the variance sigma^2 h in a time h, in the last step too."""
    for t, h, sigma in ((0.0, 0.25, 1.0), (0.5, 0.01, 1.0), (0.9, 0.1, 1.0), (0.5, 0.1, 0.4)):
        x = euler_maruyama_step(full(2), full(2), t, h, sigma, Noise(0))
        where = f"after a step of h = {h} at t = {t} with sigma = {sigma:g},"
        look_at_variance(x, sigma**2 * h, where)
        look_at_mean(x, 2, sigma**2 * h, where)


@law_of("euler_maruyama_step")
def step_is_gaussian(euler_maruyama_step):
    """The noise is normal: 68 % of the draws are within a standard deviation of the mean."""
    look_at_normality(euler_maruyama_step(full(0), full(0), 0.5, 0.1, 1.0, Noise(0)))


@law_of("euler_maruyama_step")
def step_follows_noise(euler_maruyama_step):
    """All random numbers come from `noise`: one seed gives one draw, another seed another."""
    x = full(0, 5, 3).float()
    follows(lambda noise: euler_maruyama_step(x, x, 0.5, 0.1, 1.0, noise))


# ---- endpoint_loss -------------------------------------------------------------------------------


@law_of("endpoint_loss")
def expressed_genes_count_squared(endpoint_loss):
    """An error of 3 in the only expressed gene of a cell costs 9."""
    xT, dT = torch.tensor([[5.0, 0.0]], dtype=F64), torch.tensor([[1.0, 0.0]], dtype=F64)
    for guess in (2.0, 8.0):
        found = endpoint_loss(xT, torch.tensor([[guess, 0.0]], dtype=F64), dT).item()
        must(abs(found - 9) < 1e-6, f"where {guess:g} is predicted for 5 your loss is {found:.3g}")


@law_of("endpoint_loss")
def silent_genes_do_not_count(endpoint_loss):
    """A gene with d_T = 0 says nothing of a level: neither what is predicted for it nor its x_T may
    matter.
    """
    xT = torch.tensor([[1.0, 0.0, 2.0], [3.0, 0.0, 4.0]], dtype=F64)
    dT = (xT != 0).to(F64)
    off = torch.tensor([[0.0, 9.0, 0.0]], dtype=F64)
    found = endpoint_loss(xT, xT + off, dT).item()
    must(
        abs(found) < 1e-6,
        f"with every expressed gene right and a silent one off by 9 it is {found:.3g}",
    )
    found = endpoint_loss(xT + off, xT, dT).item()
    must(
        abs(found) < 1e-6,
        f"with every expressed gene right and x_T = 9 in one whose d_T is 0 it is {found:.3g}",
    )
    endpoint_loss(xT.float(), xT.float(), dT.float())  # its type is looked at


@law_of("endpoint_loss")
def genes_are_averaged_in_a_cell(endpoint_loss):
    """Within a cell, squared errors are averaged over the genes that it expresses, not over all and
    not summed.
    """
    xT = torch.tensor([[1.0, 2.0, 0.0, 0.0]], dtype=F64)
    found = endpoint_loss(xT, xT + torch.tensor([2.0, 4.0, 0.0, 0.0]), (xT != 0).to(F64)).item()
    must(
        abs(found - 10) < 1e-6,
        f"for a cell with errors 2 and 4 in its two expressed genes of four it is {found:.3g}",
    )


@law_of("endpoint_loss")
def cells_count_alike(endpoint_loss):
    """Over cells it is a plain mean: one that expresses much counts no more than one that expresses
    little.
    """
    xT = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]], dtype=F64)
    dT = (xT != 0).to(F64)
    wrong = torch.tensor([[1.0], [3.0]], dtype=F64)
    found = endpoint_loss(xT, xT + wrong, dT).item()
    must(
        abs(found - 5) < 1e-6,
        f"for two cells that cost 1 (four expressed genes) and 9 (one) it is {found:.3g}",
    )


@law_of("endpoint_loss")
def silent_cells_cost_nothing(endpoint_loss):
    """A cell that expresses nothing costs 0, and counts as a cell all the same."""
    xT = torch.tensor([[1.0, 1.0], [0.0, 0.0]], dtype=F64)
    found = endpoint_loss(xT, xT + 2, (xT != 0).to(F64)).item()
    must(
        abs(found - 2) < 1e-6,
        f"for a cell that costs 4 and one that expresses nothing it is {found:.3g}",
    )


@law_of("endpoint_loss")
def endpoint_loss_has_a_gradient(endpoint_loss):
    """A loss can be differentiated by the prediction; where that is right, or the gene silent, the
    gradient is 0.
    """
    xT = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]], dtype=F64)
    wrong = torch.tensor([[0.0, 1.0, 5.0], [1.0, 1.0, 1.0]], dtype=F64)
    predicted = (xT + wrong).requires_grad_()
    found = gradient(endpoint_loss(xT, predicted, (xT != 0).to(F64)), predicted)
    place = worst(found, torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.0]], dtype=F64))
    if place:
        raise Broken(
            f"the gradient is {found[place]:.3g} for an error of {wrong[place]:g} in a gene whose"
            f" true level is {xT[place]:g}"
        )


def gradient(value, variable):
    """The gradient of a loss."""
    must(value.requires_grad, "what it returns cannot be differentiated: it has left the graph")
    value.backward()
    must(bool(torch.isfinite(variable.grad).all()), "its gradient is NaN or infinite")
    return variable.grad


# ---- mixture_sample ------------------------------------------------------------------------------


@law_of("mixture_sample")
def mixture_meets_both_ends(mixture_sample):
    """Every gene is in its first state at t = 0 and in its end state at t = 1."""
    d0 = (random_cells(0, 20, 8) > 0).to(F64)
    for t, end, name in ((0.0, d0, "d_0"), (1.0, 1 - d0, "d_T")):
        d = mixture_sample(d0, 1 - d0, full(t, 20, 1), Noise(0))
        away = (d != end).to(F64).mean().item()
        must(away == 0, f"at t = {t:g}, {away:.0%} of the genes are not in the state of {name}")


@law_of("mixture_sample")
def mixture_leaves_the_rest(mixture_sample):
    """A gene whose two ends are the same does not change."""
    for state in (0.0, 1.0):
        d = mixture_sample(full(state), full(state), full(0.5, genes=1), Noise(0))
        moved = (d != state).to(F64).mean().item()
        must(
            moved == 0, f"from {state:g} to {state:g}, {moved:.0%} of the genes show another state"
        )


@law_of("mixture_sample")
def mixture_has_noise_for_each(mixture_sample):
    """Every gene of every cell switches by itself: nothing correlates."""
    look_at_independence(mixture_sample(full(0), full(1), full(0.5, genes=1), Noise(0)))


@law_of("mixture_sample")
def mixture_switches_a_share_t(mixture_sample):
    """At time t a gene is in its end state with probability t."""
    for t in (0.2, 0.5, 0.9):
        for start in (0.0, 1.0):
            d = mixture_sample(full(start), full(1 - start), full(t, genes=1), Noise(0))
            where = f"at t = {t}, of genes that go from {start:g} to {1 - start:g},"
            look_at_share(d, t if start == 0 else 1 - t, where)


@law_of("mixture_sample")
def mixture_has_a_time_for_each_cell(mixture_sample):
    """Each cell has its own time."""
    t = torch.tensor([0.1, 0.8], dtype=F64).repeat(CELLS // 2)[:, None]
    d = mixture_sample(full(0), full(1), t, Noise(0))
    look_at_share(d[::2], 0.1, "of cells at t = 0.1, beside others at t = 0.8,")
    look_at_share(d[1::2], 0.8, "of cells at t = 0.8, beside others at t = 0.1,")


@law_of("mixture_sample")
def mixture_bears_a_uniform_0(mixture_sample):
    """Uniform numbers lie on [0, 1): also where one is exactly 0, a gene is in its first state at
    t = 0. Which of < and <= is it?
    """
    d0 = (random_cells(0, 50, 8) > 0).to(F64)
    for t, end in ((0.0, d0), (1.0, 1 - d0)):
        d = mixture_sample(d0, 1 - d0, full(t, 50, 1), CoarseNoise(0))
        away = (d != end).to(F64).mean().item()
        must(
            away == 0,
            f"where one uniform number in eight is exactly 0, {away:.0%} of the genes are in the"
            f" wrong state at t = {t:g}",
        )


@law_of("mixture_sample")
def mixture_follows_noise(mixture_sample):
    """All random numbers come from `noise`: one seed gives one draw, another seed another."""
    d = full(0, 9, 8).float()
    follows(lambda noise: mixture_sample(d, 1 - d, full(0.5, 9, 1).float(), noise))


# ---- ctmc_rate -----------------------------------------------------------------------------------


def two_rates(ctmc_rate, d, p_on, t):
    """The rates to off and to on of a gene in state d, as numbers."""
    like = full(0, 3, 2)
    rates = [ctmc_rate(like + y, like + d, like + p_on, t) for y in (0.0, 1.0)]
    return [rate.flatten()[0].item() for rate in rates]


SOME_RATES = [(d, p_on, t) for d in (0.0, 1.0) for p_on in (0.3, 0.9) for t in (0.0, 0.6)]


@law_of("ctmc_rate")
def rates_sum_to_0(ctmc_rate):
    """What flows out of a state flows into the others: for each d, the rates over y sum to 0."""
    off = full(0, 3, 2).float()
    ctmc_rate(off, off, off + 0.5, 0.5)  # its type is looked at
    for d, p_on, t in SOME_RATES:
        off, on = two_rates(ctmc_rate, d, p_on, t)
        must(
            abs(off + on) < 1e-6,
            f"for d = {d:g}, p_on = {p_on}, t = {t} your rates to 0 and to 1 are {off:.3g} and"
            f" {on:.3g}, which sum to {off + on:.3g}",
        )


@law_of("ctmc_rate")
def only_staying_is_negative(ctmc_rate):
    """A rate to another state is not below 0, and that of y = d is minus the rate of leaving."""
    for d, p_on, t in SOME_RATES:
        rates = two_rates(ctmc_rate, d, p_on, t)
        other, own = rates[1 - int(d)], rates[int(d)]
        must(
            other >= 0, f"for d = {d:g}, p_on = {p_on}, t = {t} your rate of leaving is {other:.3g}"
        )
        must(own <= 0, f"for y = d = {d:g}, p_on = {p_on}, t = {t} your rate is {own:.3g}")


@law_of("ctmc_rate")
def rate_obeys_a_sure_end(ctmc_rate):
    """A gene that is surely where it will end is not moved, and any other is."""
    for d in (0.0, 1.0):
        stays = abs(two_rates(ctmc_rate, d, d, 0.5)[1 - int(d)])
        leaves = abs(two_rates(ctmc_rate, d, 1 - d, 0.5)[1 - int(d)])
        must(stays < 1e-6, f"with d = {d:g} and p_on = {d:g} your rate of leaving is {stays:.3g}")
        must(
            leaves > 1e-6, f"with d = {d:g} and p_on = {1 - d:g} your rate of leaving is {leaves:g}"
        )


# P(d_0 = row, d_T = column) of a gene, for Kolmogorov's equation.
JOINTS = ([[0.35, 0.25], [0.10, 0.30]], [[0.20, 0.60], [0.15, 0.05]])


@law_of("ctmc_rate")
def rate_solves_kolmogorovs_equation(ctmc_rate):
    """By Kolmogorov's forward equation the share that is on must grow from P(d_0 = 1) to P(d_T = 1)
    on a straight line, since kappa(t) = t.
    """
    for joint in map(np.array, JOINTS):
        start, end = joint[1].sum(), joint[:, 1].sum()
        for t in (0.0, 0.3, 0.8):
            on = (1 - t) * start + t * end
            if_on = ((1 - t) * joint[1, 1] + t * end) / on  # P(d_T = 1 | d_t)
            if_off = (1 - t) * joint[0, 1] / (1 - on)
            into = two_rates(ctmc_rate, 0.0, if_off, t)[1]
            kept = two_rates(ctmc_rate, 1.0, if_on, t)[1]
            grows = into * (1 - on) + kept * on
            must(
                abs(grows - (end - start)) < 1e-6,
                f"of genes that are on with {start:.2f} at the start and {end:.2f} at the end, by"
                f" your rate the share that is on grows by {grows:.3f} a unit of time at t = {t}",
            )


# ---- ctmc_step -----------------------------------------------------------------------------------


@law_of("ctmc_step")
def chain_has_noise_for_each(ctmc_step):
    """Every gene of every cell jumps by itself: nothing correlates."""
    look_at_independence(ctmc_step(full(0), full(0.8), 0.0, 0.5, Noise(0)))
    look_at_independence(ctmc_step(full(0), full(0.5), 0.0, 1.0, Noise(0)))


@law_of("ctmc_step")
def chain_ends_where_it_should(ctmc_step):
    """The last step, which ends at t = 1, leaves each gene on with probability p_on, whatever it
    was.
    """
    for t, h in ((0.0, 1.0), (0.5, 0.5), (0.9, 0.1)):
        for d in (0.0, 1.0):
            for p_on in (1 - d, 0.3):
                drawn = ctmc_step(full(d), full(p_on), t, h, Noise(0))
                where = f"after the step from t = {t} to 1 from d = {d:g} with p_on = {p_on:g},"
                look_at_share(drawn, p_on, where)


@law_of("ctmc_step")
def chain_has_a_posterior_for_each(ctmc_step):
    """Each gene of each cell obeys its own p_on and its own d."""
    d = (random_cells(0, 50, 8) > 0).to(F64)
    p_on = (random_cells(1, 50, 8) > 0).to(F64)
    drawn = ctmc_step(d, p_on, 0.0, 1.0, Noise(0))
    wrong = (drawn != p_on).to(F64).mean().item()
    must(wrong == 0, f"of genes that are sure of their end, {wrong:.0%} are elsewhere at t = 1")


@law_of("ctmc_step")
def chain_steps_by_its_rate(ctmc_step):
    """A step moves the probability of each state by h times the rate at its beginning."""
    for t, h in ((0.0, 0.3), (0.5, 0.2), (0.75, 0.05)):
        for d in (0.0, 1.0):
            for p_on in (0.7, 0.2):
                drawn = ctmc_step(full(d), full(p_on), t, h, Noise(0))
                where = f"after a step of h = {h} at t = {t} from d = {d:g} with p_on = {p_on},"
                look_at_share(drawn, d + h / (1 - t) * (p_on - d), where)


@law_of("ctmc_step")
def chain_bears_a_uniform_0(ctmc_step):
    """Uniform numbers lie on [0, 1): also where one is exactly 0, a gene stays that is surely where
    it will end. Which of < and <= is it?
    """
    for t, h in ((0.5, 0.5), (0.0, 0.25)):
        for d in (0.0, 1.0):
            drawn = ctmc_step(full(d, 50, 8), full(d, 50, 8), t, h, CoarseNoise(0))
            away = (drawn != d).to(F64).mean().item()
            must(
                away == 0,
                f"where one uniform number in eight is exactly 0, {away:.0%} of the genes leave"
                f" d = {d:g} though p_on = {d:g}",
            )


@law_of("ctmc_step")
def chain_follows_noise(ctmc_step):
    """All random numbers come from `noise`: one seed gives one draw, another seed another."""
    d = full(0, 9, 8).float()
    follows(lambda noise: ctmc_step(d, d + 0.5, 0.0, 0.5, noise))


# ---- activation_loss -----------------------------------------------------------------------------


@law_of("activation_loss")
def ignorance_costs_log_2(activation_loss):
    """Even odds cost log 2 = 0.693 nats a gene, whatever the state and however many genes and
    cells.
    """
    for cells in (1, 7):
        dT = (random_cells(0, cells, 5) > 0).to(F64)
        found = activation_loss(dT, torch.zeros_like(dT)).item()
        must(
            abs(found - math.log(2)) < 1e-6,
            f"for log odds of 0, of {cells} x 5 genes, it is {found:.3f}",
        )


@law_of("activation_loss")
def states_cost_their_log_probability(activation_loss):
    """A state that was given the probability p costs -log p."""
    for state in (1.0, 0.0):
        for p_on in (0.8, 0.3):
            odds = full(math.log(p_on / (1 - p_on)), 2, 2)
            found = activation_loss(full(state, 2, 2), odds).item()
            p = p_on if state else 1 - p_on
            must(
                abs(found + math.log(p)) < 1e-6,
                f"for d_T = {state:g}, which was given the probability {p:.1f}, it is {found:.3f}",
            )


@law_of("activation_loss")
def genes_and_cells_are_averaged(activation_loss):
    """The loss of many is the mean over genes and cells."""
    dT = (random_cells(0, 6, 4) > 0).to(F64)
    log_odds = 2 * random_cells(1, 6, 4)
    one_by_one = [
        activation_loss(dT[i : i + 1, j : j + 1], log_odds[i : i + 1, j : j + 1]).item()
        for i in range(6)
        for j in range(4)
    ]
    found, expected = activation_loss(dT, log_odds).item(), float(np.mean(one_by_one))
    must(
        abs(found - expected) < 1e-6,
        f"for 6 cells of 4 genes it is {found:.3f}; one by one they cost {expected:.3f} on average",
    )


@law_of("activation_loss")
def extreme_odds_are_finite(activation_loss):
    """Log odds of 200 cost 200 where they are wrong and nothing where they are right, and are never
    NaN.
    """
    for kind in (F64, torch.float32):
        like = torch.zeros(2, 2, dtype=kind)
        for state, log_odds, expected in ((1, -200, 200), (0, 200, 200), (1, 200, 0), (0, -200, 0)):
            found = activation_loss(like + state, like + log_odds).item()
            must(
                abs(found - expected) < 1e-3,
                f"for d_T = {state} and log odds of {log_odds} ({kind}) it is {found:.4g}",
            )


@law_of("activation_loss")
def activation_loss_has_a_gradient(activation_loss):
    """It can be differentiated by the log odds, also by large ones."""
    log_odds = torch.tensor([[0.0, 300.0, -300.0]], dtype=F64, requires_grad=True)
    found = gradient(
        activation_loss(torch.tensor([[1.0, 1.0, 0.0]], dtype=F64), log_odds), log_odds
    )
    expected = torch.tensor([[-0.5 / 3, 0.0, 0.0]], dtype=F64)
    must(worst(found, expected) is None, f"the gradient is {found.tolist()[0]} for right answers")


# ---- transport_cost ------------------------------------------------------------------------------

COSTS = ("sqeuclidean", "euclidean", "cosine")


@law_of("transport_cost")
def costs_are_rows_of_perturbed_cells(transport_cost):
    """Row i, column j is the cost of control j for perturbed cell i."""
    xT, x0 = random_cells(0, 5, 9), random_cells(1, 7, 9)
    for cost in COSTS:
        C = transport_cost(xT, x0, cost)
        for i, j in ((0, 0), (3, 5), (4, 2)):
            alone = transport_cost(xT[i : i + 1], x0[j : j + 1], cost).item()
            must(
                abs(C[i, j].item() - alone) < 1e-6,
                f"the {cost} cost of two cells is {alone:.3f} by themselves, and {C[i, j]:.3f} in"
                f" row {i}, column {j}, where they are perturbed cell {i} and control {j}",
            )


@law_of("transport_cost")
def costs_of_a_triangle(transport_cost):
    """The difference of the cells (4, 1) and (1, 5) is (3, -4): its length is 5."""
    xT, x0 = torch.tensor([[4.0, 1.0]], dtype=F64), torch.tensor([[1.0, 5.0]], dtype=F64)
    for cost, expected in (("euclidean", 5.0), ("sqeuclidean", 25.0)):
        found = transport_cost(xT, x0, cost).item()
        must(abs(found - expected) < 1e-6, f"your {cost} cost of these two is {found:.3f}")
    default = transport_cost(xT, x0).item()
    must(abs(default - 25) < 1e-6, f"your cost is {default:.3f} where no cost is named")


@law_of("transport_cost")
def cosines_see_directions(transport_cost):
    """1 - cosine is 0 for cells in one direction, 1 at a right angle, 2 for opposite ones, however
    long they are.
    """
    xT = torch.tensor([[2.0, 0.0], [0.0, 5.0], [3.0, 3.0]], dtype=F64)
    x0 = torch.tensor([[7.0, 0.0], [-1.0, 0.0]], dtype=F64)
    half = 1 - math.sqrt(0.5)
    expected = torch.tensor([[0.0, 2.0], [1.0, 1.0], [half, 2 - half]], dtype=F64)
    C = transport_cost(xT, x0, "cosine")
    place = worst(C, expected)
    if place:
        pair = f"{tuple(xT[place[0]].tolist())} and {tuple(x0[place[1]].tolist())}"
        raise Broken(f"your cosine cost of {pair} is {C[place]:.3f}")


@law_of("transport_cost")
def costs_survive_rounding(transport_cost):
    """No cost is below 0 or NaN by rounding, in float32 and far from 0 too. (There the cost of a
    cell and itself may be up to 1.)
    """
    x = 100 + random_cells(0, 50, 5, torch.float32)
    for cost in COSTS:
        own = transport_cost(x, x, cost).diagonal()
        least = -1e-5 if cost == "cosine" else 0  # only the root of a cost below 0 is a nuisance
        must(own.min() >= least, f"the {cost} cost of a cell and itself is {own.min():.3g}")
        must(own.max() < 1, f"the {cost} cost of a cell and itself is {own.max():.3g}")


# ---- sinkhorn ------------------------------------------------------------------------------------


def some_costs(n, m, seed=0):
    """Squared distances of normal cells, (n, m)."""
    xT, x0 = random_cells(seed, n, 3), random_cells(seed + 1, m, 3)
    return ((xT[:, None] - x0) ** 2).sum(2)


@law_of("sinkhorn")
def plan_is_not_negative(sinkhorn):
    """A plan holds probabilities of pairs, which are not below 0 and sum to 1."""
    plan = sinkhorn(some_costs(6, 9), 1.0, 300)
    must(plan.min() >= 0, f"your plan holds {plan.min():.3g}")
    must(abs(plan.sum() - 1) < 1e-3, f"your plan sums to {plan.sum():.4g}")


@law_of("sinkhorn")
def plan_has_uniform_marginals(sinkhorn):
    """Rows sum to 1 / n: every perturbed cell counts the same. Columns sum to 1 / m: so does every
    control.
    """
    for n, m in ((6, 9), (8, 5)):
        plan = sinkhorn(some_costs(n, m), 1.0, 300)
        for side, sums, size in (("row", plan.sum(1), n), ("column", plan.sum(0), m)):
            found = sums[(sums * size - 1).abs().argmax()].item()
            must(
                abs(found * size - 1) < 1e-3,
                f"after 300 iterations a {side} of your {n} x {m} plan sums to {found:.4f}, and"
                f" there are {size} of them",
            )


@law_of("sinkhorn")
def cheap_pairs_are_likely(sinkhorn):
    """A plan prefers cheap pairs, and more so for a smaller epsilon."""
    C = some_costs(8, 8)
    prices = [(sinkhorn(C, epsilon, 100) * C).sum().item() for epsilon in (10.0, 1.0, 0.3)]
    must(
        prices[0] > prices[1] > prices[2],
        "for epsilon = 10, 1 and 0.3 your plan costs " + ", ".join(f"{p:.3f}" for p in prices),
    )


@law_of("sinkhorn")
def plan_has_sinkhorns_form(sinkhorn):
    """log P_ij + C_ij / epsilon is f_i + g_j: a number of the row and a number of the column."""
    for epsilon in (1.0, 3.0, 0.5):
        C = some_costs(6, 9)
        rest = sinkhorn(C, epsilon, 50).log() + C / epsilon
        rest = rest - rest.mean(1, keepdim=True) - rest.mean(0) + rest.mean()
        found = rest.abs().max().item()
        must(
            found < 1e-3,
            f"for epsilon = {epsilon:g}, log P_ij + C_ij / epsilon of your plan is up to"
            f" {found:.3g} away from such a sum",
        )


@law_of("sinkhorn")
def iterations_are_counted(sinkhorn):
    """`iterations` says how often f and g are each renewed: after one, rows or columns are still
    wrong.
    """
    plan = sinkhorn(some_costs(6, 9), 0.3, 1)
    away = max((6 * plan.sum(1) - 1).abs().max().item(), (9 * plan.sum(0) - 1).abs().max().item())
    must(
        away > 1e-2,
        "after iterations = 1 every row and column of your plan has its weight already: the worst"
        f" is off by {away:.1g} of it",
    )


@law_of("sinkhorn")
def plan_survives_a_small_epsilon(sinkhorn):
    """For a small epsilon a plan nears an assignment, and never underflows to 0 or NaN."""
    C = 100 * torch.tensor([[0.0, 1.0, 4.0], [1.0, 0.0, 1.0], [4.0, 1.0, 0.0]]) + 1000
    diagonal = sinkhorn(C, 0.5, 200).diagonal()
    found = diagonal.min().item()
    must(
        abs(3 * found - 1) < 1e-3,
        f"for costs of 1000 to 1400 and epsilon = 0.5, of three cells that each have one cheapest"
        f" control, one gets it with the weight {found:.3g}",
    )


# ---- draw_partners -------------------------------------------------------------------------------


@law_of("draw_partners")
def partners_of_sure_rows(draw_partners):
    """A row with all its weight on one control draws that one, whatever the other rows hold and
    whatever the rows sum to.
    """
    plan = torch.zeros(4, 5, dtype=F64)
    for row, (column, weight) in enumerate(((2, 0.1), (0, 0.4), (3, 0.2), (1, 0.3))):
        plan[row, column] = weight
    noise = Noise(0)
    for _ in range(3):
        drawn = draw_partners(plan, noise).tolist()
        for row, column in enumerate(plan.argmax(1).tolist()):
            must(
                drawn[row] == column,
                f"row {row} of a plan has all its weight, {plan[row, column]:.1g}, in column"
                f" {column}, and draws column {drawn[row]}",
            )


@law_of("draw_partners")
def partners_have_the_plans_frequencies(draw_partners):
    """Each row draws a column with its share of the row's own weights."""
    weights = torch.tensor([[0.1, 0.3, 0.1], [0.0, 0.25, 0.2], [0.02, 0.01, 0.01]], dtype=F64)
    noise = Noise(0)
    drawn = torch.stack([draw_partners(weights, noise) for _ in range(1000)], 1)
    for row, of_row in zip(weights, drawn, strict=True):
        for column, p in enumerate((row / row.sum()).tolist()):
            found = (of_row == column).to(F64).mean().item()
            must(
                abs(found - p) < ERRORS * math.sqrt(p * (1 - p) / 1000) + 1e-9,
                f"in 1000 draws a row of weights {listed(row)} draws its column {column} in"
                f" {found:.0%} of cases",
            )


@law_of("draw_partners")
def partners_are_drawn_by_each_row(draw_partners):
    """Every row draws for itself."""
    drawn = draw_partners(torch.full((2 * CELLS, 2), 0.5, dtype=F64), Noise(0)).view(CELLS, 2)
    alike = (drawn[:, 0] == drawn[:, 1]).to(F64).mean().item()
    error = ERRORS * 0.5 / math.sqrt(CELLS)
    must(
        abs(alike - 0.5) < error, f"two rows of two even weights draw alike in {alike:.0%} of cases"
    )


@law_of("draw_partners")
def partners_have_weight(draw_partners):
    """A control of weight 0 is never drawn, also where a uniform number is exactly 0."""
    plan = torch.zeros(400, 40, dtype=F64)
    plan[:, 5:25] = 0.01
    drawn = draw_partners(plan, CoarseNoise(0))
    lost = drawn[(drawn < 5) | (drawn >= 25)]
    must(
        not len(lost),
        f"a row whose weights are all in columns 5 to 24 draws column {listed(lost[:1])}",
    )


@law_of("draw_partners")
def partners_have_weight_at_the_end(draw_partners):
    """A control of weight 0 is never drawn, also where a uniform number is just below 1. By
    rounding, weights that are divided by their sum need not add up to 1.
    """
    plan = Noise(0).uniform(torch.empty(200, 500))
    plan[:, 450:] = 0
    drawn = draw_partners(plan, TopNoise(0))
    lost = drawn[drawn >= 450]
    must(
        not len(lost),
        f"with uniform numbers just below 1, {len(lost)} of 200 rows (float32), whose weights are"
        f" all in columns 0 to 449, draw such columns as {listed(lost[:1])}",
    )


@law_of("draw_partners")
def partners_exist(draw_partners):
    """A row without any weight gets a column that exists."""
    draw_partners(torch.zeros(5, 4, dtype=F64), Noise(0))  # its form is looked at in every call


@law_of("draw_partners")
def partners_follow_noise(draw_partners):
    """All random numbers come from `noise`: one seed gives one draw, another seed another."""
    plan = torch.full((40, 9), 1 / 360, dtype=F64)
    follows(lambda noise: draw_partners(plan, noise))


# ---- propagate -----------------------------------------------------------------------------------


def edges(genes, *listed):
    """A network W (N, N) of edges (from, to, weight)."""
    W = torch.zeros(genes, genes, dtype=F64)
    for start, end, weight in listed:
        W[end, start] = weight
    return W


def response_is(propagate, W, node, expected, about, **options):
    """Look at the response to one perturbed gene."""
    found = propagate(W, torch.tensor([node]), **options)
    right = torch.tensor([expected], dtype=F64)
    must(worst(found, right) is None, f"{about} your response is {listed(found[0], 6)}")


def ring(genes, *, back=False):
    """A network in which each gene hears one other with the weight 1: 0 -> 1 -> … -> 0, or back."""
    pairs = [(i, (i + 1) % genes) for i in range(genes)]
    return edges(genes, *[(j, i, 1.0) if back else (i, j, 1.0) for i, j in pairs])


@law_of("propagate")
def held_gene_stays(propagate):
    """A perturbed gene is held at 1 after every hop: it does not answer to those that it hears."""
    for hops in (1, 2):
        found = propagate(ring(3), torch.tensor([0]), hops=hops)[0, 0].item()
        must(
            abs(found - 1) < 1e-6,
            f"in a ring of three genes, where gene 0 is perturbed and hears gene 2, after hops ="
            f" {hops} your gene 0 is at {found:.3g}",
        )


@law_of("propagate")
def messages_follow_edges(propagate):
    """W[j, i] is the edge from gene i to gene j: gene i sends, and gene j hears it."""
    found = propagate(ring(3, back=True), torch.tensor([0]), hops=1)[0]
    must(
        found[1] <= found[2],
        "in the ring 0 -> 2 -> 1 -> 0, with gene 0 held at 1, after one hop your response is"
        f" {listed(found)}: the message went to gene 1",
    )


@law_of("propagate")
def messages_go_one_edge_a_hop(propagate):
    """All genes take their messages at once, so that a message goes one edge a hop; three hops, if
    not told.
    """
    for hops in (1, 2):
        sent = [1.0] * (hops + 1) + [0.0] * (5 - hops)
        about = f"with gene 0 held at 1, after hops = {hops} along the ring"
        response_is(propagate, ring(6), 0, sent, f"{about} 0 -> 1 -> … -> 5 -> 0", hops=hops)
        sent = [1.0, *sent[:0:-1]]
        about = f"{about} 0 -> 5 -> … -> 1 -> 0"
        response_is(propagate, ring(6, back=True), 0, sent, about, hops=hops)
    sent = [1.0] * 4 + [0.0] * 2
    response_is(propagate, ring(6), 0, sent, "along 0 -> 1 -> … -> 5 -> 0, if hops are not given,")


@law_of("propagate")
def messages_keep_their_sign(propagate):
    """An edge with a weight below 0 turns the message round: what is heard is W, and what it is
    divided by is |W|.
    """
    W = ring(3)
    W[2, 1] = -1.0
    about = "in the ring 0 -> 1 -| 2 -> 0 (weights 1, -1 and 1), with gene 0 held at 1,"
    response_is(propagate, W, 0, [1.0, 1.0, -1.0], about)


@law_of("propagate")
def messages_are_averaged(propagate):
    """A gene takes the mean of its incoming messages, weighted by |W|; it also hears those that say
    0.
    """
    W = edges(4, (0, 2, 3.0), (1, 2, -1.0), (0, 3, 2.0), (3, 0, 1.0), (3, 1, 1.0))
    about = "where gene 2 hears gene 0 with 3 and gene 1 with -1, and gene 3 hears gene 0 with 2,"
    about += " after one hop,"
    for gene, response in ((0, [1.0, 0.0, 0.75, 1.0]), (1, [0.0, 1.0, -0.25, 0.0])):
        response_is(propagate, W, gene, response, f"{about} with gene {gene} held at 1,", hops=1)


@law_of("propagate")
def deaf_genes_stay_at_0(propagate):
    """A gene that hears nobody stays at 0: its |W| sum to 0, and there is nothing to divide."""
    about = "in the network 0 -> 1 and 2 -> 1, where gene 2 hears nobody, with gene 0 held at 1,"
    response_is(propagate, edges(3, (0, 1, 1.0), (2, 1, 1.0)), 0, [1.0, 0.5, 0.0], about)


@law_of("propagate")
def genes_hear_themselves(propagate):
    """An edge from a gene to itself counts as any other."""
    about = "where gene 1 hears gene 0 and itself, both with 1, with gene 0 held at 1,"
    W = edges(2, (0, 1, 1.0), (1, 1, 1.0), (0, 0, 1.0))
    for hops, heard in ((1, 0.5), (2, 0.75)):
        response_is(propagate, W, 0, [1.0, heard], f"{about} after hops = {hops}", hops=hops)


@law_of("propagate")
def nodes_are_perturbed_one_by_one(propagate):
    """Each row of the response is that of one perturbed gene alone."""
    W = random_cells(0, 7, 7) * (random_cells(1, 7, 7) > 0)
    together = propagate(W, torch.tensor([4, 0, 2]))
    alone = torch.cat([propagate(W, torch.tensor([node])) for node in (4, 0, 2)])
    place = worst(together, alone)
    if place:
        raise Broken(
            f"of the nodes 4, 0, 2, row {place[0]} differs from the response to its node alone"
        )


# ---- sample --------------------------------------------------------------------------------------


STEPS = 5
SIGMA = 0.5
START = 2.0
ENDS = [5.0, 1.5, 3.0]  # of the levels of three genes
CHANCES = [0.3, 0.9, 0.5]  # of being on at the end


class Known(nn.Module):
    """A model that knows both ends, with the methods of `departures.Departures`.

    It notes what it is asked: asked is a list of (t, x, d, condition).
    """

    def __init__(self, ends=ENDS, steps=STEPS, sigma=SIGMA):
        super().__init__()
        self.settings = SimpleNamespace(steps=steps, sigma=sigma)
        self.ends = nn.Parameter(torch.tensor(ends))
        self.log_odds = nn.Parameter(torch.logit(torch.tensor(CHANCES)))
        self.asked = []
        self.was_training = False
        self.encoded = []

    def encode(self, conditions, which):
        """A condition for each cell."""
        self.encoded.append((conditions, which))
        return SimpleNamespace(cells=len(which))

    def predict(self, t, x, d, condition):
        """Both ends, as the networks would say them; off the mark in training."""
        if not isinstance(t, torch.Tensor) or t.shape != (len(x), 1):
            shape = tuple(t.shape) if isinstance(t, torch.Tensor) else type(t).__name__
            raise Unfit(f"it asks model.predict at t of {shape} where a tensor (B, 1) is due")
        if float(t.max()) > 1 - 1e-3:
            raise Unfit(
                f"it asks model.predict at t = {float(t.max()):.3g}, when nothing is left to be"
                " done; ask at the time at which a step begins, and as often as there are steps"
            )
        self.was_training |= self.training
        self.asked.append((t.clone(), x.detach().clone(), d.detach().clone(), condition))
        return self.ends.expand(x.shape), self.log_odds.expand(x.shape)


def carried(sample, model=None, cells=CELLS, seed=0, d0=0.0, trace=None):
    """The model, prediction and level (B, 3) of cells that are carried from START."""
    model = Known() if model is None else model
    x0 = torch.full((cells, 3), START)
    options = {} if trace is None else {"trace": trace}
    with hinting("does a step begin at t = 1?", ZeroDivisionError):
        returned = sample(model, x0, torch.full_like(x0, d0), "one", Noise(seed), **options)
    if not model.asked:
        raise Unfit("it never asks the networks: model.predict is not called")
    return model, *returned


@law_of("sample")
def sampler_starts_at_the_controls(sample):
    """Sampling starts at x_0 and d_0 as they are, and a gene that is off keeps its level."""
    model, *_ = carried(sample, cells=3)
    _, x, d, _ = model.asked[0]
    must(
        bool((x == START).all()),
        f"from x_0 = {START} the networks are first shown x = {listed(x[0])}",
    )
    must(not d.any(), f"from d_0 = 0 the networks are first shown d = {listed(d[0])}")


def carried_by(sample, noise):
    """Prediction and level of a few cells, in one tensor."""
    x0 = torch.full((9, 3), START)
    return torch.stack(tuple(sample(Known(), x0, 0 * x0, "one", noise))).detach()


@law_of("sample")
def sampler_asks_at_every_step(sample):
    """The networks are asked once a step, at the time at which it begins: 0, 1/steps, … 1 -
    1/steps.
    """
    for steps in (STEPS, 1, 6, 10):
        model, *_ = carried(sample, Known(steps=steps), cells=3)
        found = [t[0].item() for t, *_ in model.asked]
        right = np.arange(steps) / steps
        must(
            len(found) == steps and np.allclose(found, right, atol=1e-3),
            f"with steps = {steps} they are asked {len(found)} times, at t = {listed(found)}",
        )


@law_of("sample")
def sampler_encodes_the_condition(sample):
    """The condition is encoded once, for every cell the first (which = 0), and told to the
    networks.
    """
    model, *_ = carried(sample, cells=3)
    must(len(model.encoded) == 1, f"model.encode is called {len(model.encoded)} times")
    conditions, which = model.encoded[0]
    right = isinstance(which, torch.Tensor) and which.shape == (3,) and not which.any()
    must(conditions == "one" and right, f"for three cells `which` is {which}")
    told = all(isinstance(condition, SimpleNamespace) for *_, condition in model.asked)
    must(told, "model.predict is not told what model.encode returned")


@law_of("sample")
def sampler_is_not_training(sample):
    """Sampling is no training: while the model is asked it is in eval mode, without dropout."""
    model, *_ = carried(sample, Known().train(), cells=3)
    must(not model.was_training, "the model is in training mode while it is asked")


@law_of("sample")
def level_is_not_masked(sample):
    """What is returned second is the level x_T alone: it is not multiplied by d, neither at the end
    nor on the way.
    """
    _, _, level = carried(sample)
    found = (level == 0).to(F64).mean(0)
    must(
        bool((found == 0).all()),
        f"where the levels of three genes end near {listed(ENDS)}, what you return second is 0 in"
        f" shares of {listed(found)} of the cells",
    )


@law_of("sample")
def sampler_moves_levels_by_eq_16(sample):
    """By Eq. 16 the mean level is on the straight line from x_0 to the predicted end at every step,
    with the variance of the steps so far.
    """
    model, _, level = carried(sample)
    shown = [x for _, x, _, _ in model.asked] + [level]
    variance = 0.0
    for i in range(STEPS):
        kept = 1 - 1 / (STEPS - i)  # of what has been gathered: the drift pulls it back
        variance = kept**2 * variance + SIGMA**2 / STEPS
        for gene, end in enumerate(ENDS):
            t = (i + 1) / STEPS
            where = f"after {i + 1} of {STEPS} steps, from {START} to {end} with sigma = {SIGMA},"
            x = shown[i + 1][:, gene].to(F64)
            look_at_mean(x, START + t * (end - START), variance, where)
            look_at_variance(x, variance, where)


@law_of("sample")
def sampler_moves_states_by_eq_17(sample):
    """By Eq. 17 the share of genes that are on moves on a straight line from d_0 to p_on, which is
    1 / (1 + exp(-log odds)): model.predict returns log odds.
    """
    for d0 in (0.0, 1.0):
        model, *_ = carried(sample, d0=d0)
        for i, (_, _, d, _) in enumerate(model.asked):
            for gene, p in enumerate(CHANCES):
                t = i / STEPS
                where = f"after {i} of {STEPS} steps, with d_0 = {d0:g} and p_on = {p},"
                look_at_share(d[:, gene], (1 - t) * d0 + t * p, where)


@law_of("sample")
def prediction_is_off_where_genes_are(sample):
    """The prediction is x_T * d_T (Eq. 18): after the last step of d, a share p_on of a gene's
    cells is on, and in the others it is exactly 0.
    """
    for d0 in (0.0, 1.0):
        _, cells, _ = carried(sample, d0=d0)
        for gene, p in enumerate(CHANCES):
            where = f"in the prediction, with d_0 = {d0:g} and p_on = {p},"
            look_at_share((cells[:, gene] != 0).float(), p, where)


@law_of("sample")
def prediction_is_level_times_state(sample):
    """Where a gene is on the prediction is the level (Eq. 18), which is drawn apart from d."""
    _, cells, level = carried(sample)
    on = cells != 0
    must(bool(torch.equal(cells[on], level[on])), "where a gene is on it is not the level")
    away = (level[:, 0] - level[:, 0].mean()) * (on[:, 0].float() - on[:, 0].float().mean())
    error = ERRORS * away.std().item() / math.sqrt(CELLS)
    must(
        abs(away.mean().item()) < error,
        "the level tells whether the gene is on: they share random numbers",
    )


@law_of("sample")
def sampler_keeps_no_gradients(sample):
    """Sampling is no training: what is returned carries no gradients."""
    _, cells, level = carried(sample, cells=3)
    kept = cells.requires_grad or level.requires_grad
    must(not kept, "what is returned carries gradients; torch.no_grad() spares them")


@law_of("sample")
def levels_are_not_negative(sample):
    """A level below 0 becomes 0 after the last step, and only then."""
    model, cells, level = carried(sample, Known(ends=[-3.0, -3.0, -3.0]))
    for part, name in ((level, "level"), (cells, "prediction")):
        found = part.flatten()[part.abs().argmax()].item()
        must(found == 0, f"where all cells end near -3 the {name} is {found:.3g}")
    last = model.asked[-1][1].mean().item()
    expected = START - 5 * (STEPS - 1) / STEPS
    must(abs(last - expected) < 0.1, f"on the way from 2 to -3, at t = 0.8, the mean is {last:.2f}")


@law_of("sample")
def trace_holds_the_path(sample):
    """The trace holds (x_t, d_t) before every step, which is what the networks were shown."""
    trace = []
    model, *_ = carried(sample, cells=4, trace=trace)
    must(len(trace) == STEPS, f"for {STEPS} steps the trace has {len(trace)} entries")
    for i, (entry, (_, shown_x, shown_d, _)) in enumerate(zip(trace, model.asked, strict=True)):
        if not isinstance(entry, (tuple, list)) or len(entry) != 2:
            what = type(entry).__name__
            raise Broken(f"entry {i} of the trace is a {what}, and no pair (x_t, d_t)")
        x, d = entry
        kept = torch.equal(x, shown_x) and torch.equal(d, shown_d)
        must(kept, f"entry {i} of the trace is not what the networks were shown at that step")


@law_of("sample")
def sample_follows_noise(sample):
    """All random numbers come from `noise`: one seed gives one draw, another seed another."""
    follows(lambda noise: carried_by(sample, noise))


# ---- e_distance ----------------------------------------------------------------------------------


def column(*values):
    """Cells of one gene, (n, 1)."""
    return np.array(values, dtype=float)[:, None]


@law_of("e_distance")
def root_unless_squared(e_distance):
    """The root of E^2 is returned, and E^2 itself with squared=True."""
    x, y = column(0, 0), column(3, 3)
    plain, squared = e_distance(x, y), e_distance(x, y, squared=True)
    must(
        abs(plain**2 - squared) < 1e-6,
        f"for the same cells you return {plain:.4g}, and {squared:.4g} with squared=True, which is"
        " not its square",
    )


@law_of("e_distance")
def energy_counts_between_twice(e_distance):
    """E^2 begins with twice the mean distance between a cell of x and a cell of y."""
    found = e_distance(column(0, 0), column(1, 1), squared=True)
    must(
        abs(found - 2) < 1e-6,
        "for one gene, x = 0 twice and y = 1 twice, where all pairs of x and y are 1 apart and the"
        f" others 0, your E^2 is {found:.4g}",
    )


@law_of("e_distance")
def distances_are_lengths(e_distance):
    """The distance of two cells is the Euclidean length of their difference, over all genes."""
    x = np.array([[0.0, 0.0], [0.0, 0.0]])
    y = np.array([[3.0, 4.0], [3.0, 4.0]])
    found = e_distance(x, y, squared=True)
    must(
        abs(found - 10) < 1e-6,
        f"for x = (0, 0) twice and y = (3, 4) twice, your E^2 is {found:.4g}",
    )


@law_of("e_distance")
def energy_of_four_cells(e_distance):
    """E^2 is twice the mean distance between a cell of x and one of y, less the mean distance of
    two different cells of x, less that of y.
    """
    x, y = column(0, 2), column(3, 4)
    found = e_distance(x, y, squared=True)
    # Between: the mean of 3, 4, 1, 2. Within: 2, and 1.
    must(abs(found - 2) < 1e-6, f"for one gene, x = 0, 2 and y = 3, 4, your E^2 is {found:.4g}")


@law_of("e_distance")
def energy_of_unequal_groups(e_distance):
    """Each mean is over the pairs of its own groups: n m of them, n (n - 1), m (m - 1)."""
    x, y = column(0, 3, 6), column(10, 11)
    found = e_distance(x, y, squared=True)
    must(
        abs(found - 10) < 1e-6, f"for one gene, x = 0, 3, 6 and y = 10, 11, your E^2 is {found:.4g}"
    )
    turned = e_distance(y, x, squared=True)
    must(abs(turned - 10) < 1e-6, f"with x and y exchanged your E^2 of these is {turned:.4g}")


@law_of("e_distance")
def energy_is_not_negative(e_distance):
    """An estimate of E^2 may fall below 0; then 0 is returned, and no root of a negative number."""
    x, y = column(0, 10), column(1, 9)
    for squared in (False, True):
        found = e_distance(x, y, squared=squared)
        must(abs(found) < 1e-6, f"where the estimate is -8 you return {found:.4g}")


@law_of("e_distance")
def energy_of_random_cells(e_distance):
    """E^2 is the same sum of three means for any cells."""
    rng = np.random.default_rng(0)
    for n, m in ((30, 20), (9, 25)):
        x, y = rng.normal(size=(n, 3)), 2 * rng.normal(1, 1, (m, 3))
        terms = []
        for a, b, pairs in ((x, y, n * m), (x, x, n * (n - 1)), (y, y, m * (m - 1))):
            terms.append(sum(np.linalg.norm(a - cell, axis=1).sum() for cell in b) / pairs)
        expected = 2 * terms[0] - terms[1] - terms[2]
        found = e_distance(x, y, squared=True)
        must(
            abs(found - expected) < 1e-6,
            f"for {n} and {m} random cells, whose means are {terms[0]:.3f}, {terms[1]:.3f} and"
            f" {terms[2]:.3f}, your E^2 is {found:.3f}",
        )


# ---- wasserstein ---------------------------------------------------------------------------------


@law_of("wasserstein")
def shifted_cells_are_a_shift_apart(wasserstein):
    """Cells that all move by the same are as far from where they were as they moved."""
    x = np.random.default_rng(0).normal(size=(9, 3))
    found = wasserstein(x, x + np.array([0.5, -2.0, 0.0]))
    expected = np.array([0.5, 2.0, 0.0])
    shown = ", ".join(f"{value:.6g}" for value in found)
    off = np.abs(found - expected).max()
    must(
        np.allclose(found, expected),
        f"for shifts of 0.5, -2 and 0 your distances are {shown}, off by up to {off:.2g}",
    )


@law_of("wasserstein")
def order_of_cells_does_not_matter(wasserstein):
    """Populations have no order: the same cells in another order are at no distance."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(9, 2))
    found = wasserstein(x, np.stack([rng.permutation(x[:, 0]), rng.permutation(x[:, 1])], 1)).max()
    must(
        abs(found) < 1e-6, f"for the same values of each gene in another order yours is {found:.3g}"
    )


@law_of("wasserstein")
def spread_counts(wasserstein):
    """Populations of one mean and different spread are at a distance. Their distribution functions
    are steps: nothing is interpolated between two cells.
    """
    found = wasserstein(column(-1, 1), column(-3, 3)).item()
    must(
        abs(found - 2) < 1e-6,
        f"for x = -1, 1 and y = -3, 3, where each cell is 2 away from its partner, your distance is"
        f" {found:.4g}",
    )


@law_of("wasserstein")
def distance_is_an_area(wasserstein):
    """Wasserstein-1 is the mean of how far cells are carried, with no squares and no root."""
    found = wasserstein(column(0, 0), column(0, 2)).item()
    must(
        abs(found - 1) < 1e-6,
        "for x = 0, 0 and y = 0, 2, where half of the cells are carried by 2 and the others not at"
        f" all, your distance is {found:.4g}",
    )


@law_of("wasserstein")
def numbers_of_cells_may_differ(wasserstein):
    """It compares distributions: n and m may differ, each cell has the weight 1 / n or 1 / m."""
    for x, y, expected in (
        (column(0, 1), column(0, 0, 1, 1), 0.0),
        (column(0, 0, 0, 4), column(0), 1.0),
        (column(0, 1), column(0, 0, 1), 1 / 6),
        (column(1, 2, 3), column(1, 2, 3, 4, 5), 1.0),
    ):
        for a, b in ((x, y), (y, x)):
            with hinting(f"n and m may differ: here n = {len(a)} and m = {len(b)}"):
                distances = wasserstein(np.hstack([a, -a]), np.hstack([b, -b]))
            for found in distances:
                must(
                    abs(found - expected) < 1e-6,
                    f"for x = {listed(a[:, 0], 5)} and y = {listed(b[:, 0], 5)} your distance is"
                    f" {found:.4g}",
                )
