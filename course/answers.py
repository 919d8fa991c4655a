"""Worked answers to course/exercises.py. Remove this file before you hand the course out.

They are written to be read in class: plain code, one thought a line, and by other roads than
departures.py and evaluate.py where there are any, so that the two check each other.
"""

import math

import numpy as np
import torch

# ---- Lesson 2: the Brownian bridge ---------------------------------------------------------------


def bridge_sample(x0, xT, t, sigma, noise):
    """A point of the straight line, and noise that vanishes at both ends."""
    line = x0 + t * (xT - x0)
    variance = sigma**2 * t * (1 - t)
    # A normal number of variance v is sqrt(v) times a standard one. To multiply by v itself is the
    # commonest mistake here, and hard to see in a picture: the ends are right all the same.
    return line + variance.sqrt() * noise.normal(x0)


def bridge_drift(x, xT, t):
    """The way that is left, over the time that is left."""
    way = xT - x
    time = 1 - t  # and not t, which is the time that has passed
    return way / time


# ---- Lesson 3: predicting the end ----------------------------------------------------------------


def euler_maruyama_step(x, xT, t, h, sigma, noise):
    """Drift for a time h, then the noise of a time h."""
    drifted = x + h * bridge_drift(x, xT, t)
    # Variances of independent noise add up, standard deviations do not. Fifty steps of variance
    # h = 1/50 make the variance 1 that Brownian motion has after a unit of time, so a step has the
    # standard deviation sqrt(h), far more than h.
    spread = sigma * math.sqrt(h)
    return drifted + spread * noise.normal(x)


def endpoint_loss(xT, predicted, dT):
    """Cell by cell: the mean squared error over the genes that are on."""
    costs = []
    for end, guess, on in zip(xT, predicted, dT == 1, strict=True):
        squared = (end[on] - guess[on]) ** 2
        # The mean of nothing is NaN, and one NaN spoils the whole batch. The sum of nothing is 0.
        cost = squared.mean() if on.any() else squared.sum()
        costs.append(cost)
    # A mean of means: a cell that expresses few genes counts as much as one that expresses many.
    return torch.stack(costs).mean()


# ---- Lesson 4: the discrete bridge ---------------------------------------------------------------


def mixture_sample(d0, dT, t, noise):
    """Toss a coin for each gene, which says "end" with probability t."""
    # uniform(d0) has the shape (B, N), so that each gene of each cell has a coin of its own; t has
    # the shape (B, 1), so that the genes of a cell share its time.
    end = (noise.uniform(d0) < t).to(d0)
    return end * dT + (1 - end) * d0


def ctmc_rate(y, d, p_on, t):
    """Rate times (what the end says, less where we are)."""
    p_off = 1 - p_on
    p_of_y = y * p_on + (1 - y) * p_off  # y is 0 or 1, so that one of the two terms is left
    same = (y == d).to(p_on)
    # kappa(t) = t has the derivative 1. With kappa itself in the numerator, as printed, nothing
    # could move at t = 0.
    speed = 1 / (1 - t)
    return speed * (p_of_y - same)


def ctmc_step(d, p_on, t, h, noise):
    """Work out how likely the gene is on after the step, and draw once."""
    # Another way to the same law: first draw whether the gene jumps (probability h / (1 - t)), then
    # where to. That takes two uniform numbers a gene. One for both would be wrong: the genes that
    # jump are those with a small one.
    share = h / (1 - t)
    on_after = d + share * (p_on - d)
    return (noise.uniform(d) < on_after).to(d)


def activation_loss(dT, log_odds):
    """-log of a logistic function is a softplus."""
    # -log(1 / (1 + exp(-a))) = log(1 + exp(-a)) = softplus(-a) is what a gene costs that is on, and
    # softplus(a) what one costs that is off.
    sign = 1 - 2 * dT  # -1 where on, 1 where off
    return torch.nn.functional.softplus(sign * log_odds).mean()


# ---- Lesson 5: pairing ---------------------------------------------------------------------------


def transport_cost(xT, x0, cost="sqeuclidean"):
    """Compare every perturbed cell, a row, with every control, a column."""
    if cost == "cosine":
        lengths = xT.norm(dim=1)[:, None] * x0.norm(dim=1)
        # A dot product over two lengths is the cosine. Rounding may carry it past 1.
        return (1 - xT @ x0.T / lengths).clamp(min=0)
    # Expanding |a - b|^2 = a^2 + b^2 - 2 ab needs less memory, but then the rounding of three large
    # numbers can make a small difference negative, and its root NaN.
    difference = xT[:, None, :] - x0[None, :, :]  # (n, m, N)
    squared = (difference**2).sum(2)
    if cost == "sqeuclidean":
        return squared
    if cost == "euclidean":
        return squared.sqrt()
    raise ValueError(f"no such cost: {cost}")


def sinkhorn(C, epsilon, iterations):
    """Make the rows right, then the columns, and again, until both are."""
    n, m = C.shape
    log_weight = -C / epsilon
    f = C.new_zeros(n)
    g = C.new_zeros(m)
    for _ in range(iterations):
        # Row i sums to exp(f_i) * sum_j exp(g_j + log_weight_ij), which has to be 1 / n. In logs,
        # because exp(-C / epsilon) is 0 in floating point for a small epsilon.
        f = -math.log(n) - torch.logsumexp(log_weight + g[None, :], dim=1)
        # This spoils the columns. Put them right, which spoils the rows, but by less than before.
        g = -math.log(m) - torch.logsumexp(log_weight + f[:, None], dim=0)
    return torch.exp(f[:, None] + g[None, :] + log_weight)


def draw_partners(plan, noise):
    """Lay the weights of a row end to end and throw a dart at them."""
    edges = plan.double().cumsum(dim=1)  # where each control's piece ends
    length = edges[:, -1:]  # the row's own sum, whatever it is
    dart = noise.uniform(length) * length
    # The dart is in the piece after all those that end at or before it. "At" matters: a control of
    # weight 0 has a piece of no length, which a dart at 0 must not hit.
    passed = (edges <= dart).sum(dim=1)
    return passed.clamp(max=plan.shape[1] - 1)  # all pieces are passed where all weights are 0


# ---- Lesson 6: genes that were never perturbed ---------------------------------------------------


def propagate(W, nodes, hops=3):
    """One perturbed gene at a time, one hop at a time."""
    heard = W.abs().sum(dim=1)  # over the columns: all that comes in to the gene of the row
    deaf = heard == 0
    responses = []
    for node in nodes.tolist():
        signal = W.new_zeros(len(W))
        signal[node] = 1
        for _ in range(hops):
            # `signal` on the right is all of it as it was before the hop. Writing into it gene by
            # gene would let a message run through several genes in one hop.
            messages = W @ signal
            mean = messages / heard.masked_fill(deaf, 1)
            mean[node] = 1  # it is held: its regulators cannot bring it back
            signal = mean
        responses.append(signal)
    return torch.stack(responses)


# ---- Lesson 7: all together ----------------------------------------------------------------------


@torch.no_grad()
def sample(model, x0, d0, conditions, noise, trace=None):
    """Ask, step, ask, step."""
    model.eval()
    cells = len(x0)
    condition = model.encode(conditions, torch.zeros(cells, dtype=torch.long))
    steps = model.settings.steps
    sigma = model.settings.sigma
    h = 1 / steps
    x = x0
    d = d0
    for step in range(steps):
        t = step * h
        if trace is not None:
            trace.append((x, d))
        time = torch.full((cells, 1), t, dtype=x.dtype)
        end, log_odds = model.predict(time, x, d, condition)
        p_on = 1 / (1 + torch.exp(-log_odds))
        # Both steps start from what the networks have just seen. The names are bound anew, and
        # nothing is changed in place: x0, d0 and what the trace holds stay as they are.
        x = euler_maruyama_step(x, end, t, h, sigma, noise)
        d = ctmc_step(d, p_on, t, h, noise)
    level = torch.clamp(x, min=0)
    return level * d, level


# ---- Lesson 8: is it any good? -------------------------------------------------------------------


def e_distance(x, y, squared=False):
    """Three mean distances."""

    def total(a, b):
        """The sum of the distances between all cells of a and all of b."""
        difference = a[:, None, :] - b[None, :, :]
        return np.sqrt((difference**2).sum(axis=2)).sum()

    n, m = len(x), len(y)
    between = total(x, y) / (n * m)
    # The sum holds n distances of a cell to itself, all of them 0. They are no pairs of different
    # cells: dividing by n * n would call every population narrower than it is.
    within_x = total(x, x) / (n * (n - 1))
    within_y = total(y, y) / (m * (m - 1))
    energy = max(0.0, 2 * between - within_x - within_y)
    return energy if squared else math.sqrt(energy)


def wasserstein(x, y):
    """The area between the distribution functions, gene by gene."""
    areas = []
    for a, b in zip(x.T, y.T, strict=True):
        a = np.sort(a)
        b = np.sort(b)
        # Between two neighbours of all values together neither function moves.
        values = np.sort(np.concatenate([a, b]))
        width = np.diff(values)
        below_a = np.searchsorted(a, values[:-1], side="right") / len(a)
        below_b = np.searchsorted(b, values[:-1], side="right") / len(b)
        areas.append((width * np.abs(below_a - below_b)).sum())
    return np.array(areas)
