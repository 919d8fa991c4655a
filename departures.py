"""Departures (arXiv 2511.13124): Schroedinger bridges that carry control cells to perturbed cells.

Part I is the paper, complete. Read it from top to bottom with the paper beside it:

    1  Brownian bridge         how much a gene is expressed         Eq. 4 to 9
    2  discrete bridge         which genes are on                   Eq. 10 to 14
    3  pairing                 which control becomes which cell     minibatch optimal transport
    4  gene network            what a perturbation reaches
    5  networks, joint loss    what is learnt                       Eq. 15
    6  sampler                 from control cells to predictions    Eq. 16 to 18

Eq. 1 to 3 and 6 say why this is enough. The Schroedinger bridge, the process nearest to Brownian
motion between two populations, is a mixture of Brownian bridges, and entropic optimal transport
says which cells they join. Eq. 2 (Doob's transform) gives the drift of each bridge; the Markov
process with the same x_t has the mean of these drifts given x_t (Eq. 3, the Markovian projection),
and a network that minimises Eq. 6 or 9 finds that mean. Iterating, as others do, would need the way
back from perturbed to control cells too.

Part II holds our additions, one block each. Part I does not need it: cut the file at the line
"PART II" and what stands above still trains and samples.

Time t runs from 0 (control) to T = 1 (perturbed). The letters of the shapes:

    B cells of a batch      N genes           C conditions (a perturbation in a cell type)
    P targets in all        M targets of one condition: one gene or drug, or several genes
                            (the paper's P is a perturbation)
    K cell types            k length of an embedding

x (B, N) is log1p expression; d (B, N) is 1.0 where a gene is on, 0.0 where it is off; t is (B, 1).
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import ot
import torch
import torch.nn.functional as F
from torch import nn


class Noise:
    """All random numbers of a run, drawn one after the other from one seed."""

    def __init__(self, seed, device="cpu"):
        self.generator = torch.Generator(device).manual_seed(seed)

    def normal(self, like):
        """Standard normal numbers in the shape, type and place of the tensor `like`."""
        return torch.empty_like(like).normal_(generator=self.generator)

    def uniform(self, like):
        """Uniform numbers on [0, 1) in the shape, type and place of the tensor `like`."""
        return torch.empty_like(like).uniform_(generator=self.generator)

    def spread(self, like):
        """Uniform numbers for `like` (B, 1), one in each B-th part of [0, 1)."""
        part = torch.arange(len(like), device=like.device)[:, None]
        return (part + self.uniform(like)) / len(like)


# ==== PART I: THE PAPER ===========================================================================

# ---- 1  Brownian bridge: how much a gene is expressed --------------------------------------------


def bridge_sample(x0, xT, t, sigma, noise):
    """Draw x_t (B, N) on a Brownian bridge that starts at x0 and ends at xT: Eq. 4 and 7.

    Its mean moves on a straight line, its variance is sigma^2 t (1 - t). (The printed Eq. 7 gives
    the Brownian motion B_t covariance Id. It has t Id, and only then is the variance this one.)
    """
    z = noise.normal(x0)
    return (1 - t) * x0 + t * xT + sigma * torch.sqrt(t * (1 - t)) * z


def bridge_drift(x, xT, t):
    """The drift (B, N) to the bridge's end, v_t = (x_T - x_t) / (T - t): Eq. 5 and 8.

    (The printed Eq. 8 gives its noise dB_t covariance Id. It has dt Id.)
    """
    return (xT - x) / (1 - t)


def endpoint_loss(xT, predicted, dT):
    """How far the predicted end (B, N) is from the true one, on expressed genes only: Eq. 9.

    The network predicts the end x_T, and the drift follows from it. The drift itself would be a
    poor thing to predict: its noise grows without bound as t goes to T, that of the end does not. A
    gene that is off at the end (dT = 0) says nothing of a level: with most genes off, its zeros
    would draw every prediction to 0. So x_T is the level if the gene is on, and the discrete bridge
    says whether it is. Errors are averaged over a cell's expressed genes, then over the cells.
    """
    squared = dT * (xT - predicted) ** 2
    expressed = dT.sum(1).clamp_min(1)  # a cell that expresses nothing costs nothing
    return (squared.sum(1) / expressed).mean()


# ---- 2  Discrete bridge: which genes are on ------------------------------------------------------


def activation(x):
    """Which genes are on, d (B, N) in {0, 1}: Eq. 10."""
    return (x != 0).to(x)


def mixture_sample(d0, dT, t, noise):
    """Draw d_t (B, N): every gene is in its end state with probability kappa(t) = t, Eq. 11.

    It has a path of its own, for x_t is noisy and hardly ever 0. (The printed Eq. 11 has x for d.)
    """
    u = noise.uniform(d0)
    return torch.where(u < t, dT, d0)


def ctmc_rate(y, d, p_on, t):
    """The rate u_t(y, d) at which a gene jumps from state d to state y: Eq. 12 and 13.

    For y = d it is minus the rate of leaving d. p_on = P(d_T = 1 | d_t) is what the network
    predicts; given d_t, genes jump independently. The factor is kappa' / (1 - kappa), and that is 1
    / (1 - t) for kappa = t. (With the printed kappa / (1 - kappa) the rate would be 0 at t = 0, and
    Kolmogorov's forward equation does not give back the path of Eq. 11.) The sampler does not call
    this function: `ctmc_step` is this rate, integrated over a step.
    """
    p_y = torch.where(y == 1, p_on, 1 - p_on)
    stays = (y == d).to(p_on.dtype)
    return (p_y - stays) / (1 - t)


def activation_loss(dT, log_odds):
    """Cross-entropy of the end state d_T (B, N), in nats per gene and cell: Eq. 14."""
    return F.binary_cross_entropy_with_logits(log_odds, dT)


# ---- 3  Pairing: which control becomes which perturbed cell --------------------------------------
#
# No cell is measured twice, so the pairs (x0, xT) that a bridge needs are made: per condition, the
# perturbed cells are set against as many controls of their type (train.py, `deal_plans`), an
# optimal transport plan says how likely each pair is, and pairs are drawn from it, afresh each
# epoch.


def transport_cost(xT, x0, cost="sqeuclidean"):
    """The cost (n, m) of turning each control x0 (m, N) into each perturbed cell xT (n, N).

    The perturbed cells come first: they are the rows, and each of them is given a control.
    """
    if cost == "cosine":
        return 1 - F.normalize(xT, dim=1) @ F.normalize(x0, dim=1).T
    squared = (xT**2).sum(1)[:, None] + (x0**2).sum(1) - 2 * xT @ x0.T
    squared = squared.clamp_min(0)
    return squared if cost == "sqeuclidean" else squared.sqrt()


def regularisation(C, cost, epsilon, sigma):
    """Sinkhorn's epsilon in the units of the cost matrix C (n, m), from what the user wrote.

    "0.05" is a fraction of the mean cost, "0.1max" of the largest one, as the authors' code has it;
    the paper leaves epsilon open. "bridge" is Schroedinger's own: the static Schroedinger bridge
    for sigma B_t over [0, T] is entropic transport with cost |x - y|^2 / 2 and epsilon = sigma^2 T,
    so 2 sigma^2 T for |x - y|^2. In thousands of genes that is tiny beside the cost, and the plan
    is practically the exact one; the fractions are far larger, and blur it.
    """
    if epsilon.endswith("max"):
        return float(epsilon.removesuffix("max")) * C.max().item()
    if epsilon != "bridge":
        return float(epsilon) * C.mean().item()
    if cost != "sqeuclidean":
        raise ValueError("epsilon='bridge' is defined for the squared Euclidean cost")
    return 2 * sigma**2


def coupling(C, method="entropic", epsilon=1.0, iterations=1000, tolerance=1e-4):
    """The transport plan (n, m) between uniform weights for the cost matrix C (n, m).

    method: "entropic" is Sinkhorn's (the paper's), "exact" its limit for epsilon = 0, "random" its
    limit for epsilon = infinity, where every pair is as likely (the paper's ablation, Fig. 6).
    tolerance: of Sinkhorn, relative to a marginal's weight, which is 1 / n or 1 / m.
    """
    n, m = C.shape
    rows = C.new_full((n,), 1 / n)
    columns = C.new_full((m,), 1 / m)
    if method == "random":
        return rows[:, None] * columns
    if method == "exact":
        arrays = [v.double().cpu().numpy() for v in (rows, columns, C)]
        return torch.as_tensor(ot.emd(*arrays, numItermax=10_000_000)).to(C)
    epsilon = max(epsilon, 1e-12)  # between cells that are all alike, the mean cost is 0
    return ot.bregman.sinkhorn_log(
        rows, columns, C, epsilon, iterations, tolerance / max(n, m), warn=False
    )


def draw_partners(plan, noise):
    """For each perturbed cell, a row of the plan (n, m), draw one control: indices (n,).

    A plan is a joint distribution, so pairs are drawn from it and not read off its largest entries.
    Drawing row by row uses every perturbed cell exactly once, so the marginal of the targets is
    exact even where Sinkhorn's is not; that of the controls holds on average.
    """
    cumulative = plan.double().cumsum(1)  # up to the row's sum, which need not be exactly 1 / n
    u = noise.uniform(cumulative[:, -1:]) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, u, right=True).squeeze(1)
    return drawn.clamp_max(plan.shape[1] - 1)


def pair(xT, x0, settings, noise):
    """Partners in x0 (m, N) of the cells xT (n, N): indices (n,), and the plan (n, m)."""
    C = transport_cost(xT, x0, settings.cost)
    epsilon = regularisation(C, settings.cost, settings.epsilon, settings.sigma)
    plan = coupling(C, settings.pairing, epsilon)
    return draw_partners(plan, noise), plan


# ---- 4  Gene network: what a perturbation reaches ------------------------------------------------
#
# The paper takes this part from earlier work and gives few details. The threshold is that of the
# authors' code; the hops, the dose and what stands in for a network that says nothing are ours.


def coexpression_network(S, threshold=0.3):
    """Edges (N, N) between genes whose |Pearson correlation| is above the threshold.

    S (N, N) is the genes' covariance in control cells, around the mean of their type; an edge's
    weight is the correlation, the same both ways.
    """
    sd = S.diagonal().clamp_min(1e-12).sqrt()
    correlation = S / sd[:, None] / sd
    itself = torch.eye(len(S), dtype=torch.bool, device=S.device)
    return torch.where((correlation.abs() > threshold) & ~itself, correlation, 0.0)


def propagate(W, nodes, hops=3):
    """How a change of each of the nodes (P,) travels along a gene network: responses (P, N).

    The entry [j, i] of W (N, N) is the edge from gene i to gene j. The perturbed gene is held one
    unit up (the layer that reads the responses learns the sign); at every hop each other gene takes
    the mean of its incoming messages, weighted by |W|. A held gene does not answer to its
    neighbours. nodes: the targets that are genes of the network.
    """
    W = W / W.abs().sum(1, keepdim=True).clamp_min(1e-12)
    held = F.one_hot(nodes, len(W)).to(W)
    signal = held
    for _ in range(hops):
        signal = torch.where(held == 1, held, signal @ W.T)
    return signal


class Conditions(NamedTuple):
    """C conditions: which targets are perturbed, how strongly, in which cell type.

    A batch of B = 64 pairs may hold C = 20 of them; `which` (B,) then says whose row each pair is.
    """

    target: torch.Tensor  # (C, M) index of a gene or drug; -1 where there is none
    dose: torch.Tensor  # (C, M) of a drug; 1 for genes
    cell_type: torch.Tensor  # (C,) index

    def take(self, rows):
        """Some of the conditions, by their row numbers (a tensor)."""
        return Conditions(self.target[rows], self.dose[rows], self.cell_type[rows])


class ConditionEncoder(nn.Module):
    """Embed conditions: what is perturbed becomes a vector z. Runs once per distinct condition.

    One condition, the knock-out of two genes, from top to bottom:

        target                 (2,)     their numbers among the P targets
        response[target]       (2, N)   what the gene network says each of them reaches
        from_network(...)      (2, k)   a learned embedding per reached gene, weighted and summed
        * sigmoid(by_dose)     (2, k)   a factor for the dose; genes have dose 1, so the same factor
        z = their sum          (k,)

    For C conditions all shapes have C in front; where a condition has fewer than M targets, -1
    fills the row and adds nothing. A drug has a structure, and its response is zero; a gene has a
    response, and its structure is zero. A target of which neither is known has an embedding of its
    own name, which is worth something only if it was perturbed in training (`seen`); sample.py
    refuses the others.
    """

    def __init__(self, n_genes, n_targets, n_structure, length):
        super().__init__()
        self.from_network = nn.Linear(n_genes, length, bias=False)
        self.from_structure = nn.Linear(n_structure, length, bias=False)
        self.from_name = nn.Embedding(n_targets, length)
        self.by_dose = nn.Linear(1, length)
        self.register_buffer("response", torch.zeros(n_targets, n_genes))
        self.register_buffer("structure", torch.zeros(n_targets, n_structure))
        self.register_buffer("seen", torch.zeros(n_targets, dtype=torch.bool))  # in training

    def reachable(self):
        """Which targets (P,) the gene network or a structure tells something about."""
        return self.response.any(1) | self.structure.any(1)

    def forward(self, conditions):
        """Conditions -> z (C, k)."""
        present = conditions.target >= 0  # (C, M)
        p = conditions.target.clamp_min(0)
        by_name = ~self.reachable()[p]
        z = self.from_network(self.response[p]) + self.from_structure(self.structure[p])
        z = z + self.from_name(p) * by_name[..., None]  # (C, M, k)
        log_dose = torch.log10(conditions.dose.clamp_min(1e-12))
        z = z * torch.sigmoid(self.by_dose(log_dose[..., None]))
        return (z * present[..., None]).sum(1)


# ---- 5  Networks and joint loss ------------------------------------------------------------------


def setting(default, text, **limits):
    """A field of Settings: its help text, and its limits (`least`, `most`) or `choices`."""
    return field(default=default, metadata={"help": text, **limits})


PLANS = ("entropic", "exact", "random")
COSTS = ("sqeuclidean", "euclidean", "cosine")


@dataclass
class Settings:
    """Everything that decides a run. A checkpoint carries it.

    sigma, steps, batch, learning rate, genes and test_fraction are the paper's; pairing and cost
    are what its ablation calls its own; epsilon is from the authors' code. The rest it leaves open.
    """

    sigma: float = setting(0.2, "noise scale of the Brownian bridge", least=1e-9)
    steps: int = setting(50, "time steps of the sampler", least=1)
    pairing: str = setting("entropic", "kind of transport plan", choices=PLANS)
    cost: str = setting("sqeuclidean", "transport cost", choices=COSTS)
    epsilon: str = setting("0.1max", "Sinkhorn's: share of the mean cost, 'SHAREmax' or 'bridge'")
    plan_cells: int = setting(64, "most cells in one transport plan", least=1)
    grn: str = setting("coexpression", "gene network: coexpression, none or a CSV of edges")
    drug_embedding: str = setting("", "CSV of drug structures; else those in the file")
    embedding: int = setting(64, "length of a perturbation's embedding", least=1)
    width: int = setting(256, "hidden units of both networks", least=1)
    epochs: int = setting(0, "passes over the cells; 0: as many as make 2,500 steps", least=0)
    batch: int = setting(64, "pairs in a batch", least=1)
    learning_rate: float = setting(1e-3, "of AdamW", least=1e-9)
    genes: int = setting(5000, "genes to keep: the perturbed ones, then the most variable")
    test_fraction: float = setting(0.3, "share of conditions to hold out", least=0, most=1)
    seed: int = setting(0, "of everything random", least=0, most=2**31 - 1)


class Network(nn.Module):
    """A residual network of a cell's state, the time and what is known beside: -> (B, outputs).

    The time enters as t and as four waves of it, sine and cosine: 9 numbers. The last layer starts
    at 0, so an untrained network says 0 everywhere: no level, and even odds.
    """

    def __init__(self, n_inputs, n_context, width, n_outputs):
        super().__init__()
        frequency = 2 * math.pi * torch.tensor([0.5, 1.0, 2.0, 4.0])
        self.register_buffer("frequency", frequency, persistent=False)
        self.state = nn.Linear(n_inputs, width)
        self.context = nn.Linear(n_context + 9, width)
        self.block = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.out = nn.Sequential(nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, n_outputs))
        nn.init.zeros_(self.out[2].weight)
        nn.init.zeros_(self.out[2].bias)

    def forward(self, state, t, context):
        """state (B, inputs), t (B, 1), context (B, ...) -> (B, outputs); all 0 before training."""
        wave = t * self.frequency
        context = torch.cat([context, t, wave.sin(), wave.cos()], 1)
        hidden = F.silu(self.state(state) + self.context(context))
        return self.out(hidden + self.block(hidden))


class Encoded(NamedTuple):
    """The condition of each of B cells, as the networks see it."""

    cell_type: torch.Tensor  # (B,)
    z: torch.Tensor  # (B, k)


class Departures(nn.Module):
    """The encoder and both networks, x_theta and d_theta, for named genes, targets and cell types.

    kind: "gene" or "drug". sizes: of what the encoder is told, such as a drug's structure vector.
    """

    def __init__(self, settings, genes, targets, cell_types, kind="gene", **sizes):
        super().__init__()
        self.settings = settings
        self.genes = list(genes)
        self.targets = list(targets)
        self.cell_types = list(cell_types)
        self.kind = kind
        self.sizes = sizes
        self.build(**sizes)

    def build(self, structure=1):
        """Make the encoder and the networks."""
        n_genes, length, width = len(self.genes), self.settings.embedding, self.settings.width
        self.encoder = ConditionEncoder(n_genes, len(self.targets), structure, length)
        self.label = nn.Embedding(len(self.cell_types), 8)  # ct: 8 learned numbers a cell type
        self.x_network = Network(n_genes, length + 8, width, n_genes)
        self.d_network = Network(n_genes, length + 8, width, n_genes)

    def activation(self, x):
        """Eq. 10."""
        return activation(x)

    def encode(self, conditions, which, noise=None):
        """Encode the distinct conditions (C of them), then hand each cell its own, which (B,)."""
        z = self.encoder(conditions)
        return Encoded(conditions.cell_type[which], z[which])

    def predict(self, t, x, d, condition):
        """Predict both ends from x_t and d_t: x_T (B, N), and the log odds (B, N) that d_T is 1."""
        context = torch.cat([condition.z, self.label(condition.cell_type)], 1)
        endpoint = self.x_network(x, t, context)
        log_odds = self.d_network(2 * d - 1, t, context)  # off and on as -1 and 1
        return endpoint, log_odds

    def loss(self, x0, xT, d0, dT, conditions, which, noise):
        """The losses of Eq. 9 and 14, whose sum is Eq. 15, on the pairs (x0, xT) and (d0, dT).

        conditions: the distinct ones (C); which (B,): the row of each pair's own. The two networks
        share the encoder and the labels, and are trained jointly. We take Eq. 9 as a mean over the
        genes that a cell expresses and Eq. 14 as a mean over all; the paper leaves that open.
        """
        condition = self.encode(conditions, which, noise)
        return self.bridge_losses(x0, xT, d0, dT, condition, noise)

    def times(self, x0, noise):
        """A time of the bridges for each pair, uniform: (B, 1)."""
        return noise.uniform(x0[:, :1])

    def bridge_losses(self, x0, xT, d0, dT, condition, noise):
        """Show both networks a random time of both bridges and score what they say of the end."""
        t = self.times(x0, noise)
        xt = bridge_sample(x0, xT, t, self.settings.sigma, noise)
        dt = mixture_sample(d0, dT, t, noise)
        endpoint, log_odds = self.predict(t, xt, dt, condition)
        return endpoint_loss(xT, endpoint, dT), activation_loss(dT, log_odds)


# Training is the usual loop (train.py, `train_epoch`). Every epoch pairs the cells of each
# condition anew (`pair`), shuffles the pairs, and takes them in batches:
#
#     loss = sum(model.loss(x0, xT, d0, dT, conditions, which, noise))        Eq. 15
#     optimiser.zero_grad(), loss.backward(), optimiser.step()                AdamW


# ---- 6  Sampler: from control cells to predictions -----------------------------------------------


def euler_maruyama_step(x, xT, t, h, sigma, noise):
    """x_{t+h} (B, N) by the drift to a predicted end and fresh noise: Eq. 16.

    The last step arrives at the predicted end, and leaves noise of variance sigma^2 h on it.
    """
    z = noise.normal(x)
    return x + h * bridge_drift(x, xT, t) + sigma * math.sqrt(h) * z


def ctmc_step(d, p_on, t, h, noise):
    """d_{t+h} (B, N): with probability h / (T - t) a gene is drawn anew from p_on, Eq. 17.

    That is delta + h (p - delta) / (T - t). (The printed Eq. 17 adds h p / (T - t) without taking
    it from the present state, and so sums to 1 + h / (T - t).) It follows the rate of Eq. 13
    exactly while p_on stands still: a gene has not jumped with probability 1 - h / (T - t), and of
    several jumps only the last one counts. The last step of all draws every gene anew.
    """
    jumps = noise.uniform(d) < h / (1 - t)
    drawn = (noise.uniform(d) < p_on).to(d)
    return torch.where(jumps, drawn, d)


@torch.no_grad()
def sample(model, x0, d0, conditions, noise, trace=None):
    """Predict perturbed cells from control cells x0, d0 (B, N) of one condition: Eq. 16 to 18.

    conditions: that one, C = 1. Returns x_T * d_T (B, N), the prediction (Eq. 18), and x_T (B, N)
    alone. Negative levels become 0, as in the authors' code. trace: a list that collects (x_t, d_t)
    before every step.
    """
    model.eval()
    which = torch.zeros(len(x0), dtype=torch.long, device=x0.device)
    condition = model.encode(conditions, which)
    steps = model.settings.steps
    x, d = x0, d0
    for i in range(steps):
        t, h = i / steps, 1 / steps
        if trace is not None:
            trace.append((x, d))
        endpoint, log_odds = model.predict(x.new_full((len(x), 1), t), x, d, condition)
        x = euler_maruyama_step(x, endpoint, t, h, model.settings.sigma, noise)
        d = ctmc_step(d, torch.sigmoid(log_odds), t, h, noise)
    level = x.clamp_min(0)
    return level * d, level


# ==== PART II: THE ADDITIONS ======================================================================
#
# Each block says what it changes, which line of Part I it replaces, why, and what it gains: the
# share of the E-distance gap between control cells and other real cells that it closes, all genes /
# the 20 that change most, on simulated genes and on real pairs (docs/method.md: commands, seeds).
# `model_class` at the end puts the classes together that the settings switch on. With all of them
# off it returns `Departures` as it stands in Part I: that is `--paper`.


@dataclass
class ImprovedSettings(Settings):
    """The paper's settings, ours where they differ, and a switch for every addition."""

    epsilon: str = setting("0.05", "Sinkhorn's: share of the mean cost, 'SHAREmax' or 'bridge'")
    learning_rate: float = setting(2e-3, "of AdamW", least=1e-9)
    grn: str = setting("structural", "gene network: structural, coexpression, none or a CSV")
    discrete: bool = setting(
        True, "the bridge of which genes are on; without it one bridge does both"
    )
    shifts: bool = setting(True, "learn what a condition shifts on average, beside each cell's own")
    skip_gate: bool = setting(True, "begin from the exact answer of a single gene")
    if_expressed: bool = setting(
        True, "bridge the level if expressed: fill silent genes with draws"
    )
    spread_times: bool = setting(True, "spread a batch's training times evenly over [0, T]")
    null_pairs: bool = setting(True, "train on pairs of controls too, under no perturbation")
    cosine_decay: bool = setting(True, "let the learning rate fall to 0 along a half cosine")
    target_dropout: float = setting(0.3, "chance to hide who the target is", least=0, most=1)
    prior: float = setting(0.1, "scale of the Cauchy prior on remembered shifts; 0: none", least=0)

    def paper(self):
        """Switch every addition off and take the paper's values, in place."""
        for name, value in vars(Settings()).items():
            setattr(self, name, value)
        self.shifts = False
        self.skip_gate = False
        self.if_expressed = False
        self.spread_times = False
        self.null_pairs = False
        self.cosine_decay = False
        self.target_dropout = 0.0
        self.prior = 0.0
        return self


# ---- Structural gene network (--grn structural) --------------------------------------------------
#
# Replaces `coexpression_network` and `propagate`. Co-variation alone cannot tell a cause from its
# effect; a single knock-down of the upstream gene can. So the network is fitted to both at once.
# Gains 0.32 / 0.45 on simulated genes; the targets of the real pairs are not measured.


def structural_likelihood(S, cells, loadings, log_psi):
    """Minus the log likelihood that `cells` Gaussian cells of covariance L L' + psi co-vary as S.

    S (N, N), loadings L (N, F), log_psi (N,). By Woodbury's identity, so that nothing of size
    (N, N) is ever inverted.
    """
    psi = torch.exp(log_psi) + 1e-3
    scaled = loadings / psi[:, None]
    inner = torch.eye(loadings.shape[1]).to(S) + loadings.T @ scaled
    # scaled' S scaled by one product with S, which is symmetric: the gradient of A reaches one of
    # its factors, that of A' the other.
    A = scaled.T @ (S @ scaled.detach())
    A = A + A.T - A.detach()
    log_determinant = torch.logdet(inner) + torch.log(psi).sum()
    trace = (S.diagonal() / psi).sum() - torch.linalg.solve(inner, A).trace()
    return 0.5 * cells * (log_determinant + trace)


def fit_structural_equations(
    S, cells, nodes, knock, shift, error, factors=6, sparsity=90.0, steps=800, lr=0.02, seed=0,
    progress=iter,
):  # fmt: skip
    """Total effects (P, N) of each node on every gene in a linear structural equation model.

    x = W x_nodes + H f + e. The nodes (genes `nodes`, (P,)) act on all genes and on each other
    along W (N, P), hidden factors f (cell state, unseen regulators) along H (N, factors). Holding
    node p one unit up moves the genes by column p of W (I - W_nodes)^-1. Two things are fitted at
    once, by maximum likelihood, with a penalty that spares strong edges:

      - how `cells` cells of one population co-vary: the correlations S (N, N);
      - how far the training perturbations moved the means: shift (Q, N), of error variance `error`
        (Q, 1), in Q conditions whose nodes moved by knock (Q, P).
    """
    n_nodes, n_genes = len(nodes), len(S)
    generator = torch.Generator().manual_seed(seed)
    identity = torch.eye(n_nodes).to(S)
    # Begin with the ridge regression on the nodes and the leading directions of what it leaves.
    ridge = torch.linalg.solve(S[nodes][:, nodes] + 0.1 * identity, S[nodes]).T.contiguous()
    itself = torch.zeros_like(ridge)
    itself[nodes, torch.arange(n_nodes, device=S.device)] = 1.0  # a gene is not its own cause
    H = torch.randn(n_genes, factors, generator=generator).to(S)
    for _ in range(100):
        H = torch.linalg.qr(S @ H - 0.7 * ridge @ (S[nodes] @ H))[0]
    variance = (H * (S @ H - 0.7 * ridge @ (S[nodes] @ H))).sum(0)
    H = (H * variance.clamp_min(1e-6).sqrt()).requires_grad_()
    W = (0.8 * ridge * (1 - itself)).requires_grad_()
    log_d = S.new_full((n_nodes,), -0.7).requires_grad_()
    log_psi = S.new_full((n_genes,), -0.3).requires_grad_()
    strength = S.new_tensor(0.8).requires_grad_()
    spread = S.new_zeros(n_nodes).requires_grad_()
    optimiser = torch.optim.Adam([W, H, log_d, log_psi, strength, spread], lr, betas=(0.9, 0.99))
    cooling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)

    def total_effect():
        edges = W * (1 - itself)
        settled = torch.linalg.inv(identity - edges[nodes])  # (P, P), of the nodes on each other
        return (edges @ settled).index_copy(0, nodes, settled)  # (N, P)

    for _ in progress(range(steps)):
        effect = total_effect()
        loadings = torch.cat([effect * torch.exp(0.5 * log_d), H], 1)
        likelihood = structural_likelihood(S, cells, loadings, log_psi)
        moved = (knock * strength * torch.exp(spread)) @ effect.T  # (Q, N)
        misfit = 0.5 * ((moved - shift) ** 2 / error).sum()
        uneven = 0.5 * (spread**2).sum() / 0.3**2  # knock-downs differ by about 30 %
        penalty = 0.1 * torch.log1p(W.abs() / 0.1).sum() + H.abs().sum() / 3
        optimiser.zero_grad()
        (likelihood + (misfit + uneven) + sparsity * penalty).backward()
        optimiser.step()
        cooling.step()
    return (total_effect() * strength).detach().T


def structural_effects(S, cells, nodes, knock, shift, error, hubs=20, **options):
    """Effects (P, N) of the targets `nodes` (P,) by `fit_structural_equations`, among hubs.

    The genes that co-vary most are nodes beside the targets: some are regulators that nobody
    perturbed, and what runs through them is no effect of the targets.
    """
    n_targets = len(nodes)
    degree = S.square().sum(0).index_fill(0, nodes, -1.0)
    hubs = degree.topk(min(hubs, len(S) - n_targets)).indices
    nodes = torch.cat([nodes, hubs])
    knock = F.pad(knock, (0, len(hubs)))
    effects = fit_structural_equations(S, cells, nodes, knock, shift, error, **options)
    return effects[:n_targets]


# ---- Shifts (--shifts), and what is remembered (--target-dropout, --prior) -----------------------
#
# Replaces the encoder, and in `predict` the networks' whole answer by a correction to it. A
# perturbation moves most cells of a type alike. That common shift is learnt per gene, in the units
# in which it adds up: of the level if expressed, and of the log odds of being on. The networks keep
# what differs from cell to cell. Gains 2.05 / 0.72 and 2.01 / 1.28, with what builds on it. The
# prior alone gains -0.03 / 0.00 and 0.03 / 0.00, the dropout -0.03 / 0.00 and 0.01 / 0.02.


def along_first(layer, x):
    """A linear layer along the first axis of x (features, C, N), where features are few.

    Three times as fast as along a last axis.
    """
    product = torch.addmm(layer.bias[:, None], layer.weight, x.flatten(1))
    return product.unflatten(1, x.shape[1:])


class ShiftEncoded(NamedTuple):
    """The condition of each of B cells, with the shifts that all its cells share."""

    cell_type: torch.Tensor  # (B,)
    z: torch.Tensor  # (B, k)
    level: torch.Tensor  # (B, N) shift of the mean level if expressed
    log_odds: torch.Tensor  # (B, N) shift of the log odds of being on
    penalty: torch.Tensor  # (B, 1) what the prior costs


class ShiftEncoder(nn.Module):
    """Encode conditions as shifts of every gene. Runs once per distinct condition of a batch.

    One condition, the knock-down of a gene p in cell type c, from top to bottom (G gene networks:
    the fitted one, and the user's if there is one):

        effects[:, p]          (G, N)     what each network says one unit of p does to every gene
        * knock_down           (G, N)     how far p falls, in its standard deviations
        gain(...)              (2, G, N)  how far to trust that, from the gene's own statistics
        the networks' shift    (2, N)     of the level and of the log odds; so for unseen p too
        z                      (k,)       what is remembered of p, if it was seen in training
        the remembered shift   (2, N)     a linear map of z, so that several targets add up
        level, log_odds        (N,) each  the sum of both shifts

    In training what is remembered gives way, with probability `target_dropout`, to what is known of
    a target that was never seen: a linear map of its structure (drugs), or the memory of an unknown
    target, so that the network must explain the rest. In sampling an unseen gene has no memory,
    which measured better than that of the unknown target, or the mean of those seen. For genes the
    remembered shift has a Cauchy prior: small shifts are likelier chance than effect, and without
    it the sampling noise of few cells would be repeated. A drug's dose acts through a Hill curve.
    """

    def __init__(self, settings, n_genes, n_targets, n_types, networks, structure, dosed):
        super().__init__()
        length = settings.embedding
        self.n_types = n_types
        self.dosed = dosed
        self.prior = 0.0 if dosed else settings.prior
        self.null_pairs = settings.null_pairs
        self.dropout = settings.target_dropout
        self.target = nn.Embedding(n_targets + 1, length)  # the last one: unknown
        self.hill = nn.Linear(length, 2)  # log slope, log10 of the half-way dose
        self.from_structure = nn.Linear(structure, length)
        self.memory = nn.Linear(length, 2 * n_genes, bias=False)
        self.gain = nn.ModuleList([nn.Linear(3 + networks, 8), nn.Linear(8, 2 * networks)])
        nn.init.normal_(self.target.weight, std=0.3)
        nn.init.normal_(self.gain[1].weight, std=0.02)
        nn.init.constant_(self.gain[1].bias, 0.4)
        for parameter in (self.memory.weight, self.hill.weight, self.hill.bias):
            nn.init.zeros_(parameter)
        self.register_buffer("effects", torch.zeros(networks, n_targets, n_genes))
        self.register_buffer("structure", torch.zeros(n_targets, structure))
        self.register_buffer("seen", torch.zeros(n_targets, dtype=torch.bool))
        self.register_buffer("seen_in_type", torch.zeros(n_targets, n_types, dtype=torch.bool))
        self.register_buffer("usual_dose", torch.zeros(()))  # log10
        self.register_buffer("cells", torch.tensor(math.inf))  # of an average training condition

    def reachable(self):
        """Which targets (P,) a gene network or a structure tells something about."""
        return self.effects.any(2).any(0) | self.structure.any(1)

    def forward(self, conditions, model, noise=None):
        """Conditions -> shifts of the level and the log odds (C, N), z (C, k), penalty (C, 1)."""
        effect = self.effect_of_networks(conditions, model)
        if self.training and len(effect) > 1:
            effect = self.without_fitted(effect, noise)
        level, log_odds = self.trusted(effect, conditions.cell_type, model)
        z, told = self.remember(conditions, noise)
        remembered = self.memory(z).unflatten(1, (2, -1)).transpose(0, 1)  # (2, C, N)
        penalty = self.penalty(remembered, model)
        return level + remembered[0], log_odds + remembered[1], told, penalty

    def effect_of_networks(self, conditions, model):
        """What each gene network says the conditions do to every gene: (G, C, N)."""
        present = conditions.target >= 0
        p = conditions.target.clamp_min(0)
        fall = model.knock_down(p, conditions.cell_type[:, None]) * present  # (C, M)
        return (self.effects[:, p] * fall[..., None]).sum(2)

    def without_fitted(self, effect, noise):
        """Hide the fitted network's effects with probability `target_dropout`: (G, C, N).

        It was fitted to the training conditions, so it explains them better than unseen ones.
        Hidden now and then, it leaves room to learn how far the user's network is right.
        """
        u = torch.rand(effect.shape[1], generator=noise.generator, device=effect.device)
        kept = torch.ones_like(effect[:, :, :1])
        kept[0, :, 0] = (u >= self.dropout).to(effect)
        return effect * kept

    def trusted(self, effect, cell_type, model):
        """The networks' effects (G, C, N), each multiplied by a learned gain: (2, C, N).

        A small map computes the gains from the gene's own statistics and the effect itself, the
        same map for all genes, so that they hold for targets that were never seen.
        """
        mean = model.control_mean[cell_type]
        fraction = model.control_fraction[cell_type]
        scale = model.level_scale.expand_as(mean)
        gene = torch.stack([mean, fraction, scale])  # (3, C, N)
        hidden = F.silu(along_first(self.gain[0], torch.cat([gene, effect])))
        gain = along_first(self.gain[1], hidden).unflatten(0, (2, -1))  # (2, G, C, N)
        return (gain * effect).sum(1)

    def remember(self, conditions, noise):
        """What is remembered of the conditions, z (C, k), and what the networks are told of it.

        What they learnt of a gene holds in the types where it was seen. Elsewhere they are told
        z = 0, which null pairs taught them to take for "no perturbation". This rule is for genes,
        where the prior holds the memory; a drug's memory is told everywhere.
        """
        present = conditions.target >= 0
        p = conditions.target.clamp_min(0)  # (C, M)
        known = self.seen[p] & present
        if self.training:
            u = torch.rand(len(p), generator=noise.generator, device=p.device)
            known = known & (u >= self.dropout)[:, None]
        has_structure = self.structure.any(1)[p][..., None]
        unknown = self.target.weight[-1] if self.training else 0.0
        unknown = torch.where(has_structure, self.from_structure(self.structure[p]), unknown)
        z = torch.where(known[..., None], self.target(p), unknown) * present[..., None]
        if self.dosed:
            z = z * self.response_to(conditions.dose, z)
        told = z
        if not self.training and self.prior and self.null_pairs:
            k = conditions.cell_type[:, None]
            seen = (k < self.n_types) & self.seen_in_type[p, k.clamp_max(self.n_types - 1)]
            told = z * (seen | ~known)[..., None]
        return z.sum(1), told.sum(1)

    def response_to(self, dose, z):
        """The Hill curve in the dose (C, M) of targets remembered as z (C, M, k): (C, M, 1)."""
        slope, middle = self.hill(z).unbind(-1)
        log_dose = torch.log10(dose.clamp_min(1e-12)) - self.usual_dose
        return torch.sigmoid(slope.exp() * (log_dose - middle))[..., None]

    def penalty(self, remembered, model):
        """Minus the log of the Cauchy prior of the remembered shifts (2, C, N): (C, 1).

        Per cell of an average condition. Eq. 14 counts a gene's log likelihood 1/N times; Eq. 9
        counts it `weight` (N,) times that.
        """
        if not self.prior:
            return torch.zeros_like(remembered[0, :, :1])
        level = remembered[0] / model.level_scale
        weight = 2 * model.level_scale**2 / model.control_fraction.mean()
        unlikely = torch.log1p((remembered[1] / self.prior) ** 2)
        unlikely = unlikely + weight * torch.log1p((level / self.prior) ** 2)
        return (unlikely.mean(1) / self.cells)[:, None]


class Shifted(Departures):
    """Departures whose networks correct the shift that a condition makes on average.

    A cell type is known by its controls: their mean, their mean level if expressed and the fraction
    of them that expresses each gene, (K, N) each. So a type that only appears in sampling has all
    that is needed (`describe_cell_type`); its label is the mean of the labels that were trained.
    """

    inputs = 1  # numbers that x_theta sees of each gene

    def build(self, structure=1, networks=1):
        """Make the encoder and the networks."""
        n_genes, n_types = len(self.genes), len(self.cell_types)
        settings = self.settings
        position = {gene: i for i, gene in enumerate(self.genes)}
        nodes = torch.tensor([position.get(name, -1) for name in self.targets], dtype=torch.long)
        self.register_buffer("target_gene", nodes)  # -1: not measured
        for name in ("control_mean", "control_level", "control_fraction"):
            self.register_buffer(name, torch.zeros(n_types, n_genes))
        self.register_buffer("gene_scale", torch.ones(n_genes))  # sd within a group
        self.register_buffer("level_scale", torch.ones(n_genes))  # sd of the level if expressed
        dosed = self.kind == "drug"
        self.encoder = ShiftEncoder(
            settings, n_genes, len(self.targets), n_types, networks, structure, dosed
        )
        context = settings.embedding + 8
        self.label = nn.Embedding(n_types, 8)
        self.x_network = Network(self.inputs * n_genes, context, settings.width, n_genes)
        self.d_network = Network(n_genes, context, settings.width, n_genes)

    def describe_cell_type(self, name, mean, level, fraction, cells):
        """Say what the controls of a type are like: (N,) statistics of so many cells."""
        if name not in self.cell_types:
            self.cell_types.append(name)
            for table in ("control_mean", "control_level", "control_fraction"):
                setattr(self, table, F.pad(getattr(self, table), (0, 0, 0, 1)))
        k = self.cell_types.index(name)
        self.control_mean[k] = torch.as_tensor(mean)
        self.control_level[k] = torch.as_tensor(level)
        fraction = torch.as_tensor(fraction)
        self.control_fraction[k] = (fraction * cells + 0.5) / (cells + 1)  # never exactly 0 or 1

    def knock_down(self, target, cell_type):
        """How far targets fall when they are silenced: minus their mean, in sd; -1 if unmeasured.

        target and cell_type are tensors of indices that broadcast against each other.
        """
        gene = self.target_gene[target]
        fall = -self.control_mean[cell_type, gene] / self.gene_scale[gene]
        return torch.where(gene >= 0, fall, -1.0)

    def encode(self, conditions, which, noise=None):
        """Encode the distinct conditions (C of them), then hand each cell its own, which (B,)."""
        level, log_odds, z, penalty = self.encoder(conditions, self, noise)
        # F.embedding, for its backward pass is faster than that of z[which].
        parts = [F.embedding(which, part) for part in (z, level, log_odds, penalty)]
        return ShiftEncoded(conditions.cell_type[which], *parts)

    def labels(self, cell_type):
        """The labels (B, 8) of cell types; of one that only appears in sampling, their mean."""
        trained = len(self.label.weight)
        labels = self.label(cell_type.clamp_max(trained - 1))
        return torch.where((cell_type < trained)[:, None], labels, self.label.weight.mean(0))

    def predict(self, t, x, d, condition):
        """Both ends from x_t and d_t: the shifted controls, corrected for each cell."""
        context = torch.cat([condition.z, self.labels(condition.cell_type)], 1)
        start = self.control_level.index_select(0, condition.cell_type)
        moved = x - start
        learnt = self.x_network(self.state(moved / self.level_scale, d), t, context)
        learnt = learnt * self.level_scale
        endpoint = start + condition.level + self.correction(t, moved, condition.level, learnt)
        log_odds = torch.logit(self.control_fraction).index_select(0, condition.cell_type)
        log_odds = log_odds + condition.log_odds + self.d_network(2 * d - 1, t, context)
        return endpoint, log_odds + self.evidence(t, d, condition.cell_type)

    def state(self, moved, d):
        """What x_theta sees of the cells."""
        return moved

    def correction(self, t, moved, level_shift, learnt):
        """How a cell's end differs from the end of its group's mean: what the network learnt."""
        return learnt

    def evidence(self, t, d, cell_type):
        """What a gene's own state d_t says of its end, in log odds: left to the network."""
        return 0.0

    def loss(self, x0, xT, d0, dT, conditions, which, noise):
        """Eq. 9 and Eq. 14, and the prior's share, to be added to them."""
        condition = self.encode(conditions, which, noise)
        losses = self.bridge_losses(x0, xT, d0, dT, condition, noise)
        return *losses, condition.penalty.mean()


# ---- Skip gate (--skip-gate) ---------------------------------------------------------------------
#
# Replaces `correction` and `evidence`. Between Gaussians the best prediction of the end is linear
# in x_t, gene by gene, and a network with a bottleneck cannot make it. So the exact answer of one
# gene is built in, and the networks learn the rest. Gains 1.12 / 0.47 and 0.17 / 0.11.


class SkipGate(Shifted):
    """Endpoint predictors that begin from the exact answer of a single gene."""

    def build(self, structure=1, networks=1):
        """Make the gate's parameters, per gene, beside the networks."""
        super().build(structure, networks)
        n_genes = len(self.genes)
        self.log_scale = nn.Parameter(torch.zeros(2, n_genes))  # of x_0 and of x_T
        self.correlation = nn.Parameter(torch.full((n_genes,), 0.2))  # theirs, as atanh
        off_on = torch.tensor([[-0.1], [0.3]]).repeat(1, n_genes)
        self.start_given_end = nn.Parameter(off_on)  # log odds of d_0 given d_T

    def gate(self, t):
        """g(t) (B, N), the slope of E[x_T | x_t] on x_t; g(T) = 1.

        For a Brownian bridge between Gaussians of covariance c, by regression:
        g = ((1-t) c + t s_T^2) / ((1-t)^2 s_0^2 + t^2 s_T^2 + 2 t (1-t) (c + sigma^2 / 2)).
        """
        s0, sT = self.log_scale.exp()
        c = torch.tanh(self.correlation) * s0 * sT
        weights = torch.cat([(1 - t) ** 2, 2 * t * (1 - t), t**2], 1)
        variance = weights @ torch.stack([s0**2, c + self.settings.sigma**2 / 2, sT**2])
        return torch.cat([1 - t, t], 1) @ torch.stack([c, sT**2]) / variance

    def correction(self, t, moved, level_shift, learnt):
        """The gate on how far a cell is from the mean path, and what the network learnt.

        Eq. 16 divides by T - t: an error that does not fall with the time left would grow without
        bound. At T the gate alone is right.
        """
        return (1 - t) * learnt + self.gate(t) * (moved - t * level_shift)

    def evidence(self, t, d, cell_type):
        """log P(d_t | d_T = 1) / P(d_t | d_T = 0), (B, N): it grows like -log(1 - t)."""
        kappa = t.clamp_max(1 - 1e-4)
        before = torch.logit(self.control_fraction).index_select(0, cell_type)
        sign = 2 * d - 1
        given_off = torch.sigmoid(sign * (before + self.start_given_end[0]))  # P(d_0 = d_t | d_T)
        given_on = torch.sigmoid(sign * (before + self.start_given_end[1]))
        if_on = kappa * d + (1 - kappa) * given_on
        if_off = kappa * (1 - d) + (1 - kappa) * given_off
        return torch.log(if_on / if_off)


# ---- If-expressed levels (--if-expressed) --------------------------------------------------------
#
# Replaces x_0 and x_T before the bridge, in training and in sampling, and `state`. Where a gene is
# off its level is not 0, it is not observed. With zeros left in, training shows x_t falling to 0 on
# silent genes while sampling, where x_theta answers for expressed ones, shows it rising. Gains
# -0.02 / 0.01 on the simulation, where 40 % of the values are zero, 0.47 / 0.17 on the real pairs,
# 93 %.


class ActiveValues:
    """The non-zero values of each gene in each population, to fill silent genes with draws.

    values[start[p, i] : start[p, i] + count[p, i]] are those of gene i in population p; start and
    count are (populations, N) (`screens.active_values`).
    """

    def __init__(self, start, count, values, device="cpu"):
        start = torch.as_tensor(start, device=device)
        count = torch.as_tensor(count, device=device)
        zero = torch.zeros(1)  # what a gene that no cell expresses is filled with
        self.values = torch.cat([torch.as_tensor(values), zero]).to(device)
        self.start = torch.where(count > 0, start, len(values))
        self.count = count.clamp_min(1).float()

    def fill(self, x, population, noise):
        """x (B, N) with every zero replaced by a draw from the cell's population (B,)."""
        start = self.start.index_select(0, population)
        count = self.count.index_select(0, population)
        nth = (noise.uniform(x) * count).long()  # below count also when rounded: u <= 1 - 2^-24
        return torch.where(x != 0, x, self.values[start + nth])


class IfExpressed(Shifted):
    """Networks that never see the drawn level of a silent gene, only that the gene is off.

    In training these draws know nothing of the cell, and in sampling they would.
    """

    inputs = 2

    def state(self, moved, d):
        """The levels of the genes that are on, and which those are: (B, 2 N)."""
        return torch.cat([moved * d, d], 1)


# ---- Spread times (--spread-times) ---------------------------------------------------------------
#
# Replaces `times`. Uniform times one in each B-th part of [0, T]: the same expectation of the loss,
# and a quieter gradient. Gains 0.00 / 0.00 and 0.04 / 0.03.


class SpreadTimes(Departures):
    """Training times that are spread evenly over a batch."""

    def times(self, x0, noise):
        """A time of the bridges for each pair, (B, 1)."""
        return noise.spread(x0[:, :1])


# ---- Null pairs (--null-pairs) -------------------------------------------------------------------
#
# Adds to the pairs of an epoch. Controls are paired with controls under "no perturbation": this
# trains every cell type's label, and makes that condition the origin of every effect. Gains
# 0.02 / 0.01 and -0.03 / -0.03.


def null_pair_halves(controls):
    """Split shuffled control cells (n,) into starts and ends, so that no cell is on both sides."""
    half = len(controls) // 2
    return controls[:half], controls[half:]


# ---- Cosine decay (--cosine-decay) ---------------------------------------------------------------
#
# Replaces the constant learning rate. Large steps find the shifts soon, small ones at the end
# settle the genes that change little. Gains 0.12 / 0.01 and 0.11 / 0.08.


def cosine_decay(done):
    """The share of the learning rate that is left when a share `done` of training is over."""
    return 0.5 * (1 + math.cos(math.pi * done))


# ---- One bridge alone (--no-discrete), the paper's own ablation (Fig. 6) -------------------------


class OneBridge(Departures):
    """Without the discrete bridge every gene counts as on, so that one bridge carries the zeros."""

    def activation(self, x):
        """All genes are on: no loss is masked and no prediction switched off."""
        return torch.ones_like(x)

    def predict(self, t, x, d, condition):
        """x_theta's answer, and the certainty that every gene is on."""
        endpoint, _ = super().predict(t, x, d, condition)
        return endpoint, torch.full_like(endpoint, 100.0)

    def describe_cell_type(self, name, mean, level, fraction, cells):
        """A level is the mean over all cells, zeros among them, and every cell expresses it."""
        everywhere = torch.ones(len(self.genes))
        super().describe_cell_type(name, mean, mean, everywhere, cells)


# ---- All together --------------------------------------------------------------------------------


def model_class(settings):
    """Departures with the additions that the settings switch on."""
    parts = []
    if not settings.discrete:
        parts.append(OneBridge)
    if settings.spread_times:
        parts.append(SpreadTimes)
    if settings.if_expressed:
        parts.append(IfExpressed)
    if settings.skip_gate:
        parts.append(SkipGate)
    if settings.shifts:
        parts.append(Shifted)
    if not parts:
        return Departures
    return type("ImprovedDepartures", (*parts, Departures), {})
