"""Fifteen functions to write: fourteen parts of the method, and the sampler that joins them.

Copy this file, fill in what raises NotImplementedError, and have it marked:

    cp course/exercises.py mine.py
    python course/grade.py mine.py
    python course/grade.py mine.py --only bridge_sample bridge_drift

Only torch and numpy are needed. You may import more, write functions of your own, and call those
that you have written already; what is imported does not count as written. Time t runs from 0
(control) to 1 (perturbed). The letters of the shapes:

    B cells     N genes     n perturbed cells, m controls of a plan     P perturbed genes

x (B, N) is log1p expression, d (B, N) is 1.0 where a gene is on and 0.0 where it is off. Change no
argument in place, and return the type (float32 or float64) that came in.

Random numbers come from the argument `noise` alone, or nobody could repeat a run:

    noise.normal(like)      standard normal numbers in the shape and type of the tensor `like`
    noise.uniform(like)     numbers that are uniform on [0, 1), in the same way

In what order you draw them, and how many, is up to you: the grader looks at the law of what you
return, not at single numbers. To try a function, write

    from course.noise import Noise
    noise = Noise(0)
"""

import numpy as np  # noqa: F401  (for your code)
import torch  # noqa: F401

# ---- Lesson 2: the Brownian bridge ---------------------------------------------------------------


def bridge_sample(x0, xT, t, sigma, noise):
    """Draw x_t on a Brownian bridge that starts at x0 and ends at xT (Eq. 4 and 7).

        x_t ~ N((1 - t) x_0 + t x_T, sigma^2 t (1 - t))

    x0, xT (B, N); t (B, 1), a time for each cell; sigma a number. Returns x_t (B, N). Every gene of
    every cell has noise of its own.

    Lesson 2 prints a line that does this. To make it your own, close the lesson, derive mean and
    variance on paper, and then write it.

    Hint: N(mean, variance). What must a standard normal number be multiplied by?
    """
    raise NotImplementedError


def bridge_drift(x, xT, t):
    """The drift that takes x at time t to the end xT of the bridge (Eq. 5).

        v_t = (x_T - x_t) / (T - t)  with T = 1

    x, xT (B, N); t a number below 1 or a tensor (B, 1). Returns (B, N).

    Hint: a velocity is a way divided by a time. Which time is left?
    """
    raise NotImplementedError


# ---- Lesson 3: predicting the end ----------------------------------------------------------------


def euler_maruyama_step(x, xT, t, h, sigma, noise):
    """One step of length h: from x at time t to time t + h (Eq. 16).

        x_{t+h} = x_t + h v_t + sigma (B_{t+h} - B_t)

    x, xT (B, N), where xT is the predicted end; t, h, sigma numbers, t + h at most 1. Returns
    (B, N). B is Brownian motion: its increment over a time h is normal with mean 0 and variance h.

    Hint: h is a Python number, and its root is `h**0.5`; `torch.sqrt` takes tensors only.
    """
    raise NotImplementedError


def endpoint_loss(xT, predicted, dT):
    """How far the predicted end is from the true one, on expressed genes only (Eq. 9).

    xT, predicted, dT (B, N); only genes with dT = 1 count, whatever xT is. Squared errors are
    averaged over the expressed genes of each cell, and then over all B cells; a cell that expresses
    nothing costs 0. Returns a tensor of shape () that can be differentiated by `predicted`.

    Hint: there are two means here, and a division by 0 to avoid.
    """
    raise NotImplementedError


# ---- Lesson 4: the discrete bridge ---------------------------------------------------------------


def mixture_sample(d0, dT, t, noise):
    """Draw d_t: each gene by itself is in its end state with probability t, else in its first.

    Eq. 11. d0, dT (B, N); t (B, 1). Returns d_t (B, N), of 0.0 and 1.0.

    Hint: how likely is a uniform number below t?
    """
    raise NotImplementedError


def ctmc_rate(y, d, p_on, t):
    """The rate at which a gene in state d jumps to state y at time t (Eq. 12 and 13).

        u_t(y, d) = kappa'(t) / (1 - kappa(t)) * sum_{d_T} ([y = d_T] - [y = d]) P(d_T)

    The sum is over both ends, d_T = 0 and 1, and P(d_T = 1) is p_on. kappa' is the derivative of
    the schedule kappa; put kappa(t) = t in. [y = d] is 1 where they are equal, else 0. (The paper
    prints kappa for kappa', and lesson 4 shows what goes wrong then.)

    y, d (B, N), of 0.0 and 1.0; p_on (B, N); t a number below 1. Returns (B, N): for y = d it is
    minus the rate of leaving d.

    Hint: of the two terms of the sum, one has [y = d_T] = 1. What do the probabilities sum to?
    """
    raise NotImplementedError


def ctmc_step(d, p_on, t, h, noise):
    """One step of length h of the chain with the rate above (Eq. 17, corrected).

        P(d_{t+h} = y) = [y = d_t] + h / (T - t) * (P(d_T = y) - [y = d_t])  with T = 1

    d, p_on (B, N); t, h numbers, t + h at most 1. Returns d_{t+h} (B, N), of 0.0 and 1.0, drawn for
    each gene of each cell by itself.

    Hint: with which probability does a gene that is off come on? And one that is on stay on?
    """
    raise NotImplementedError


def activation_loss(dT, log_odds):
    """The cross-entropy of the end states, in nats a gene and cell (Eq. 14).

        - log P(d_T)  with  P(d_T = 1) = 1 / (1 + exp(-log_odds))

    dT, log_odds (B, N). Returns the mean over genes and cells, a tensor of shape () that can be
    differentiated by `log_odds`. It holds for log odds of 200 and -200 too.

    Hint: exp(200) is infinite in float32. Look for a function of torch that avoids it.
    """
    raise NotImplementedError


# ---- Lesson 5: pairing ---------------------------------------------------------------------------


def transport_cost(xT, x0, cost="sqeuclidean"):
    """The cost of turning each control into each perturbed cell.

    xT (n, N) perturbed cells, x0 (m, N) controls. Returns (n, m): the perturbed cells are the rows.
    cost: "sqeuclidean", the squared length of the difference; "euclidean", its length; "cosine",
    1 minus the cosine of the angle between the two cells. The first two are never below 0 or NaN,
    not by rounding either (float32, cells far from 0 and close together). More accuracy than that
    is not asked: for cells near 100 in float32, the cost of a cell and itself may be up to 1. A
    cell of zeros has no direction, and what its cosine is does not matter.

    Hint: xT[:, None] - x0 has shape (n, m, N).
    """
    raise NotImplementedError


def sinkhorn(C, epsilon, iterations):
    """The entropic transport plan P for costs C, by Sinkhorn's iterations written by hand.

        P_ij = exp(f_i + g_j - C_ij / epsilon)

    with f (n,) and g (m,) such that each row sums to 1 / n and each column to 1 / m. (Many books
    have f / epsilon for this f.) C (n, m); epsilon a number above 0; iterations: how often f and g
    are each renewed, in either order, and not more often. Returns (n, m).

    Hint: f follows from g and g from f. exp(-C / epsilon) underflows for a small epsilon; what does
    torch.logsumexp do about that?
    """
    raise NotImplementedError


def draw_partners(plan, noise):
    """For each perturbed cell, a row of the plan, draw one control with the row's weights.

    plan (n, m), not below 0. Its rows need not sum to 1, nor all to the same. Returns the drawn
    columns, integers (n,). A control of weight 0 is never drawn, and uniform numbers may be exactly
    0 or as near to 1 as the type allows (and sums in float32 do not end at 1 exactly). A row that
    is 0 throughout has no weights to draw with, and gets any column that exists.

    Hint: torch.cumsum, and one uniform number a row.
    """
    raise NotImplementedError


# ---- Lesson 6: genes that were never perturbed ---------------------------------------------------


def propagate(W, nodes, hops=3):
    """How a change of each of some genes travels along a network of genes.

    W (N, N): W[j, i] is the edge from gene i to gene j. nodes (P,): the perturbed genes, each by
    itself. Returns (P, N). A perturbed gene is held at 1 and all others begin at 0. At every hop
    each other gene, all at once, takes the mean of its incoming messages, weighted by |W|,

        s_j <- sum_i W[j, i] s_i / sum_i |W[j, i]|

    and a gene that hears nobody stays at 0. An edge from a gene to itself counts as any other.

    Hint: which s stand on the right side, those before the hop or after?
    """
    raise NotImplementedError


# ---- Lesson 7: all together ----------------------------------------------------------------------


def sample(model, x0, d0, conditions, noise, trace=None):
    """Predict perturbed cells from control cells of one condition (Eq. 16 to 18).

    x0, d0 (B, N). The model, a torch.nn.Module, has:

        model.settings.steps, model.settings.sigma      how many steps from 0 to 1, and the noise
        model.encode(conditions, which)                 the condition of each cell; call it once,
                                                        with which = zeros (B,) of torch.long: every
                                                        cell has the first condition
        model.predict(t, x, d, condition)               what the networks say at time t (B, 1): the
                                                        end x_T (B, N), and the log odds (B, N)
                                                        that d_T is 1

    Start at x0 and d0 as they are; at each step ask the networks once, at the time at which the
    step begins, and let x and d take one step each. Negative levels become 0, after the last step
    and only then. Returns two tensors (B, N): the prediction x_T * d_T (Eq. 18), and the level x_T
    alone. If `trace` is a list, append the pair (x_t, d_t) to it before every step.

    Hint: your own euler_maruyama_step and ctmc_step. A network that is trained has dropout and
    gradients; one that samples needs neither (`model.eval()`, `torch.no_grad()`).
    """
    raise NotImplementedError


# ---- Lesson 8: is it any good? -------------------------------------------------------------------


def e_distance(x, y, squared=False):
    """The energy distance between cells x (n, N) and y (m, N), numpy arrays; n, m at least 2.

        E^2 = 2 E|x - y| - E|x - x'| - E|y - y'|

    |.| is the Euclidean length over all genes; x and x' are two different cells of x. Returns the
    root of E^2, or with `squared` E^2 itself: a number, not below 0 (an estimate may be; then 0).

    Hint: how many ordered pairs of different cells do n cells have?
    """
    raise NotImplementedError


def wasserstein(x, y):
    """The Wasserstein-1 distance of each gene between cells x (n, N) and y (m, N), numpy arrays.

    In one dimension it is the area between the two distribution functions, or between the two
    quantile functions. n and m may differ. Returns a numpy array (N,).

    Hint: both functions are steps. Where do they jump?
    """
    raise NotImplementedError
