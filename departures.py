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
from functools import partial
from typing import NamedTuple

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
    if cost == "sqeuclidean":
        return squared
    if cost == "euclidean":
        return squared.sqrt()
    raise ValueError(f"no cost {cost!r}; there are {', '.join(COSTS)}")


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
    import ot  # here, for it takes as long to load as torch

    if method == "exact":
        arrays = [v.double().cpu().numpy() for v in (rows, columns, C)]
        return torch.as_tensor(ot.emd(*arrays, numItermax=10_000_000)).to(C)
    if method != "entropic":
        raise ValueError(f"no plan {method!r}; there are {', '.join(PLANS)}")
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

    sigma: float = setting(0.2, "noise scale of the Brownian bridge", least=1e-9, most=100)
    steps: int = setting(50, "time steps of the sampler", least=1, most=100_000)
    pairing: str = setting("entropic", "kind of transport plan", choices=PLANS)
    cost: str = setting("sqeuclidean", "transport cost", choices=COSTS)
    epsilon: str = setting("0.1max", "Sinkhorn's: share of the mean cost, 'SHAREmax' or 'bridge'")
    plan_cells: int = setting(64, "most cells in one transport plan", least=1, most=10_000)
    grn: str = setting("coexpression", "gene network: coexpression, none or a CSV of edges")
    drug_embedding: str = setting("", "CSV of drug structures; else those in the file")
    embedding: int = setting(64, "length of a perturbation's embedding", least=1, most=16_384)
    width: int = setting(256, "hidden units of both networks", least=1, most=16_384)
    epochs: int = setting(
        0, "passes over the cells; 0: as many as make 1,000 steps", least=0, most=100_000
    )
    batch: int = setting(64, "pairs in a batch", least=1, most=100_000)
    learning_rate: float = setting(1e-3, "of AdamW", least=1e-9, most=1000)
    genes: int = setting(
        5000, "genes to keep: the perturbed ones, then the most variable", most=1_000_000
    )
    test_fraction: float = setting(0.3, "share of conditions to hold out", least=0, most=1)
    seed: int = setting(0, "of everything random", least=0, most=2**31 - 1)


class Network(nn.Module):
    """A residual network of a cell's state, the time and what is known beside: -> (B, outputs).

    The time enters as t and as four waves of it, sine and cosine: 9 numbers. The last layer starts
    at 0, so an untrained network says 0 everywhere: no level, and even odds.
    """

    def __init__(self, n_inputs, n_context, width, n_outputs):
        super().__init__()
        # Multiplied before torch sees them: sample.py makes networks without numbers first.
        frequency = torch.tensor([2 * math.pi * n for n in (0.5, 1.0, 2.0, 4.0)])
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

    def encode(self, conditions, which):
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

        Both networks are shown a random time of both bridges, and scored by what they say of the
        end.

        conditions: the distinct ones (C); which (B,): the row of each pair's own. The two networks
        share the encoder and the labels, and are trained jointly. We take Eq. 9 as a mean over the
        genes that a cell expresses and Eq. 14 as a mean over all; the paper leaves that open.
        """
        condition = self.encode(conditions, which)
        t = noise.uniform(x0[:, :1])
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
    learning_rate: float = setting(2e-3, "of AdamW", least=1e-9, most=1000)
    grn: str = setting("structural", "gene network: structural, coexpression, none or a CSV")
    gene_embedding: str = setting("", "CSV of numbers for each gene, to predict unmeasured targets")
    discrete: bool = setting(
        True, "the bridge of which genes are on; without it one bridge does both"
    )
    shifts: bool = setting(True, "count what a condition shifts on average; learn each cell's own")
    skip_gate: bool = setting(True, "begin from the exact answer of a single gene")
    anchor: bool = setting(True, "keep the sampled means where the expected shift puts them")
    if_expressed: bool = setting(
        True, "bridge the level if expressed: fill silent genes with draws"
    )
    decay: bool = setting(True, "let the learning rate fall evenly to 0")

    def paper(self):
        """Switch every addition off and take the paper's values, in place."""
        for name, value in vars(Settings()).items():
            setattr(self, name, value)
        self.shifts = False
        self.skip_gate = False
        self.anchor = False
        self.if_expressed = False
        self.decay = False
        return self


# ---- Structural gene network (--grn structural) --------------------------------------------------
#
# Replaces `coexpression_network` and `propagate`. Co-variation alone cannot tell a cause from its
# effect; a single knock-down of the upstream gene can. So the network is fitted to both at once.
# Gains 0.27 / 0.41 on simulated genes; the targets of the real pairs are not measured.


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


# ---- Expected shifts (--shifts) ------------------------------------------------------------------
#
# Replaces the encoder, and in `predict` the networks' whole answer by a correction to it. A
# perturbation moves most cells of a type alike. This common shift needs no gradient: it is counted
# in the training conditions, in the units in which effects add up, which are the log odds of being
# on and the mean level if expressed, and carried to conditions that were not measured by a linear
# mixed model (kriging). What a gene network says of a target is its prior mean, believed as far as
# it was right on training targets. The networks keep what differs from cell to cell, and are not
# told the condition: so they learn nothing of it that would not hold elsewhere. Gains 2.29 / 0.65
# and 2.20 / 1.41, with what builds on it.


class Populations(NamedTuple):
    """What was counted in the Q training conditions, the controls of each type among them."""

    conditions: Conditions  # (Q), the controls' without a target
    cells: torch.Tensor  # (Q, 1)
    on: torch.Tensor  # (Q, N) how many of the cells express each gene
    level: torch.Tensor  # (Q, N) their mean level, in the gene's standard deviations


FLAT = 3.0  # sd of what a cell type is like, beyond what its controls show: as good as unknown


def working_response(on, cells, log_odds):
    """Counts as Gaussian observations of log odds near the given ones: values and variances.

    One step of iteratively reweighted least squares, (Q, N) each. It is linear in the counts, so
    rare genes are not biased as the logarithm of a rare count would be.
    """
    p = torch.sigmoid(log_odds)
    information = p * (1 - p)
    return log_odds + (on / cells - p) / information, 1 / (cells * information)


def log_evidence(covariance, y):
    """The Gaussian log density of y (n, Q) under covariances (n, Q, Q), up to a constant."""
    factor = torch.linalg.cholesky(covariance)
    z = torch.linalg.solve_triangular(factor, y[..., None], upper=False)
    return -0.5 * z.square().sum((1, 2)) - factor.diagonal(dim1=1, dim2=2).log().sum(1)


def mixed_covariance(V, same_type, kernels, squared):
    """Covariances (n, Q, Q) of the mixed model: variances V (n, Q), squared amplitudes (n, J)."""
    effects = torch.einsum("nj,jqr->nqr", squared, kernels)
    return FLAT**2 * same_type + effects + torch.diag_embed(V)


def choose_amplitudes(Y, V, same_type, kernels, amplitudes, most=150, progress=iter):
    """How far the effects of the mixed model may go, for each row of Y (n, Q): (n, J), squared.

    Every row has the amplitudes of one of the rows of `amplitudes` (A, J). How likely each is
    depends on the row's own evidence and on how often it fits the others (empirical Bayes), so that
    most genes may stand still and a few move far. The mean over these is returned.
    """
    some = evenly_spread(Y.shape[1], most)
    Y, V = Y[:, some], V[:, some]
    same_type, kernels = same_type[some][:, some], kernels[:, some][:, :, some]
    evidence = []
    for rows in progress(torch.arange(len(Y)).split(rows_at_once(len(some)))):
        of_rows = []
        for a in amplitudes:
            squared = a.square().expand(len(rows), -1)
            C = mixed_covariance(V[rows], same_type, kernels, squared)
            of_rows.append(log_evidence(C, Y[rows]))
        evidence.append(torch.stack(of_rows, 1))
    evidence = torch.cat(evidence)  # (n, A)
    share = torch.full_like(evidence[0], 1 / len(amplitudes))
    for _ in range(100):
        likely = torch.softmax(evidence + share.log(), 1)
        share = likely.mean(0).clamp_min(1e-12)
    return likely @ amplitudes**2


def krige(Y, V, same_type, kernels, squared):
    """Weights (n, Q) of the linear mixed model for Y (n, Q), of error variances V (n, Q).

    y = what the cell type is like (flat) + the sum over j of a random effect of covariance
    squared_j kernels[j] (Q, Q). A condition is predicted to have

        weights @ (FLAT^2 same_type + sum_j squared_j kernels[j]), of it with the Q conditions.
    """
    weights = []
    for rows in torch.arange(len(Y)).split(rows_at_once(Y.shape[1])):
        C = mixed_covariance(V[rows], same_type, kernels, squared[rows])
        solved = torch.cholesky_solve(Y[rows][..., None], torch.linalg.cholesky(C))
        weights.append(solved[..., 0])
    return torch.cat(weights)


def rows_at_once(Q):
    """How many (Q, Q) matrices fit into 160 MB."""
    return max(1, 20_000_000 // Q**2)


def evenly_spread(Q, most=150):
    """The numbers of some of Q conditions, where they are many: time grows like Q^3."""
    return torch.linspace(0, Q - 1, min(Q, most)).round().long()


def fit_gains(X, y, weight, rounds=20):
    """Coefficients (F,) of y (n,) on the columns of X (n, F), by least squares that forgive.

    Errors are Cauchy: a target that did something else than the network says counts little.
    """
    forgive = torch.ones_like(y)
    for _ in range(rounds):
        A = X.T @ (X * (weight * forgive)[:, None])
        ridge = 1e-6 * A.diagonal().mean().clamp_min(1e-12) * torch.eye(len(A)).to(A)
        coefficients = torch.linalg.solve(A + ridge, X.T @ (weight * forgive * y))
        forgive = 1 / (1 + weight * (y - X @ coefficients) ** 2)
    return coefficients


def believed(product, square, fewest=3):
    """How far to believe predictions r of y in T targets: a factor from 0 to 1.

    product, square (T,): the weighted sums of r y and r r of each. The slope of y on r, less what
    leaving out one target after the other (jackknife) says is chance (James-Stein). Of fewer than
    `fewest` targets nothing is believed.
    """
    n = len(product)
    if n < fewest or square.sum() <= 0:
        return product.new_zeros(())
    slope = product.sum() / square.sum()
    without = (product.sum() - product) / (square.sum() - square).clamp_min(1e-12)
    variance = (n - 1) / n * (without - without.mean()).square().sum()
    return (slope * (1 - variance / slope**2).clamp_min(0)).clamp(0, 1)


def slope_that_held(height, moved, target):
    """How `moved` (n,) changes with two heights (n, 2), as far as it held for other targets.

    By least squares. Each target (n,) in turn is predicted by a fit to the others, and the slope is
    believed as far as these predictions were right. Of fewer than 20 targets none is believed.
    """
    if len(target.unique()) < 20:
        return height.new_zeros(2)
    said = torch.zeros_like(moved)
    for t in target.unique():
        other = target != t
        if other.any():
            centre = height[other].mean(0)
            slope = least_squares(height[other] - centre, moved[other] - moved[other].mean())
            said = torch.where(other, said, (height - centre) @ slope)
    rows = (target == target.unique()[:, None]).to(moved)  # (targets, n)
    belief = believed(rows @ (said * (moved - moved.mean())), rows @ said**2)
    return belief * least_squares(height - height.mean(0), moved - moved.mean())


def least_squares(X, y):
    """Coefficients (F,) of y (n,) on the columns of X (n, F), with a ridge of a hundredth of n."""
    ridge = 0.01 * len(X) * torch.eye(X.shape[1]).to(X)
    return torch.linalg.solve(X.T @ X + ridge, X.T @ y)


class ShiftEncoded(NamedTuple):
    """The condition of each of B cells, as the shifts that all its cells share."""

    cell_type: torch.Tensor  # (B,)
    level: torch.Tensor  # (B, N) shift of the mean level if expressed
    log_odds: torch.Tensor  # (B, N) shift of the log odds of being on


class ShiftEncoder(nn.Module):
    """Conditions -> the shifts of every gene that are to be expected. Fitted once, by `fit`.

    One condition, the knock-down of a gene p in cell type c, from top to bottom:

        effects[:, p]       (G, N)     what each network says one unit of p does to every gene
        * knock_down        (G, N)     how far p is moved, in its standard deviations
        * gain, belief      (2, N)     how far that was right on training targets, and no farther
        own                 (2,)       how far training targets' own transcripts moved; p moves so
        prior mean          (2, N)     of the log odds and of the level; so for unseen p too
        + weights @ kernels (2, N)     what the training conditions say beyond their own prior means
        - mean over genes   (2, 1)     only in a cell type that nobody perturbed: the depth, as far
                                       as the types that were perturbed did not foretell it
        + slope * higher    (2, N)     only there, too: genes that start higher move up by less

    The kernels say which training conditions a condition resembles: those of the same target (and
    of a like dose), those in cell types like its own, those in its own type, all of them (what
    perturbations share), and, where structures are known, those of similar targets. Those of
    several targets are sums over them, but for what all share, which counts once.
    """

    def __init__(
        self, n_genes, n_targets, n_types, dosed, structure, networks, conditions, at_once
    ):
        super().__init__()
        self.n_types = n_types
        self.dosed = dosed
        self.fitted = None  # (Q, 2, N), made when training begins
        self.register_buffer("effects", torch.zeros(networks, n_targets, n_genes))
        self.register_buffer("structure", torch.zeros(n_targets, structure))
        self.register_buffer("seen", torch.zeros(n_targets, dtype=torch.bool))
        self.register_buffer("gain", torch.zeros(2, networks, 4))
        self.register_buffer("belief", torch.zeros(2))
        self.register_buffer("largest_effect", torch.zeros(()))  # of a training target
        # How far cell types foretold each other: `fit_new_types`.
        self.register_buffer("depth_belief", torch.zeros(2))
        self.register_buffer("start_slope", torch.zeros(2))
        # How own transcripts move in the direction of their perturbation: on average, with their
        # height in the controls, and how far.
        self.register_buffer("own", torch.zeros(2))
        self.register_buffer("own_height", torch.zeros(2))
        self.register_buffer("own_slope", torch.zeros(2, 2))
        self.register_buffer("own_range", torch.zeros(2, 2))
        self.register_buffer("middle", torch.zeros(6))  # log10 doses
        self.register_buffer("target", torch.full((conditions, at_once), -1))
        self.register_buffer("dose", torch.ones(conditions, at_once))
        self.register_buffer("cell_type", torch.zeros(conditions, dtype=torch.long))
        self.register_buffer("counted", torch.ones(n_types))  # 0: other controls than in the fit
        self.register_buffer("weights", torch.zeros(conditions, 2 * n_genes).double())
        self.register_buffer("squared_amplitudes", torch.zeros(6, 2 * n_genes).double())
        self.register_buffer("variance", torch.ones(conditions, 2 * n_genes).double())  # of errors

    def reachable(self):
        """Which targets (P,) a gene network or a structure tells something about."""
        return self.effects.any(2).any(0) | self.structure.any(1)

    def training_conditions(self):
        """The Q conditions that were fitted."""
        return Conditions(self.target, self.dose, self.cell_type)

    def forward(self, conditions, model):
        """Conditions -> expected shifts (C, 2, N): of the log odds, and of the level in sd."""
        if not self.training:
            return self.expect(conditions, model)
        if self.fitted is None:
            every = self.training_conditions()
            rows = torch.arange(len(self.target)).split(64)
            self.fitted = torch.cat([self.expect(every.take(r), model) for r in rows])
        same = (conditions.target[:, None] == self.target).all(2)
        same = same & (conditions.dose[:, None] == self.dose).all(2)
        same = same & (conditions.cell_type[:, None] == self.cell_type)
        return self.fitted[same.int().argmax(1)]

    def expect(self, conditions, model):
        """The prior mean of the conditions and what the fitted ones add to it: (C, 2, N).

        Raises ValueError for a cell type that was never described.
        """
        told = model.control_log_odds.any(1) | model.control_level.any(1)
        untold = conditions.cell_type[~told[conditions.cell_type]]
        if len(untold):
            name = model.cell_types[untold[0]]
            raise ValueError(
                f"nothing is known of cell type {name!r}; tell the model by `describe_cell_type`"
            )
        same_type, kernels = self.relations(conditions, model)
        # The controls' own chance is corrected by the other conditions, where they are the same.
        same_type = same_type * self.fitted_controls(conditions, model)
        shift = self.carried_over(same_type, kernels) + self.prior_mean(conditions, model)
        shift = self.doubt_depth(shift, conditions, model)
        return shift + self.from_start(conditions, model)

    def carried_over(self, same_type, kernels):
        """What the fitted conditions add to the prior mean of those in `relations`: (C, 2, N)."""
        shift = FLAT**2 * same_type @ self.weights
        for kernel, squared in zip(kernels, self.squared_amplitudes, strict=True):
            shift = shift + squared * (kernel @ self.weights)
        return shift.unflatten(1, (2, -1))

    def fitted_controls(self, conditions, model):
        """1 for conditions that start from controls of the fit, 0 from others: (C, 1)."""
        counted = F.pad(self.counted, (0, len(model.cell_types) - self.n_types))
        return counted[conditions.cell_type][:, None]

    # -- Cell types that nobody perturbed --

    def doubt_depth(self, shift, conditions, model, fitted=None):
        """The shift (C, 2, N), less a part of its mean over genes in types that nobody perturbed.

        A sample's depth moves all genes alike, and of such a type only that of the controls is
        known. So what a treatment does to all genes alike is believed as far as other types
        foretold each other. fitted: all training conditions, if not given.
        """
        new = self.new_types(conditions, fitted)
        doubted = (1 - self.depth_belief) * self.mean_over_genes(shift, conditions, model)
        return torch.where(new, shift - doubted[..., None], shift)

    def from_start(self, conditions, model, fitted=None):
        """What the start of a type that nobody perturbed adds to the shift (C, 2, N).

        Where a gene is higher in its controls than in those of the types that were treated, it
        moves up by less: ends are more alike than starts, partly because a start that stands out
        does so by chance. 0 in types that were seen treated, and for a condition's own transcripts,
        which the prior mean follows.
        """
        fitted = self.training_conditions() if fitted is None else fitted
        moves = self.new_types(conditions, fitted) & (conditions.target >= 0).any(1)[:, None, None]
        moves = moves & ~self.own_genes(conditions, model)[:, None]
        shares = self.same_elsewhere(conditions, fitted)
        perturbed = (fitted.target >= 0).any(1).double()
        everywhere = perturbed / perturbed.sum().clamp_min(1)
        shares = torch.where(shares.any(1)[:, None], shares, everywhere)
        return moves * self.start_slope[:, None] * self.higher(conditions, shares, model, fitted)

    def new_types(self, conditions, fitted=None):
        """Which conditions (C, 1, 1) are of cell types that no fitted condition perturbs."""
        fitted = self.training_conditions() if fitted is None else fitted
        treated = fitted.cell_type[(fitted.target >= 0).any(1)]
        return ~torch.isin(conditions.cell_type, treated)[:, None, None]

    def same_elsewhere(self, conditions, fitted):
        """Shares (C, Q) of the fitted conditions that are the same perturbation in other types.

        They sum to 1, or to 0 where there is none. Either may have room for more targets.
        """
        at_once = max(conditions.target.shape[1], fitted.target.shape[1])

        def wide(conditions):
            room = (0, at_once - conditions.target.shape[1])
            return F.pad(conditions.target, room, value=-1), F.pad(conditions.dose, room, value=1.0)

        (mine, my_dose), (theirs, their_dose) = wide(conditions), wide(fitted)
        same = (mine[:, None] == theirs).all(2) & (theirs >= 0).any(1)
        same = same & (my_dose[:, None] == their_dose).all(2)
        same = same & (conditions.cell_type[:, None] != fitted.cell_type)
        return same / same.sum(1, keepdim=True).clamp_min(1).double()

    def higher(self, conditions, shares, model, fitted):
        """How much higher (C, 2, N) genes start than in fitted conditions, by their shares (C, Q).

        Beyond what all genes have in common; at most 2 (log odds, sd), for markers of cell types.
        """
        start = model.start().double()
        of_types = shares @ F.one_hot(fitted.cell_type, len(start)).double()  # (C, K)
        higher = start[conditions.cell_type] - torch.einsum("ck,ksn->csn", of_types, start)
        higher = higher.clamp(-2, 2)
        return higher - self.mean_over_genes(higher, conditions, model)[..., None]

    def mean_over_genes(self, shift, conditions, model):
        """The mean (C, 2) of shifts (C, 2, N); genes count as much as they tell."""
        weight = self.information(conditions, model)
        return (weight * shift).sum(2) / weight.sum(2)

    def information(self, conditions, model):
        """How much a control cell tells of each gene's log odds and level: (C, 2, N)."""
        fraction = torch.sigmoid(model.control_log_odds[conditions.cell_type])
        return torch.stack([fraction * (1 - fraction), fraction], 1)

    # -- What the networks say --

    def prior_mean(self, conditions, model):
        """What is expected of conditions before any of the like was seen: (C, 2, N)."""
        shift = self.networks_say(conditions, model)
        size = shift.square().mean(2).sum(1).sqrt()[:, None, None]
        within = (self.largest_effect / size.clamp_min(1e-12)).clamp_max(1)
        shift = shift * self.belief[:, None] * within
        height = model.start()[conditions.cell_type] - self.own_height[:, None]
        own_shift = self.own[:, None] + torch.einsum("sh,chn->csn", self.own_slope, height)
        least, largest = self.own_range[..., None].unbind(1)
        own = self.own_genes(conditions, model)[:, None]
        direction = model.direction[conditions.cell_type][:, None, None]
        return torch.where(own, direction * own_shift.clamp(least, largest), shift)

    def networks_say(self, conditions, model):
        """The networks' effects, each multiplied by its gain, (C, 2, N); 0 on own transcripts."""
        columns = self.columns(conditions, model)  # (G, 4, C, N)
        shift = torch.einsum("sgf,gfcn->csn", self.gain, columns)
        return shift * ~self.own_genes(conditions, model)[:, None]

    def columns(self, conditions, model):
        """The effects (G, C, N) times 1 and three statistics of the gene: (G, 4, C, N)."""
        present = conditions.target >= 0
        p = conditions.target.clamp_min(0)
        moved = model.knock_down(p, conditions.cell_type[:, None]) * present  # (C, M)
        effect = (self.effects[:, p] * moved[..., None]).sum(2)
        mean = model.control_mean[conditions.cell_type]
        fraction = torch.sigmoid(model.control_log_odds[conditions.cell_type])
        scale = model.level_scale.expand_as(mean)
        features = torch.stack([torch.ones_like(mean), mean, fraction, scale])
        return effect[:, None] * features

    def own_genes(self, conditions, model):
        """Which genes are targets of the conditions themselves: (C, N)."""
        gene = torch.where(conditions.target >= 0, model.target_gene[conditions.target], -1)
        own = F.one_hot(gene + 1, model.control_mean.shape[1] + 1).any(1)
        return own[:, 1:]

    # -- Which conditions are alike --

    def response(self, dose):
        """Doses (..., M) -> six saturating curves (..., M, 6), of length 1 at the largest dose."""
        log_dose = torch.log10(dose.clamp_min(1e-12))[..., None]
        curves = torch.sigmoid(2.3 * (log_dose - self.middle))
        largest = torch.sigmoid(2.3 * (self.middle[-1] - self.middle))
        return curves / largest.norm()

    def relations(self, conditions, model, others=None):
        """How C conditions resemble Q others: same type (C, Q), kernels (6, C, Q).

        others: the fitted conditions, if not given.
        """
        others = self.training_conditions() if others is None else others
        mine, theirs = conditions.target[:, None, :, None], others.target[None, :, None, :]
        both = (mine >= 0) & (theirs >= 0)  # (C, Q, M, M)
        if self.dosed:
            both = both * torch.einsum(
                "cmj,qnj->cqmn", self.response(conditions.dose), self.response(others.dose)
            )
        same_type = (conditions.cell_type[:, None] == others.cell_type).double()
        same_target = (both * (mine == theirs)).sum((2, 3)).double()
        unit = F.normalize(self.structure[:, :-1], dim=1)  # the last number is 1 for all
        alike = (unit @ unit.T)[mine.clamp_min(0), theirs.clamp_min(0)]
        structure = (both * alike).sum((2, 3)).double()
        # What activating a target does, knocking it down undoes: -1 where one does this, one that.
        direction = model.direction.double()
        agreement = direction[conditions.cell_type][:, None] * direction[others.cell_type]
        same_target = agreement * same_target
        structure = agreement * structure
        like = self.likeness(model)[conditions.cell_type][:, others.cell_type]
        shared = both.double().sum((2, 3)) / ((mine >= 0) & (theirs >= 0)).sum((2, 3)).clamp_min(1)
        kernels = [
            same_target, like * same_target, same_type * same_target, (1 + same_type) * shared,
            structure, same_type * structure,
        ]  # fmt: skip
        return same_type, torch.stack(kernels)

    def likeness(self, model):
        """How like the controls of cell types are, (K, K): 1 for the same, e^-1/2 on average."""
        profile = model.control_log_odds.double()
        profile = profile - profile.mean(1, keepdim=True)
        distance = torch.cdist(profile, profile).square()
        between = distance[: self.n_types, : self.n_types]
        usual = between.sum() / (between > 0).sum().clamp_min(1)
        return torch.exp(-0.5 * distance / usual.clamp_min(1e-9))

    def amplitudes(self):
        """The amplitudes that a gene may have, (A, 6): one for each kernel."""
        treated = (self.target >= 0).any(1)
        types = len(self.cell_type[treated].unique())
        targets = len(self.target[self.target >= 0].unique())
        none = [0.0]
        same = [0, 0.1, 0.2, 0.4, 0.8, 1.6]
        like = [0, 1.0, 4.0] if types > 2 else none
        in_type = [0, 0.1, 0.2, 0.4, 0.8, 1.6] if types > 1 else none
        shared = [0.1, 0.3, 1.0]
        structure = none
        if targets < 5:  # a variance of so few is not known: take their effects as they are
            same = [1.0, 4.0]
            shared = none
        if self.structure.any():  # fewer of each, for there are more of them to combine
            same = [0, 0.4]
            like = none
            in_type = [0, 0.4] if types > 1 else none
            shared = [0.3]
            structure = [0, 0.3, 1.0]
        structure_in_type = structure if types > 1 else none
        grids = [same, like, in_type, shared, structure, structure_in_type]
        return torch.cartesian_prod(*[torch.tensor(grid).double() for grid in grids])

    # -- The fit --

    @torch.no_grad()
    def fit(self, populations, model, progress=iter):
        """Learn from what was counted in the training conditions."""
        conditions, cells, on, level = populations
        self.fitted = None
        self.target.copy_(conditions.target)
        self.dose.copy_(conditions.dose)
        self.cell_type.copy_(conditions.cell_type)
        if self.dosed:
            log_dose = torch.log10(self.dose[self.target >= 0].clamp_min(1e-12))
            least, largest = log_dose.min().item() - 0.5, log_dose.max().item()
            self.middle.copy_(torch.linspace(least, largest, 6))
        start = model.start()[self.cell_type].double()  # (Q, 2, N)
        cells, on, level = cells.double(), on.double(), level.double()
        usual = (on.sum(0) + 0.5) / (cells.sum() + 1)
        near = torch.logit((on + 2 * usual) / (cells + 2)).clamp(-7, 7)
        log_odds_moved = near - start[:, 0]
        level_moved = torch.where(on > 0, level - start[:, 1], 0)
        direction = model.direction[self.cell_type].double()[:, None]
        self.fit_own_transcripts(direction * log_odds_moved, direction * level_moved, on, model)
        self.fit_networks(log_odds_moved, level_moved, cells, on, model)
        self.fit_new_types(torch.stack([log_odds_moved, level_moved], 1), model)
        prior = self.prior_mean(conditions, model).double()
        same_type, kernels = self.relations(conditions, model)
        expected = start + prior
        amplitudes = self.amplitudes().to(kernels)
        choose = partial(choose_amplitudes, progress=progress)
        # Log odds, by two rounds of iteratively reweighted least squares.
        log_odds, variance = working_response(on, cells, near)
        y = (log_odds - expected[:, 0]).T
        squared = choose(y, variance.T, same_type, kernels, amplitudes)
        for _ in range(2):
            log_odds, variance = working_response(on, cells, near)
            y = (log_odds - expected[:, 0]).T
            weights = krige(y, variance.T, same_type, kernels, squared)
            moved = FLAT**2 * weights @ same_type
            moved = moved + torch.einsum("nj,nq,jqr->nr", squared, weights, kernels)
            near = (expected[:, 0] + moved.T).clamp(-7, 7)
        variance_of_log_odds = variance
        # Levels. Where no cell expresses a gene nothing is known of its level.
        y = torch.where(on > 0, level - expected[:, 1], 0).T
        variance = torch.where(on > 0, 1 / on.clamp_min(1), 1e4).T
        squared_of_levels = choose(y, variance, same_type, kernels, amplitudes)
        weights_of_levels = krige(y, variance, same_type, kernels, squared_of_levels)
        self.weights.copy_(torch.cat([weights, weights_of_levels]).T)
        self.squared_amplitudes.copy_(torch.cat([squared, squared_of_levels]).T)
        self.variance.copy_(torch.cat([variance_of_log_odds, variance.T], 1))

    def fit_own_transcripts(self, log_odds, level, on, model):
        """How far the transcripts of single targets moved: on average, and with their height.

        log_odds, level (Q, N): the shifts that were measured, times the conditions' directions; on
        (Q, N): in how many cells.
        """
        single = (self.target >= 0).sum(1) == 1
        alone = single[:, None] & self.own_genes(self.training_conditions(), model)
        if not alone.any():
            return
        expressed = alone & (on > 0)
        mean_level = (level * expressed).sum() / expressed.sum().clamp_min(1)
        self.own.copy_(torch.stack([log_odds[alone].mean(), mean_level]))
        height = model.start()[self.cell_type].double().movedim(1, 2)  # (Q, N, 2)
        self.own_height.copy_(height[alone].mean(0))
        self.follow_height(0, log_odds, height, alone)
        if expressed.any():
            self.follow_height(1, level, height, expressed)

    def follow_height(self, kind, moved, height, where):
        """Own transcripts' slope on their height, and their range, from the entries `where` (Q, N).

        kind: 0 for the log odds, 1 for the level; moved (Q, N), height (Q, N, 2).
        """
        gene = where.nonzero()[:, 1]
        moved = moved[where]
        self.own_slope[kind].copy_(slope_that_held(height[where], moved, gene))
        self.own_range[kind].copy_(torch.stack([moved.min(), moved.max()]))

    def fit_networks(self, log_odds, level, cells, on, model):
        """How far the networks were right of training targets, and how large their effects are.

        log_odds, level (Q, N): the shifts that were measured, in `cells` cells (Q, 1) of which `on`
        (Q, N) express each gene.
        """
        conditions = self.training_conditions()
        present = conditions.target >= 0
        in_network = self.effects.any(2).any(0)
        known = ~present | in_network[conditions.target.clamp_min(0)]
        rows = present.any(1) & known.all(1)
        if not (rows.any() and self.effects.any()):
            return
        same_type = self.cell_type[:, None] == self.cell_type
        control = (same_type & ~present.any(1)).int().argmax(1)  # row of each condition's controls
        p = torch.sigmoid(model.control_log_odds[self.cell_type].double())
        noise = [1 / (cells * p * (1 - p)), 1 / on.clamp_min(0.1)]
        _, which = torch.unique(conditions.target[rows], dim=0, return_inverse=True)
        X = self.columns(conditions.take(rows), model).flatten(0, 1).double()  # (4 G, C, N)
        others = ~self.own_genes(conditions, model)[rows]
        for kind, y, variance in (0, log_odds, noise[0]), (1, level, noise[1]):
            weight = 1 / (variance + variance[control] + 0.05)[rows]
            y = y[rows]
            gain = fit_gains(X[:, others].T, y[others], weight[others])
            self.gain[kind].copy_(gain.unflatten(0, (-1, 4)))
            said = torch.einsum("f,fcn->cn", gain, X) * others
            product = (weight * said * y).sum(1)
            square = (weight * said * said).sum(1)
            targets = torch.zeros(2, which.max() + 1).to(product)
            targets = targets.index_add(1, which, torch.stack([product, square]))
            self.belief[kind].copy_(believed(*targets))
        said = self.networks_say(conditions.take(rows), model)
        self.largest_effect.copy_(said.square().mean(2).sum(1).sqrt().max())

    def fit_new_types(self, moved, model):
        """How far cell types foretell each other, from what moved in training (Q, 2, N).

        Each type in turn plays the one that nobody perturbed, and what it does is foretold from the
        same perturbations in the others. Depth: its mean over genes is theirs. Start: genes differ
        from theirs by a slope on how much higher they start. Both are believed as far as this held;
        the slope of three types at least, for two are each other's mirror.
        """
        self.depth_belief.zero_()
        self.start_slope.zero_()
        every = self.training_conditions()
        told = self.same_elsewhere(every, every).any(1).nonzero()[:, 0]
        if not len(told):
            return
        told = told[evenly_spread(len(told))]
        asked = every.take(told)
        shares = self.same_elsewhere(asked, every)
        direction = model.direction[self.cell_type].double()[:, None, None]
        said = direction[told] * torch.einsum("cq,qsn->csn", shares, direction * moved)
        of_type = F.one_hot(asked.cell_type, self.n_types).double()
        of_type = of_type.T[of_type.any(0)]  # (types, C)

        def held(x, y):
            """The sums (types, 2) of x y and x x over conditions and genes (C, 2, any)."""
            return of_type @ (x * y).sum(2), of_type @ (x * x).sum(2)

        means = [self.mean_over_genes(m, asked, model)[..., None] for m in (said, moved[told])]
        depth_product, depth_square = held(*means)
        root = self.information(asked, model).sqrt() * ~self.own_genes(asked, model)[:, None]
        higher = self.higher(asked, shares, model, every)
        xy, xx = held(root * higher, root * (moved[told] - said))
        slope = (xy.sum(0) - xy) / (xx.sum(0) - xx).clamp_min(1e-12)  # by other types' rows
        start_product, start_square = slope * xy, slope**2 * xx
        self.start_slope.copy_(xy.sum(0) / xx.sum(0).clamp_min(1e-12))
        for kind in 0, 1:
            depth = depth_product[:, kind], depth_square[:, kind]
            self.depth_belief[kind] = believed(*depth, fewest=2)
            start = start_product[:, kind], start_square[:, kind]
            self.start_slope[kind] *= believed(*start)


class Shifted(Departures):
    """Departures whose networks correct the shift that a condition makes on average.

    A cell type is known by its controls, (K, N) each: their mean, and the log odds of being on, the
    mean level if expressed and its standard deviation. So a type that only appears in sampling has
    all that is needed (`describe_cell_type`).
    """

    inputs = 1  # numbers that x_theta sees of each gene

    def build(self, structure=1, networks=1, conditions=1, at_once=1):
        """Make the encoder and the networks."""
        n_genes, n_types = len(self.genes), len(self.cell_types)
        position = {gene: i for i, gene in enumerate(self.genes)}
        nodes = torch.tensor([position.get(name, -1) for name in self.targets], dtype=torch.long)
        self.register_buffer("target_gene", nodes)  # -1: not measured
        for name in ("control_mean", "control_level", "control_log_odds"):
            self.register_buffer(name, torch.zeros(n_types, n_genes))
        self.register_buffer("control_scale", torch.ones(n_types, n_genes))
        self.register_buffer("gene_scale", torch.ones(n_genes))  # sd within a group
        self.register_buffer("level_scale", torch.ones(n_genes))  # sd of the level if expressed
        self.register_buffer("usual_fraction", torch.full((n_genes,), 0.5))  # of all training cells
        down = torch.full((n_types,), -1.0)  # targets are knocked down; 1: activated
        self.register_buffer("direction", down)
        self.encoder = ShiftEncoder(
            n_genes, len(self.targets), n_types, self.kind == "drug",
            structure, networks, conditions, at_once,
        )  # fmt: skip
        self.x_network = Network(self.inputs * n_genes, 0, self.settings.width, n_genes)
        self.d_network = Network(n_genes, 0, self.settings.width, n_genes)

    def describe_cell_type(self, name, mean, level, fraction, variance, cells):
        """Say what the controls of a type are like: (N,) statistics of so many cells."""
        if name not in self.cell_types:
            self.cell_types.append(name)
            for table in ("control_mean", "control_level", "control_log_odds", "control_scale"):
                setattr(self, table, F.pad(getattr(self, table), (0, 0, 0, 1)))
            of_most_types = 1.0 if self.direction.sum() > 0 else -1.0
            self.direction = F.pad(self.direction, (0, 1), value=of_most_types)
        k = self.cell_types.index(name)
        mean, level, fraction, variance = (
            torch.as_tensor(a).to(self.level_scale) for a in (mean, level, fraction, variance)
        )
        self.control_mean[k] = mean
        self.control_level[k] = level
        # As if one more cell were like all cells of the screen: never exactly 0 or 1.
        on = fraction * cells
        fraction = (on + self.usual_fraction) / (cells + 1)
        self.control_log_odds[k] = torch.logit(fraction).clamp(-7, 7)
        # As if ten more cells varied as the gene does elsewhere, in this type's proportion.
        usual = self.level_scale**2
        proportion = (variance * on).sum() / (usual * on).sum().clamp_min(1e-12)
        variance = (variance * on + 10 * proportion * usual) / (on + 10)
        self.control_scale[k] = variance.sqrt().clamp_min(0.05)

    def start(self):
        """The log odds of being on and the level, in sd, of every type's controls: (K, 2, N)."""
        return torch.stack([self.control_log_odds, self.control_level / self.level_scale], 1)

    def knock_down(self, target, cell_type):
        """How far targets move when they are perturbed, in sd; as far as -1 if unmeasured.

        A gene falls by its mean; in a type whose genes are activated (`direction`) it rises so far.
        target and cell_type are tensors of indices that broadcast against each other.
        """
        gene = self.target_gene[target]
        height = self.control_mean[cell_type, gene] / self.gene_scale[gene]
        return self.direction[cell_type] * torch.where(gene >= 0, height, 1.0)

    def encode(self, conditions, which):
        """Encode the distinct conditions (C of them), then hand each cell its own, which (B,)."""
        log_odds, level = self.encoder(conditions, self).to(self.level_scale).unbind(1)
        level = level * self.level_scale
        return ShiftEncoded(conditions.cell_type[which], level[which], log_odds[which])

    def expected_end(self, condition):
        """The mean level if expressed and the log odds of being on at the end: (B, N) each."""
        k = condition.cell_type
        level = self.control_level.index_select(0, k) + condition.level
        return level, self.control_log_odds.index_select(0, k) + condition.log_odds

    def predict(self, t, x, d, condition):
        """Both ends from x_t and d_t: the shifted controls, corrected for each cell.

        The networks see how a cell differs from the mean of its group at time t, in standard
        deviations: of the levels, (1 - t) that of the controls + t that of the end; of which genes
        are on, the share by Eq. 11. So they learn what holds for cells of any type and condition.
        """
        level, log_odds = self.expected_end(condition)
        scale = self.control_scale.index_select(0, condition.cell_type)
        level_away = (x - level + (1 - t) * condition.level) / scale
        before = self.control_log_odds.index_select(0, condition.cell_type)
        share = (1 - t) * torch.sigmoid(before) + t * torch.sigmoid(log_odds)
        on_away = (d - share) / torch.sqrt(share * (1 - share) + 0.02)
        no_context = x[:, :0]
        learnt = self.x_network(self.state(level_away, on_away, d), t, no_context)
        endpoint = level + scale * self.correction(t, level_away, learnt, scale)
        log_odds = log_odds + self.d_network(on_away, t, no_context)
        return endpoint, log_odds + self.evidence(t, d, before)

    def state(self, level_away, on_away, d):
        """What x_theta sees of the cells."""
        return level_away

    def correction(self, t, level_away, learnt, scale):
        """How a cell's end differs from the end of its group's mean: what the network learnt."""
        return learnt

    def evidence(self, t, d, before):
        """What a gene's own state d_t says of its end, in log odds: left to the network."""
        return 0.0


# ---- Skip gate (--skip-gate) ---------------------------------------------------------------------
#
# Replaces `correction` and `evidence`. Between Gaussians the best prediction of the end is linear
# in x_t, gene by gene, and a network with a bottleneck cannot make it. So the exact answer of one
# gene is built in, and the networks learn the rest. Gains 0.11 / 0.04 and -0.01 / -0.03; in
# a held-out cell type 0.46 / 0.07.


class SkipGate(Shifted):
    """Endpoint predictors that begin from the exact answer of a single gene.

    Levels are counted in standard deviations of the cell type's controls.
    """

    def build(self, **sizes):
        """Make the gate's parameters, per gene, beside the networks."""
        super().build(**sizes)
        n_genes = len(self.genes)
        self.log_scale = nn.Parameter(torch.zeros(2, n_genes))  # of x_0 and of x_T
        self.correlation = nn.Parameter(torch.full((n_genes,), 0.2))  # theirs, as atanh
        # As a list: `repeat` without numbers (sample.py) makes torch load SymPy.
        off_on = torch.tensor([[-0.1] * n_genes, [0.3] * n_genes])
        self.start_given_end = nn.Parameter(off_on)  # log odds of d_0 given d_T

    def gate(self, t, scale):
        """g(t) (B, N), the slope of E[x_T | x_t] on x_t; g(T) = 1. scale: one unit (B, N).

        For a Brownian bridge between Gaussians of covariance c, by regression:
        g = ((1-t) c + t s_T^2) / ((1-t)^2 s_0^2 + t^2 s_T^2 + 2 t (1-t) c + t (1-t) sigma^2).
        """
        s0, sT = self.log_scale.exp()
        c = torch.tanh(self.correlation) * s0 * sT
        weights = torch.cat([(1 - t) ** 2, 2 * t * (1 - t), t**2], 1)
        variance = weights @ torch.stack([s0**2, c, sT**2])
        variance = variance + t * (1 - t) * (self.settings.sigma / scale) ** 2
        return torch.cat([1 - t, t], 1) @ torch.stack([c, sT**2]) / variance

    def correction(self, t, level_away, learnt, scale):
        """The gate on how far a cell is from the mean path, and what the network learnt.

        Eq. 16 divides by T - t: an error that does not fall with the time left would grow without
        bound. At T the gate alone is right.
        """
        return (1 - t) * learnt + self.gate(t, scale) * level_away

    def evidence(self, t, d, before):
        """log P(d_t | d_T = 1) / P(d_t | d_T = 0), (B, N): it grows like -log(1 - t).

        before (B, N): the log odds of being on in the controls.
        """
        kappa = t.clamp_max(1 - 1e-4)
        sign = 2 * d - 1
        given_off = torch.sigmoid(sign * (before + self.start_given_end[0]))  # P(d_0 = d_t | d_T)
        given_on = torch.sigmoid(sign * (before + self.start_given_end[1]))
        if_on = kappa * d + (1 - kappa) * given_on
        if_off = kappa * (1 - d) + (1 - kappa) * given_off
        return torch.log(if_on / if_off)


# ---- Anchor (--anchor) ---------------------------------------------------------------------------
#
# Adds to `predict`, in sampling. Averaged over the cells of a condition, what is predicted of the
# end is the same at every time: the mean of the end (tower property). That mean is known, for it is
# the expected shift. So the networks may say how cells differ, and their mean is put where it has
# to be; what they learnt too well of some cell type cannot carry another one away. Gains
# 0.33 / 0.06 and 0.08 / 0.04; in a held-out cell type 0.60 / 0.10.


class Anchored(Shifted):
    """Sampling whose predictions, averaged over the cells, are the expected ends."""

    def predict(self, t, x, d, condition):
        """Both ends; in sampling, x and d (B, N) are enough cells to stand for the condition."""
        endpoint, log_odds = super().predict(t, x, d, condition)
        if self.training:
            return endpoint, log_odds
        level, wanted = self.expected_end(condition)
        fraction = torch.sigmoid(wanted[0])
        offset = torch.zeros_like(fraction)
        # Newton's method. An offset beyond 2 would follow the chance of few cells.
        for _ in range(4):
            p = torch.sigmoid(log_odds + offset)
            slope = (p * (1 - p)).mean(0) + 1e-3
            offset = (offset + (fraction - p.mean(0)) / slope).clamp(-2, 2)
        log_odds = log_odds + offset
        p = torch.sigmoid(log_odds)
        mean = (p * endpoint).sum(0) / p.sum(0).clamp_min(1e-6)  # of the cells that will be on
        return endpoint + level[0] - mean, log_odds


# ---- If-expressed levels (--if-expressed) --------------------------------------------------------
#
# Replaces x_0 and x_T before the bridge, in training and in sampling, and `state`. Where a gene is
# off its level is not 0, it is not observed. With zeros left in, training shows x_t falling to 0 on
# silent genes while sampling, where x_theta answers for expressed ones, shows it rising. Gains
# 0.01 / 0.01 on the simulated genes, 0.01 / 0.00 on the real pairs, 0.03 / 0.01 on TAP-seq:
# since there is an anchor, it puts the means right that zeros among the levels would spoil.


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
        drawn = self.values.index_select(0, (start + nth).flatten()).view_as(x)
        return x + (x == 0) * drawn  # faster than values[...] and torch.where


class IfExpressed(Shifted):
    """Networks that never see the drawn level of a silent gene, only that the gene is off.

    In training these draws know nothing of the cell, and in sampling they would.
    """

    inputs = 2

    def state(self, level_away, on_away, d):
        """The levels of the genes that are on, and which those are: (B, 2 N)."""
        return torch.cat([level_away * d, on_away], 1)


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

    def describe_cell_type(self, name, mean, level, fraction, variance, cells):
        """A level is the mean over all cells, zeros among them, and every cell expresses it."""
        everywhere = torch.ones(len(self.genes))
        super().describe_cell_type(name, mean, mean, everywhere, variance, cells)


# ---- How far to trust a prediction (part of --shifts) --------------------------------------------
#
# Replaces nothing, and changes no prediction. The mixed model of the expected shifts is Gaussian.
# So three things follow in closed form: what it would have said of training conditions that were
# held out (`expect_without`), how sure it is (`uncertainty`), and what a prediction is made of.
# The errors of the first show what error to expect of other conditions (train.py, `leave_out`;
# report/trust.py). Gains: over 90 held-out conditions of five screens, expected and actual errors
# have a rank correlation of 0.67; within one screen, of 0.47 at most.


def krige_without(Y, V, same_type, kernels, squared, groups):
    """What `krige` would say of some conditions, had they not been among the Q: means, variances.

    groups: tensors (asked,), the numbers of conditions that are left out together; for each, two
    (n, asked). Without another fit: where A is the inverse of the covariance of all Q, the mean of
    the conditions I given all others is y_I - (A_II)^-1 (A y)_I, and their covariance (A_II)^-1
    (for one of them, Rasmussen and Williams 2006, Eq. 5.12). That is of measurements; less their
    error variances V it is of what is measured.
    """
    answers = [[] for _ in groups]
    for rows in torch.arange(len(Y)).split(rows_at_once(Y.shape[1])):
        C = mixed_covariance(V[rows], same_type, kernels, squared[rows])
        A = torch.cholesky_inverse(torch.linalg.cholesky(C))
        weights = (A @ Y[rows][..., None])[..., 0]
        for out, answer in zip(groups, answers, strict=True):
            covariance = torch.linalg.inv(A[:, out[:, None], out])
            surprise = (covariance @ weights[:, out, None])[..., 0]
            variance = covariance.diagonal(dim1=1, dim2=2) - V[rows][:, out]
            answer.append(torch.stack([Y[rows][:, out] - surprise, variance]))
    return [torch.cat(answer, 1).unbind(0) for answer in answers]


def some_conditions(encoder):
    """The numbers of the fitted conditions that stand for all; all controls are among them."""
    controls = (encoder.target < 0).all(1).nonzero()[:, 0]
    return torch.cat([evenly_spread(len(encoder.target)).to(controls), controls]).unique()


@torch.no_grad()
def expect_without(model, groups):
    """What would be expected of fitted conditions, had they been held out: shifts, variances.

    groups: tensors (asked,), the numbers of conditions of `some_conditions` that are left out
    together; for each, two (asked, 2, N). The amplitudes and what is believed of the networks and
    of new types stay as they were fitted to all.
    """
    encoder = model.encoder
    some = some_conditions(encoder)
    conditions = encoder.training_conditions().take(some)
    V = encoder.variance[some]
    y = encoder.carried_over(*encoder.relations(conditions, model)).flatten(1)
    y = y + V * encoder.weights[some]  # as `fit` had it
    places = [torch.searchsorted(some, group) for group in groups]
    relations = encoder.relations(conditions, model, conditions)
    said = krige_without(y.T, V.T, *relations, encoder.squared_amplitudes.T, places)
    answers = []
    for place, (shift, variance) in zip(places, said, strict=True):
        asked = conditions.take(place)
        shift = shift.T.unflatten(1, (2, -1)) + encoder.prior_mean(asked, model)
        others = torch.ones_like(some, dtype=torch.bool).index_fill(0, place, False)
        others = conditions.take(others)
        shift = encoder.doubt_depth(shift, asked, model, others)
        shift = shift + encoder.from_start(asked, model, others)
        answers.append((shift, variance.T.unflatten(1, (2, -1))))
    return answers


@torch.no_grad()
def uncertainty(model, conditions):
    """The variances (C, 2, N) of the expected shifts, given what was measured."""
    encoder = model.encoder
    some = some_conditions(encoder)
    fitted = encoder.training_conditions().take(some)
    relations = encoder.relations(fitted, model, fitted)
    of_type, across = encoder.relations(conditions, model, fitted)
    counted = encoder.fitted_controls(conditions, model).double()
    _, of_itself = encoder.relations(conditions, model, conditions)
    of_itself = of_itself.diagonal(dim1=1, dim2=2)  # (6, C)
    variances = []
    for rows in torch.arange(encoder.variance.shape[1]).split(rows_at_once(len(some))):
        squared = encoder.squared_amplitudes.T[rows]
        C = mixed_covariance(encoder.variance[some].T[rows], *relations, squared)
        c = FLAT**2 * counted * of_type + torch.einsum("nj,jcq->ncq", squared, across)
        L = torch.linalg.cholesky(C)
        known = torch.linalg.solve_triangular(L, c.mT, upper=False).square().sum(1)
        variances.append(FLAT**2 * counted[:, 0] + squared @ of_itself - known)
    return torch.cat(variances).clamp_min(0).T.unflatten(1, (2, -1))


@torch.no_grad()
def parts(model, conditions):
    """What the expected shifts are made of, {name: (C, 2, N)}; their sum is `expect`'s.

    report/trust.py says what the names stand for.
    """
    encoder = model.encoder
    same_type, kernels = encoder.relations(conditions, model)
    same_target = (kernels[0] != 0).to(same_type)
    nothing = torch.zeros_like(same_type)

    def said(numbers, where, flat=nothing):
        """By the kernels of these numbers, where (C, Q) two conditions are so related."""
        chosen = torch.zeros_like(kernels)
        chosen[numbers] = kernels[numbers] * where
        return encoder.carried_over(flat, chosen)

    own = encoder.own_genes(conditions, model)[:, None]
    prior = encoder.prior_mean(conditions, model)
    flat = same_type * encoder.fitted_controls(conditions, model)
    # Kernels 0 to 2 are of the same target, 3 of all perturbations, 4 and 5 of like structures.
    made_of = {
        "memory": said([0, 1, 2, 4, 5], same_type * same_target),
        "likeness": said([0, 1, 4], (1 - same_type) * same_target),
        "own": prior * own,
        "network": prior * ~own,
        "features": said([4, 5], 1 - same_target),
        "shared": said([3], 1.0, flat),
    }
    made_of = {name: encoder.doubt_depth(part, conditions, model) for name, part in made_of.items()}
    made_of["likeness"] = made_of["likeness"] + encoder.from_start(conditions, model)
    return made_of


def moments(model, log_odds, level):
    """The mean and variance of every gene, and the derivatives of its mean by the two arguments.

    log_odds, level (C, N), the level in sd; returns (C, N), (C, N) and (C, 2, N).
    """
    on = torch.sigmoid(log_odds)
    level = level.clamp_min(0) * model.level_scale
    mean = on * level
    variance = on * (level**2 + model.level_scale**2) - mean**2
    return mean, variance, torch.stack([(1 - on) * mean, on * model.level_scale], 1)


@torch.no_grad()
def start_and_end(model, conditions):
    """The `moments` of the controls that conditions start from, and those that are expected."""
    start = model.start()[conditions.cell_type]
    end = start + model.encoder.expect(conditions, model)
    return moments(model, *start.unbind(1)), moments(model, *end.unbind(1))


@torch.no_grad()
def explain(model, conditions, training):
    """What is expected of C conditions, how sure that is, and what it is made of.

    Returns the change of every gene's mean (C, N), its variance over control cells (C, N), the
    variance of the change, summed over genes (C,), the change in T training conditions (T, N), and
    {name: (C,)}, how far each of the `parts` moves the means, to first order.
    """
    (before, variance, at_start), (after, _, at_end) = start_and_end(model, conditions)
    unsure = (at_end**2 * uncertainty(model, conditions)).sum((1, 2))
    (theirs_before, _, _), (theirs_after, _, _) = start_and_end(model, training)
    lengths = {}
    for name, part in parts(model, conditions).items():
        lengths[name] = (at_start * part).sum(1).norm(dim=1)
    return after - before, variance, unsure, theirs_after - theirs_before, lengths


# ---- All together --------------------------------------------------------------------------------


def model_class(settings):
    """Departures with the additions that the settings switch on."""
    parts = []
    if not settings.discrete:
        parts.append(OneBridge)
    if settings.anchor:
        parts.append(Anchored)
    if settings.if_expressed:
        parts.append(IfExpressed)
    if settings.skip_gate:
        parts.append(SkipGate)
    if settings.shifts:
        parts.append(Shifted)
    if not parts:
        return Departures
    return type("ImprovedDepartures", (*parts, Departures), {})
