"""Departures (arXiv 2511.13124): Schroedinger bridges from control cells to perturbed cells, conditioned on the perturbation.

Read from top to bottom, with the paper beside it:

    1  Brownian bridge             expression levels          Eq. 4, 5, 7, 8, 16
    2  discrete mixture bridge     which genes are on         Eq. 10 to 13, 17
    3  if-expressed values         what a silent gene's level would be
    4  pairing                     minibatch optimal transport
    5  gene-regulatory network     from a target to every gene
    6  networks                    condition encoder, x_theta, d_theta
    7  loss                        Eq. 9, 14, 15
    8  sampler                     Eq. 16 to 18

Time runs from 0 (control) to T = 1 (perturbed). Axes: B cells of a batch, N genes, C distinct conditions of a batch, P targets (perturbed
genes, or drugs), Q training conditions, K cell types. x (B, N) is log1p expression, d = (x != 0) its activation as 0.0 or 1.0, t (B, 1).
"""
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import ot
import torch
import torch.nn.functional as F
from torch import nn


def option(default, text, **more):
    return field(default=default, metadata={"help": text, **more})


@dataclass
class Settings:
    """Everything that decides a run. The command line is generated from it and the checkpoint carries it."""
    # bridges
    sigma: float = option(0.2, "noise scale of the Brownian bridge (paper 0.2)", least=1e-9)
    steps: int = option(50, "sampling steps (paper 50)", least=1)
    discrete: bool = option(True, "a bridge of its own for which genes are on; without it one bridge carries the zeros as well")
    coupled: bool = option(False, "d_theta may look at the levels too, not only at what is on")
    kappa: str = option("linear", "schedule of the discrete bridge", choices=("linear", "quadratic", "cosine"))
    # pairing
    pairing: str = option("entropic", "how controls are paired with perturbed cells", choices=("exact", "entropic", "random"))
    cost: str = option("sqeuclidean", "transport cost", choices=("sqeuclidean", "euclidean", "cosine"))
    epsilon: str = option("0.05", "entropic regularisation: a fraction of the mean cost, of the largest ('0.1max'), or 'bridge'")
    pairing_batch: int = option(64, "largest number of cells in one transport plan (paper: those of a batch)", least=1)
    # the five improvements on the paper; --paper switches them all off
    skip_gate: bool = option(True, "endpoint predictors carry the exact one-gene answer and learn the rest, which for levels is taken T - t times")
    if_expressed: bool = option(True, "bridge the level of a gene if it is expressed; fill silent genes with draws")
    null_pairs: bool = option(True, "also train on control-control pairs, under no perturbation")
    label_dropout: float = option(0.3, "probability of hiding the cell type's label in training", least=0, most=1)
    exact_step: bool = option(True, "sample with the exact bridge step instead of Euler-Maruyama")
    # perturbation encoder
    grn: str = option("structural", "the gene network: structural, coexpression, none, or an edge list (CSV: source,target[,weight])")
    grn_factors: int = option(6, "hidden factors beside the genes in the structural network", least=1)
    grn_hubs: int = option(20, "measured genes that vary most with others, to be nodes of it beside the targets", least=0)
    drug_embedding: str = option("", "structures of drugs: CSV by drug name (numbers, or a SMILES column); without it the file's own")
    grn_sparsity: float = option(90.0, "penalty on the structural network's edges", least=0)
    target_dropout: float = option(0.3, "probability of hiding who the target is, so that the network must explain it", least=0, most=1)
    type_dropout: float = option(0.5, "probability of hiding what a target does in this cell type beyond what it does in all", least=0, most=1)
    prior: float = option(0.1, "scale of the Cauchy prior on what a perturbed gene does (log odds; sd of the level); 0, or drugs: none", least=0)
    # networks and training
    width: int = option(256, "hidden units of x_theta and d_theta", least=1)
    embedding: int = option(64, "length of a target's learned embedding", least=1)
    epochs: int = option(0, "passes over the training cells; 0: as many as make 2,500 steps, at least 5", least=0)
    bfloat16: bool = option(False, "the trunks in bfloat16 (autocast: weights stay float32), in training and sampling")
    batch: int = option(64, "pairs in a batch (paper 64 and 256)", least=1)
    learning_rate: float = option(2e-3, "of AdamW (paper 1e-3), falling to 0 along a half cosine", least=1e-9)
    seed: int = option(0, "of everything random: the split, the pairs, the training, the samples", least=0, most=2 ** 31 - 1)
    # data
    genes: int = option(5000, "genes to keep: the perturbed ones, then the most variable (paper 5,000 and 2,000)")
    test_fraction: float = option(0.3, "share of the perturbed genes, or of the drug conditions, to hold out (paper 0.3)", least=0, most=1)

    def as_in_the_paper(self):
        """The literal method: none of the five improvements, no prior, the co-expression network, the released code's pairing. What
        the paper leaves open stays ours: the networks, their dropouts, the number of epochs, the rate's decay."""
        self.skip_gate = self.if_expressed = self.null_pairs = self.exact_step = False
        self.label_dropout, self.prior, self.learning_rate = 0.0, 0.0, 1e-3
        self.grn, self.pairing, self.epsilon = "coexpression", "entropic", "0.1max"
        return self


class Share(NamedTuple):
    """The rows (n,) of a batch of `total` cells that one of several processes works on, and the generator that all of them seeded alike. Each
    draws the whole batch's random numbers and keeps its rows': they are the same however many processes there are."""
    generator: torch.Generator | None
    rows: torch.Tensor | slice
    total: int


def draw(kind, like, generator=None):
    """Random numbers of torch.rand or torch.randn in the shape and type of `like` (B, ...). generator: a torch.Generator, or a Share."""
    if isinstance(generator, Share):
        return draw(kind, like.new_empty(generator.total, *like.shape[1:]), generator.generator)[generator.rows]
    return kind(like.shape, generator=generator, device=like.device, dtype=like.dtype)


def put(device, values, dtype=None):
    """A tensor on a device of what the host knows. A GPU fetches it from page-locked memory when it gets there: nobody waits."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


# ================================================================================================ 1  Brownian bridge

def bridge_sample(x0, xT, t, sigma, generator=None):
    """x_t of the Brownian bridge from x0 to xT (B, N) at times t (B, 1): Eq. 4 and 7.
    The printed Eq. 7 gives B_t covariance Id; Brownian motion has t Id, and only then has B_t - t B_T the paper's variance t (1 - t)."""
    z = draw(torch.randn, x0, generator)
    return (1 - t) * x0 + t * xT + sigma * torch.sqrt(t * (1 - t)) * z


def bridge_drift(x, xT, t):
    """v_t = (x_T - x_t) / (T - t): Eq. 5 and 8. With a predicted endpoint for xT it is the drift of Eq. 16."""
    return (xT - x) / (1 - t)


def euler_maruyama_step(x, xT, t, h, sigma, generator=None):
    """x_{t+h} by Eq. 16. Its last step leaves noise of variance sigma^2 h on the endpoint."""
    z = draw(torch.randn, x, generator)
    return x + h * bridge_drift(x, xT, t) + sigma * math.sqrt(h) * z


def exact_bridge_step(x, xT, t, h, sigma, generator=None):
    """x_{t+h} drawn from the bridge from x at t to xT at T: exact, and without noise at T, for a given endpoint. A predicted one is a
    mean, which costs variance at T: of standard normals paired as Schroedinger would, sigma^2 h (log(1/h) + 0.6) at most (tested)."""
    z = draw(torch.randn, x, generator)
    left = max(1 - t - h, 0.0)                                             # the last t + h may exceed 1 by rounding
    return x + h * bridge_drift(x, xT, t) + sigma * math.sqrt(h * left / (1 - t)) * z


# ======================================================================================== 2  discrete mixture bridge

KAPPA = {"linear": lambda t: t,                                            # each kappa(0) = 0, kappa(1) = 1, increasing
         "quadratic": lambda t: t * t,
         "cosine": lambda t: 1 - torch.cos(0.5 * math.pi * t)}
KAPPA_DOT = {"linear": torch.ones_like, "quadratic": lambda t: 2 * t,
             "cosine": lambda t: 0.5 * math.pi * torch.sin(0.5 * math.pi * t)}


def mixture_sample(d0, dT, t, kappa="linear", generator=None):
    """d_t: every gene takes its endpoint state with probability kappa(t), else its start. Eq. 11 (whose x are d)."""
    u = draw(torch.rand, d0, generator)
    return torch.where(u < KAPPA[kappa](t), dT, d0)


def ctmc_rate(y, d, p_on, t, kappa="linear"):
    """Rate u_t(y, d) of each gene from state d to state y, given p_on = P(d_T = 1 | d_t): Eq. 13, corrected.
    The factor is kappa' / (1 - kappa), 1 / (T - t) for kappa = t. With the printed kappa / (1 - kappa) the chain's forward equation does not
    return the mixture of Eq. 11: at t = 0, for one, nothing would ever move."""
    p_y = torch.where(y == 1, p_on, 1 - p_on)
    return KAPPA_DOT[kappa](t) / (1 - KAPPA[kappa](t)) * (p_y - (y == d).to(p_on.dtype))


def ctmc_step(d, p_on, t, h, kappa="linear", generator=None):
    """d_{t+h}: every gene is redrawn from its posterior with probability (kappa(t+h) - kappa(t)) / (1 - kappa(t)). Eq. 17.
    The printed Eq. 17 adds h p / (T - t) to the current state and so sums to 1 + h / (T - t); what is added must leave the current state:
    delta + h (p - delta) / (T - t). For kappa = t our jump probability is that h / (T - t); for any kappa it integrates Eq. 13 exactly
    while the posterior stands still, and the last step redraws every gene."""
    now, then = (KAPPA[kappa](torch.tensor(s, dtype=torch.float64)).item() for s in (t, min(t + h, 1.0)))
    jump, on = torch.rand((2, *d.shape), generator=generator, device=d.device, dtype=d.dtype)
    return torch.where(jump < (then - now) / (1 - now), (on < p_on).to(d.dtype), d)


# ============================================================================================ 3  if-expressed values

class ActiveValues:
    """The non-zero values of each gene in each population, to draw from (arrays of `sample.active_values`).
    Improvement on the paper, a hurdle model: where d = 0 the level x is not observed, rather than 0. The bridge runs between levels *if
    expressed*: a silent gene's is a draw from the gene in cells of the same population that do express it. With zeros left in, training
    would show x_t falling towards 0 on silent genes while sampling, where x_theta only answers for expressed ones, shows it rising."""

    def __init__(self, start, count, values, device="cpu"):
        start, count = (torch.as_tensor(a, device=device) for a in (start, count))                     # (populations, N)
        self.start, self.count = torch.where(count > 0, start, len(values)), count.clamp_min(1).float()
        self.values = torch.as_tensor(np.append(values, np.float32(0)), device=device)        # the 0 is for silent genes

    def fill(self, x, population, generator=None):
        """x (B, N) with every zero replaced by a draw; population (B,) indexes the table."""
        start, count = (table.index_select(0, population) for table in (self.start, self.count))      # faster than table[population]
        nth = (draw(torch.rand, x, generator) * count).long()               # below count, also when rounded: u is at most 1 - 2^-24
        return torch.where(x != 0, x, self.values[start + nth])


# ======================================================================================================== 4  pairing

def transport_cost(xT, x0, cost="sqeuclidean"):
    """Cost (n, m) of turning each control x0 (m, N) into each perturbed cell xT (n, N)."""
    if cost == "cosine":
        return 1 - F.normalize(xT, dim=1) @ F.normalize(x0, dim=1).T
    squared = (xT ** 2).sum(1)[:, None] + (x0 ** 2).sum(1) - 2 * xT @ x0.T
    return squared.clamp_min(0) if cost == "sqeuclidean" else squared.clamp_min(0).sqrt()


def regularisation(C, cost, epsilon, sigma):
    """epsilon in units of the cost matrix C: a fraction of its mean, or ("0.1max") of its maximum, or "bridge".
    The static Schroedinger bridge for sigma B over [0, T] is entropic OT with cost |x - y|^2 / 2 and epsilon sigma^2 T; for |x - y|^2, 2 sigma^2 T.
    (The paper leaves epsilon open.) In thousands of genes its plan is the exact one, and Sinkhorn hardly gets there."""
    if epsilon.endswith("max"):
        return float(epsilon.removesuffix("max")) * C.max().item()
    if epsilon != "bridge":
        return float(epsilon) * C.mean().item()
    if cost != "sqeuclidean":
        raise ValueError("epsilon='bridge' is defined for the squared Euclidean cost")
    return 2 * sigma ** 2


def coupling(C, method="exact", epsilon=1.0, iterations=1000, tolerance=1e-4):
    """Transport plan (n, m) between uniform weights for cost C, and its largest relative marginal error.
    method: "exact" (POT's network simplex), "entropic" (POT's log-domain Sinkhorn, epsilon in units of C, on C's device) or "random"."""
    n, m = C.shape
    a, b = C.new_full((n,), 1 / n), C.new_full((m,), 1 / m)
    if method == "random":
        plan = a[:, None] * b
    elif method == "exact":
        plan = torch.as_tensor(ot.emd(*(v.double().cpu().numpy() for v in (a, b, C)), numItermax=10_000_000)).to(C)
    else:
        plan = ot.bregman.sinkhorn_log(a, b, C, reg=epsilon, numItermax=iterations, stopThr=tolerance / max(n, m), warn=False)
    error = max((plan.sum(1) * n - 1).abs().max().item(), (plan.sum(0) * m - 1).abs().max().item())
    return plan, error


def plan_information(plan):
    """How far a plan (n, m) is from uniform: its mutual information over log min(n, m), 0 for independent pairs and 1 for one-to-one."""
    most = math.log(min(plan.shape))
    return (torch.special.xlogy(plan, plan * plan.numel()).sum() / most).item() if most else 1.0


def draw_partners(plan, generator=None):
    """For each row of the plan (each perturbed cell) a column (a control) drawn from the plan given that row: (n,).
    So every perturbed cell is used exactly once, and the target marginal is exact even where Sinkhorn's is not."""
    cumulative = plan.double().cumsum(1)
    u = torch.rand(len(plan), 1, generator=generator, device=plan.device, dtype=torch.float64) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, u, right=True).squeeze(1).clamp_max(plan.shape[1] - 1)


def pair(xT, x0, settings, generator=None):
    """Partner in x0 (m, N) of each cell of xT (n, N), as the settings say: indices (n,), the plan's marginal error and its information."""
    C = transport_cost(xT, x0, settings.cost)
    epsilon = regularisation(C, settings.cost, settings.epsilon, settings.sigma) if settings.pairing == "entropic" else None
    plan, error = coupling(C, settings.pairing, epsilon)
    return draw_partners(plan, generator), error, plan_information(plan)


# ======================================================================================== 5  gene-regulatory network
#
# What a target does to every gene, before any network is trained: a table of effects (P, N), one row per target, in units of each gene's
# standard deviation per unit of the target's own. A knock-down multiplies the row by a negative number (`Departures.knock_down`). The
# encoder of section 6 learns from the training perturbations how far to trust it. A row of zeros: not known to this network.

def propagate(W, sources, hops=3):
    """Effects (P, N) of holding nodes `sources` (P,) one unit up in a network W (N, N) whose entry [j, i] is the edge i -> j.
    Each node passes on the mean of its incoming messages (weighted by |W|), and the held node's own level does not move."""
    W = W / W.abs().sum(1, keepdim=True).clamp_min(1e-12)
    signal = held = F.one_hot(sources, len(W)).to(W)
    for _ in range(hops):
        signal = torch.where(held == 1, held, signal @ W.T)
    return signal


def coexpression_network(S, threshold=0.3):
    """Edges (N, N) between genes of |Pearson correlation| above the threshold (as the released code), from covariance S."""
    sd = S.diagonal().clamp_min(1e-12).sqrt()
    R = S / sd[:, None] / sd
    return torch.where((R.abs() > threshold) & ~torch.eye(len(R), dtype=torch.bool, device=R.device), R, 0.0)


def fit_structural_equations(S, cells, nodes, knock, shift, noise, factors=6, sparsity=60.0, steps=800, lr=0.02, seed=0,
                             progress=iter):
    """Total effect (P, N) of each node on every gene, under a linear structural equation model of expression.

    x = W x_nodes + F f + noise: the nodes (genes `nodes`, (P,)) act on all genes and on each other along W (N, P), hidden factors
    (cell state, unseen regulators) along F. Silencing node p moves the genes by column p of (I - W)^-1. W must explain two
    things at once, by maximum likelihood with a penalty that spares strong edges (L1 would shrink them, and so spread them out):
      - how `cells` cells of one population co-vary: S (N, N), a correlation matrix, against L L' + noise;
      - how far the training perturbations moved the means: shift (Q, N), with error variance noise (Q, 1), in conditions
        whose nodes fell by knock (Q, P).
    Co-variation alone cannot tell cause from effect; one knock-down of the upstream gene can."""
    P, N, g = len(nodes), len(S), torch.Generator().manual_seed(seed)
    B = torch.linalg.solve(S[nodes][:, nodes] + 0.1 * torch.eye(P).to(S), S[nodes]).T.contiguous()   # ridge regression on x_p
    own = torch.zeros_like(B).index_put_((nodes, torch.arange(P, device=S.device)), S.new_ones(P))   # a gene is not its cause
    F_ = torch.randn(N, factors, generator=g).to(S)
    for _ in range(100):                                                    # leading directions of what the ridge leaves over
        F_ = torch.linalg.qr(S @ F_ - 0.7 * B @ (S[nodes] @ F_))[0]
    F_ = F_ * ((F_ * (S @ F_ - 0.7 * B @ (S[nodes] @ F_))).sum(0)).clamp_min(1e-6).sqrt()
    W, F_ = (0.8 * B * (1 - own)).requires_grad_(), F_.requires_grad_()
    log_d, log_psi = S.new_full((P,), -0.7).requires_grad_(), S.new_full((N,), -0.3).requires_grad_()
    strength, spread = S.new_tensor(0.8).requires_grad_(), S.new_zeros(P).requires_grad_()
    optimiser = torch.optim.Adam([W, F_, log_d, log_psi, strength, spread], lr=lr, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)

    def total_effect():
        edges = W * (1 - own)
        settled = torch.linalg.inv(torch.eye(P).to(S) - edges[nodes])       # (P, P), of the targets on each other
        return (edges @ settled).index_copy(0, nodes, settled)              # (N, P)

    for _ in progress(range(steps)):
        M = total_effect()
        L = torch.cat([M * torch.exp(0.5 * log_d), F_], 1)
        psi = torch.exp(log_psi) + 1e-3
        scaled = L / psi[:, None]
        inner = torch.eye(L.shape[1]).to(S) + L.T @ scaled                  # Woodbury: never an N x N inverse
        A = scaled.T @ (S @ scaled.detach())                                # scaled.T @ S @ scaled by one product with S, which is symmetric:
        A = A + A.T - A.detach()                                            # A's gradient reaches one factor, A.T's the other
        likelihood = 0.5 * cells * (torch.logdet(inner) + torch.log(psi).sum() + (S.diagonal() / psi).sum()
                                    - torch.linalg.solve(inner, A).trace())
        moved = (knock * strength * torch.exp(spread)) @ M.T                # (Q, N)
        misfit = 0.5 * ((moved - shift) ** 2 / noise).sum() + 0.5 * (spread ** 2).sum() / 0.3 ** 2   # strengths vary by 30 %
        optimiser.zero_grad()
        (likelihood + misfit + sparsity * (0.1 * torch.log1p(W.abs() / 0.1).sum() + F_.abs().sum() / 3)).backward()
        optimiser.step()
        schedule.step()
    return (total_effect() * strength).detach().T


def structural_effects(S, cells, nodes, knock, shift, noise, hubs=20, folds=4, **options):
    """Effects (P, N) by `fit_structural_equations`, each target's from fits that never saw it perturbed (cross-fitting).
    A training target's row must be as good as an unseen one's, no better, or the encoder would trust the network more than it deserves.
    Targets of training conditions are dealt to folds; the rest get the mean over the fits. Hubs, the genes that co-vary most, are nodes
    as well: some are regulators that nobody perturbed, and what runs through them is no effect of the targets."""
    P, degree = len(nodes), S.square().sum(0).index_fill(0, nodes, -1.0)
    nodes = torch.cat([nodes, degree.topk(min(hubs, len(S) - P)).indices])
    knock = F.pad(knock, (0, len(nodes) - P))
    perturbed = torch.nonzero((knock != 0).any(0)).squeeze(1)
    shuffled = perturbed[torch.randperm(len(perturbed), generator=torch.Generator().manual_seed(0)).to(perturbed.device)]
    parts, fits = [part for part in shuffled.chunk(folds) if len(part)] or [shuffled], []
    for part in parts:
        seen = ~(knock[:, part] != 0).any(1)
        fits.append(fit_structural_equations(S, cells, nodes, knock[seen], shift[seen], noise[seen], **options))
    effects = torch.stack(fits).mean(0)
    for part, fit in zip(parts, fits):
        effects[part] = fit[part]
    return effects[:P]


# ======================================================================================================= 6  networks

class Encoded(NamedTuple):
    """What the encoder says of each distinct condition."""
    level: torch.Tensor          # (C, N) shift of the mean level if expressed
    logit: torch.Tensor          # (C, N) shift of the log odds of being expressed
    z: torch.Tensor              # (C, embedding) for the trunks
    prior: torch.Tensor          # (C, 1) how unlikely the memory's shift is


def along_first(layer, x):
    """A linear layer along the first axis of x (features, C, N): three times as fast as along a last axis of so few features."""
    return torch.addmm(layer.bias[:, None], layer.weight, x.flatten(1)).unflatten(1, x.shape[1:])


class PerturbationEncoder(nn.Module):
    """A condition ((target, dose), ...), cell type -> how it shifts every gene. Runs once per distinct condition.
    Two voices are added. The *network's*: the GRN's effects, each multiplied by a gain that a small shared map computes from the gene's own
    statistics, so it works for targets never seen. The *memory's*: a learned embedding per target, and one per (target, cell type), linear
    from there on but for a drug's dose, so that the effects of several targets add. In training it gives way, with probability
    `target_dropout`, to what a target never seen has: a linear map of its structure (drugs) or an `unknown` target's embedding, later
    `expected` (not zero, which is "no perturbation"). The part for the cell type drops out (`type_dropout`), so that the rest holds in a
    type where the target was never seen. For genes the whole memory has a Cauchy prior: else it would repeat the sampling noise of few cells."""

    def __init__(self, settings, n_genes, n_targets, n_types, channels, dosed, structure):
        super().__init__()
        k = settings.embedding
        self.dosed, self.n_types, self.scale = dosed, n_types, 0.0 if dosed else settings.prior
        self.register_buffer("dropout", torch.tensor([[settings.target_dropout], [settings.type_dropout]]), persistent=False)
        self.target, self.pair = nn.Embedding(n_targets + 1, k), nn.Embedding(n_targets * n_types, k)
        self.hill, self.from_structure = nn.Linear(k, 2), nn.Linear(structure, k)         # log slope, log10 of the half-way dose
        self.register_buffer("structure", torch.zeros(n_targets, structure))              # a drug's; rows of zeros: not known
        self.register_buffer("usual_dose", torch.zeros(()))                               # log10
        self.memory = nn.Linear(k, 2 * n_genes, bias=False)
        self.gain = nn.ModuleList([nn.Linear(3 + 2 * channels, 8), nn.Linear(8, 2 * channels)])
        for weights, std in ((self.target.weight, 0.3), (self.pair.weight, 0.3), (self.gain[1].weight, 0.02)):
            nn.init.normal_(weights, std=std)
        for weights in (self.memory.weight, self.hill.weight, self.hill.bias):
            nn.init.zeros_(weights)
        nn.init.constant_(self.gain[1].bias, 0.4)
        self.register_buffer("seen", torch.zeros(n_targets, dtype=torch.bool))
        self.register_buffer("seen_pair", torch.zeros(n_targets, n_types, dtype=torch.bool))
        self.register_buffer("effects", torch.zeros(channels, n_targets, n_genes))
        self.register_buffer("cells", torch.tensor(math.inf))                             # of a training condition, on average

    def expected(self):
        """The memory (embedding,) of a target never seen: the mean over those seen, shrunk towards no effect.
        By James and Stein's factor in the space of gene shifts: with few targets their mean is mostly chance."""
        if self.seen.sum() < 2:
            return torch.zeros_like(self.target.weight[0])
        pair = self.pair.weight.unflatten(0, (-1, self.n_types)) * self.seen_pair[..., None]
        z = (self.target.weight[:-1] + pair.sum(1) / self.seen_pair.sum(1, keepdim=True).clamp_min(1))[self.seen]
        mean = z.mean(0)
        chance = self.memory(z - mean).square().sum() / max(len(z) * (len(z) - 1), 1)
        return mean * (1 - chance / self.memory(mean).square().sum().clamp_min(1e-12)).clamp_min(0)

    def forward(self, conditions, model, generator=None):
        """conditions: list of (((target index, dose), ...), cell type index) -> Encoded."""
        device, C = self.effects.device, len(conditions)
        rows = [(c, p, dose, k) for c, (targets, k) in enumerate(conditions) for p, dose in targets]
        c, p, k = (put(device, [r[i] for r in rows], torch.long) for i in (0, 1, 3))
        known, known_pair = self.seen[p], (k < self.n_types) & self.seen_pair[p, k.clamp_max(self.n_types - 1)]
        if self.training:
            hide, hide_pair = (torch.rand((2, C), generator=generator, device=device) < self.dropout)[:, c]
            known, known_pair = known & ~hide, known_pair & ~hide & ~hide_pair
        unknown = self.target.weight[-1] if self.training else self.expected()
        unknown = torch.where(self.structure[p].any(1, keepdim=True), self.from_structure(self.structure[p]), unknown)
        z = torch.where(known[:, None], self.target(p), unknown)
        z = z + self.pair(p * self.n_types + k.clamp_max(self.n_types - 1)) * known_pair[:, None]
        if self.dosed:                                                     # a Hill curve in the dose, for each drug
            dose = put(device, [r[2] for r in rows])
            slope, middle = self.hill(z).unbind(1)
            z = z * torch.sigmoid(slope.exp() * (torch.log10(dose.clamp_min(1e-12)) - self.usual_dose - middle))[:, None]
        # What the trunks learnt of a gene holds in the types where it was seen; elsewhere they hear what null pairs taught them: nothing.
        told = z if self.training or not (self.scale and model.settings.null_pairs) else z * ~(known & ~known_pair)[:, None]
        z, told = (torch.zeros(C, z.shape[1], device=device).index_add(0, c, part) for part in (z, told))
        effect = self.effects[:, p] * model.knock_down(p, k)[:, None]                               # (channels, rows, N)
        effect = torch.zeros(len(effect), C, effect.shape[2], device=device).index_add(1, c, effect)
        cell_type = put(device, [k for _, k in conditions])
        gene = torch.stack([model.control_mean[cell_type], model.control_fraction[cell_type], model.level_scale.expand(C, -1)])     # (3, C, N)
        hidden = F.silu(along_first(self.gain[0], torch.cat([gene, effect, effect.abs().sqrt()])))
        gain = along_first(self.gain[1], hidden).unflatten(0, (2, -1))                              # (2, channels, C, N)
        memory = self.memory(z).unflatten(1, (2, -1)).transpose(0, 1)                               # (2, C, N): of the level, of the log odds
        level, logit = (gain * effect).sum(1) + memory
        # Minus the prior's log per cell of an average condition. Eq. 14 counts a gene's log-likelihood 1/N times, Eq. 9 `weight` (N,) times that.
        a, discrete = self.scale or math.inf, model.settings.discrete
        weight = 2 * model.level_scale ** 2 / (model.control_fraction.mean() if discrete else 1.0)
        unlikely = discrete * torch.log1p((memory[1] / a) ** 2) + weight * torch.log1p((memory[0] / model.level_scale / a) ** 2)
        return Encoded(level, logit, told, (unlikely.mean(1) / self.cells)[:, None])


class Trunk(nn.Module):
    """A residual MLP of a cell's state, the time, the cell type's label and the condition: (B, inputs) -> (B, N)."""
    def __init__(self, settings, inputs, n_genes, n_types):
        super().__init__()
        H, self.bfloat16 = settings.width, settings.bfloat16
        self.register_buffer("frequency", 2 * math.pi * torch.tensor([0.5, 1.0, 2.0, 4.0]), persistent=False)
        self.label = nn.Embedding(n_types + 1, 8)                                                  # the last: hidden
        self.state, self.context = nn.Linear(inputs, H), nn.Linear(settings.embedding + 8 + 9, H)
        self.block = nn.Sequential(nn.LayerNorm(H), nn.Linear(H, H), nn.SiLU(), nn.Linear(H, H))
        self.out = nn.Sequential(nn.LayerNorm(H), nn.SiLU(), nn.Linear(H, n_genes))
        for p in self.out[2].parameters():
            nn.init.zeros_(p)

    def forward(self, state, t, label, z):
        wave = t * self.frequency
        context = torch.cat([z, self.label(label), t, wave.sin(), wave.cos()], 1)
        with torch.autocast(state.device.type, torch.bfloat16, enabled=self.bfloat16):
            h = F.silu(self.state(state) + self.context(context))
            return self.out(h + self.block(h)).to(state.dtype)


class Departures(nn.Module):
    """x_theta and d_theta with their encoder, for named genes, targets and cell types. A cell type is known by what its controls are like
    (`add_cell_type`), besides its label: so one that only appears when sampling has all it needs."""

    def __init__(self, settings, genes, targets, cell_types, kind="gene", channels=1, structure=1):
        super().__init__()
        N, K = len(genes), len(cell_types)
        self.settings, self.kind, self.n_labels = settings, kind, K        # cell types added later have no label
        self.genes, self.targets, self.cell_types = list(genes), list(targets), list(cell_types)
        position = {g: i for i, g in enumerate(self.genes)}
        self.register_buffer("target_gene", torch.tensor([position.get(p, -1) for p in targets], dtype=torch.long))
        for name in ("control_mean", "control_level", "control_fraction"):  # mean, mean if expressed, fraction expressing
            self.register_buffer(name, torch.zeros(K, N))
        self.register_buffer("gene_scale", torch.ones(N))                   # standard deviation within a group
        self.register_buffer("level_scale", torch.ones(N))                  # standard deviation of the level if expressed
        self.encoder = PerturbationEncoder(settings, N, len(targets), K, channels, kind == "drug", structure)
        self.x_trunk = Trunk(settings, 2 * N if settings.if_expressed else N, N, K)
        self.d_trunk = Trunk(settings, 2 * N if settings.coupled else N, N, K)
        self.log_scale = nn.Parameter(torch.zeros(2, N))                    # skip gate: scales of x_0 and x_T, and their
        self.correlation = nn.Parameter(torch.full((N,), 0.2))              # correlation (as atanh)
        self.start_given_end = nn.Parameter(torch.tensor([[-0.1], [0.3]]).repeat(1, N))     # log odds of d_0 given d_T

    def knock_down(self, target, cell_type):
        """Change of each target's level (R,) when silenced in its cell type (R,): minus its mean, in sd; -1 if not measured."""
        gene = self.target_gene[target]
        return torch.where(gene >= 0, -self.control_mean[cell_type, gene] / self.gene_scale[gene], -1.0)

    def gate(self, t):
        """g(t) (B, N), the slope of E[x_T | x_t] on x_t for a Brownian bridge between correlated Gaussians; g(T) = 1.
        An improvement on the paper: the best endpoint predictor of a Gaussian bridge is exactly this, gene by gene, and a network with
        a bottleneck cannot make one. For activation, `evidence` is its counterpart."""
        s0, sT = self.log_scale.exp()
        c = torch.tanh(self.correlation) * s0 * sT
        start, both, end = (1 - t) ** 2, 2 * t * (1 - t), t ** 2           # what s0^2, c + sigma^2 / 2 and sT^2 weigh in the variance of x_t
        variance = torch.cat([start, both, end], 1) @ torch.stack([s0 ** 2, c + self.settings.sigma ** 2 / 2, sT ** 2])
        return torch.cat([1 - t, t], 1) @ torch.stack([c, sT ** 2]) / variance

    def evidence(self, t, d, cell_type):
        """log P(d_t | d_T = 1) / P(d_t | d_T = 0), (B, N): one gene's own state in its posterior; grows like -log(1 - kappa)."""
        kappa = KAPPA[self.settings.kappa](t).clamp_max(1 - 1e-4)
        prior = torch.logit(self.control_fraction).index_select(0, cell_type)
        off, on = (torch.sigmoid((2 * d - 1) * (prior + start)) for start in self.start_given_end)             # P(d_0 = d_t | d_T)
        return torch.log((kappa * d + (1 - kappa) * on) / (kappa * (1 - d) + (1 - kappa) * off))

    def predict_level(self, t, x, d, cell_type, label, condition):
        """x_theta: the endpoint x_T (B, N) given x_t; with if-expressed levels it may look at what is on, d_t, only."""
        start = (self.control_level if self.settings.discrete else self.control_mean).index_select(0, cell_type)
        moved = x - start
        state = moved / self.level_scale
        if self.settings.if_expressed:
            # Silent genes' levels are draws, which in training know nothing of the cell and in sampling do: hide them.
            state = torch.cat([state * d, d], 1)
        residual = self.x_trunk(state, t, label, condition.z) * self.level_scale
        if self.settings.skip_gate:
            # Eq. 16 divides by T - t: an error that does not fall with it would grow without bound, and at T the gate alone is right.
            residual = (1 - t) * residual + self.gate(t) * (moved - t * condition.level)
        return start + condition.level + residual

    def predict_logit(self, t, x, d, cell_type, label, condition):
        """d_theta: log odds (B, N) that each gene is on at T, given d_t (and, if coupled, x_t where it is on)."""
        logit, state = torch.logit(self.control_fraction).index_select(0, cell_type) + condition.logit, 2 * d - 1
        if self.settings.coupled:
            state = torch.cat([state, d * (x - self.control_level.index_select(0, cell_type)) / self.level_scale], 1)
        logit = logit + self.d_trunk(state, t, label, condition.z)
        return logit + self.evidence(t, d, cell_type) if self.settings.skip_gate else logit

    def label(self, cell_type, generator=None):
        """The cell type's label for the trunks, hidden where it is not known and, in training, at random: an improvement on the paper,
        for x_0 carries the cell type, and a label never seen perturbed misleads."""
        hide = cell_type >= self.n_labels
        if self.training:
            hide = hide | (draw(torch.rand, cell_type.float(), generator) < self.settings.label_dropout)
        return torch.where(hide, self.n_labels, cell_type)

    def add_cell_type(self, name, mean, level, fraction, cells):
        """Describe a cell type by its control cells: (N,) statistics of `sample.population_statistics`, from `cells` cells."""
        if name not in self.cell_types:
            self.cell_types.append(name)
            for table in ("control_mean", "control_level", "control_fraction"):
                setattr(self, table, F.pad(getattr(self, table), (0, 0, 0, 1)))
        k = self.cell_types.index(name)
        self.control_mean[k], self.control_level[k] = torch.as_tensor(mean), torch.as_tensor(level)
        self.control_fraction[k] = (torch.as_tensor(fraction) * cells + 0.5) / (cells + 1)          # never exactly 0 or 1

    def condition(self, targets, cell_type):
        """Indices ((target, dose), ...), cell type of a condition named [(target, dose), ...], name.
        Raises ValueError for a target of which nothing is known: not perturbed in training, and no effect in the network."""
        for target, _ in targets:
            p = self.targets.index(target) if target in self.targets else None
            if p is None or not (self.encoder.seen[p] or self.encoder.effects[:, p].any() or self.encoder.structure[p].any()):
                measured = "measured, but no node of the network" if target in self.genes else "not among the measured genes"
                raise ValueError(f"cannot predict '{target}': it was not perturbed in training, and it is "
                                 + (measured if self.kind == "gene" else "a drug without a known structure"))
        return tuple((self.targets.index(target), dose) for target, dose in targets), self.cell_types.index(cell_type)


# =========================================================================================================== 7  loss

def endpoint_loss(xT, predicted, dT):
    """Eq. 9: squared error on the genes expressed at T, each cell's mean over them (0 where it has none), then the mean over cells."""
    return (dT * (xT - predicted) ** 2).sum(1).div(dT.sum(1).clamp_min(1)).mean()


def activation_loss(dT, logit):
    """Eq. 14: cross-entropy of d_T, per gene and cell."""
    return F.binary_cross_entropy_with_logits(logit, dT)


def joint_loss(model, x0, xT, conditions, which, populations, values=None, generator=None):
    """Eq. 9 and Eq. 14, whose sum is Eq. 15, on pairs (x0, xT) (B, N); and the prior's share, to be added.
    conditions: the distinct ones (length C); which (B,): each pair's. populations (B, 2): where x0 and xT draw their if-expressed values.
    generator: a Share, where the pairs are one process's of a batch; its conditions are the whole batch's."""
    settings, share = model.settings, generator if isinstance(generator, Share) else Share(generator, slice(None), len(x0))
    d0, dT = (x0 != 0).to(x0), (xT != 0).to(xT)
    x0, end = (values.fill(x, populations[:, i], share) if settings.if_expressed else x for i, x in enumerate((x0, xT)))
    B = share.total                     # t uniform, one in each B-th of [0, 1): the same expectation, a quieter loss
    t = ((torch.arange(B, device=x0.device)[share.rows] + draw(torch.rand, x0[:, 0], share)) / B)[:, None]
    xt = bridge_sample(x0, end, t, settings.sigma, share)
    dt = mixture_sample(d0, dT, t, settings.kappa, share)
    condition = Encoded(*(F.embedding(which, part) for part in model.encoder(conditions, model, share.generator)))
    cell_type = put(x0.device, [k for _, k in conditions])[which]
    label = model.label(cell_type, share)
    level = model.predict_level(t, xt, dt, cell_type, label, condition)
    logit = model.predict_logit(t, xt, dt, cell_type, label, condition)
    endpoint = endpoint_loss(xT, level, dT if settings.discrete else torch.ones_like(dT))
    return endpoint, settings.discrete * activation_loss(dT, logit), condition.prior.mean()


# ======================================================================================================== 8  sampler

@torch.no_grad()
def sample(model, x0, condition, values=None, generator=None, steps=None, trace=None):
    """Predicted cells from control cells x0 (B, N) of the condition's type: Eq. 16 to 18.
    Returns (B, N) predicted expression x_T * d_T, and x_T itself, the level if expressed; both >= 0, as the released code's.
    values: the controls' if-expressed values, one population per cell type of the model. trace: a list that gets each step's (x_t, d_t)."""
    settings, steps = model.settings, steps or model.settings.steps
    model.eval()
    B, k = len(x0), condition[1]
    encoded = Encoded(*(part.expand(B, -1) for part in model.encoder([condition], model)))
    cell_type = torch.full((B,), k, device=x0.device)
    label = model.label(cell_type)
    x, d = values.fill(x0, cell_type, generator) if settings.if_expressed else x0, (x0 != 0).to(x0)
    step = exact_bridge_step if settings.exact_step else euler_maruyama_step
    for i in range(steps):
        t, h = i / steps, 1 / steps
        if trace is not None:
            trace.append((x, d))
        time = x.new_full((B, 1), t)
        end = model.predict_level(time, x, d, cell_type, label, encoded)
        p_on = torch.sigmoid(model.predict_logit(time, x, d, cell_type, label, encoded))
        x = step(x, end, t, h, settings.sigma, generator)
        d = ctmc_step(d, p_on, t, h, settings.kappa, generator)
    level = x.clamp_min(0)
    return level * d if settings.discrete else level, level
