"""Small wrong edits of the project, each a plausible mistake that some test must catch.

    python tests/mutants.py              every one, two at a time: about 7 minutes on 2 CPU cores
    python tests/mutants.py sinkhorn     those whose text or reason holds this word
    python -m pytest && python tests/mutants.py --tested       the same, without running the tests once more without any edit

Each is applied alone to a scratch copy, and the tests named above it run there until one fails: killed. It fails when one survives, when
an old text no longer stands exactly once, or when those tests fail without any edit (they would kill everything).
"""
import contextlib
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time

import anndata  # noqa: F401  these are imported once, before the processes fork
import hypothesis
import matplotlib  # noqa: F401
import ot  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

MUTANTS = {  # tests that concern them: [(file, old text, new text, why it is wrong)]
    "test_brownian_bridge.py": [
        ("departures.py", "return (1 - t) * x0 + t * xT + sigma", "return t * x0 + (1 - t) * xT + sigma",
         "the bridge runs backwards: its ends are exchanged"),
        ("departures.py", "sigma * torch.sqrt(t * (1 - t)) * z", "sigma * t * (1 - t) * z", "standard deviation and variance confused"),
        ("departures.py", "t * xT + sigma * torch.sqrt(t * (1 - t)) * z", "t * xT + torch.sqrt(t * (1 - t)) * z", "sigma forgotten"),
        ("departures.py", "sigma * torch.sqrt(t * (1 - t)) * z", "sigma * torch.sqrt(t) * z",
         "Brownian motion instead of a bridge: Eq. 7 with nothing that pins the end"),
        ("departures.py", "return (xT - x) / (1 - t)", "return (xT - x)", "the drift forgets the time that is left"),
        ("departures.py", "return (xT - x) / (1 - t)", "return (x - xT) / (1 - t)", "sign of the drift"),
        ("departures.py", "sigma * math.sqrt(h) * z", "sigma * h * z", "sqrt(h) became h"),
        ("departures.py", "x + h * bridge_drift(x, xT, t) + sigma * math.sqrt(h) * z", "x + h * bridge_drift(x, xT, t)",
         "no noise: an ODE instead of Eq. 16"),
        ("departures.py", "sigma * math.sqrt(h * left / (1 - t)) * z", "sigma * math.sqrt(h) * z",
         "the exact step leaves Euler-Maruyama's noise at T"),
        ("departures.py", "math.sqrt(h * left / (1 - t)) * z", "math.sqrt(h * left) * z", "variance of the exact step lacks the time that is left"),
        ("departures.py", "c = torch.tanh(self.correlation) * s0 * sT", "c = torch.tanh(self.correlation) * s0", "covariance lacks a scale"),
        ("departures.py", "start, both, end = (1 - t) ** 2, 2 * t * (1 - t), t ** 2", "start, both, end = (1 - t) ** 2, t * (1 - t), t ** 2",
         "the cross term of the variance counted once"),
        ("departures.py", "torch.cat([1 - t, t], 1) @", "torch.cat([t, 1 - t], 1) @", "the gate runs backwards in time"),
        ("departures.py", "c + self.settings.sigma ** 2 / 2, sT ** 2])", "c, sT ** 2])",
         "the gate forgets the bridge's own noise"),
    ],
    "test_discrete_bridge.py": [
        ("departures.py", "torch.where(u < KAPPA[kappa](t), dT, d0)", "torch.where(u < KAPPA[kappa](t), d0, dT)", "kappa and 1 - kappa exchanged"),
        ("departures.py", "u = draw(torch.rand, d0, generator)", "u = draw(torch.rand, d0[:, :1], generator)", "all genes of a cell switch together"),
        ("departures.py", "return KAPPA_DOT[kappa](t) / (1 - KAPPA[kappa](t))", "return KAPPA[kappa](t) / (1 - KAPPA[kappa](t))",
         "Eq. 13 as printed"),
        ("departures.py", "return KAPPA_DOT[kappa](t) / (1 - KAPPA[kappa](t))", "return 2 * KAPPA_DOT[kappa](t) / (1 - KAPPA[kappa](t))", "rate x 2"),
        ("departures.py", "(p_y - (y == d).to(p_on.dtype))", "p_y", "the rate never leaves a state: columns do not sum to 0"),
        ("departures.py", "p_y = torch.where(y == 1, p_on, 1 - p_on)", "p_y = torch.where(y == 1, 1 - p_on, p_on)", "on and off exchanged"),
        ("departures.py", "torch.where(jump < (then - now) / (1 - now), (on < p_on)", "torch.where(jump < 0, (on < p_on)", "never jump"),
        ("departures.py", "torch.where(jump < (then - now) / (1 - now), (on < p_on)", "torch.where(jump < 10 * (then - now) / (1 - now), (on < p_on)",
         "jumps x 10"),
        ("departures.py", "jump < (then - now) / (1 - now)", "jump < (then - now)", "the time that is left is forgotten: the last step keeps most genes"),
        ("departures.py", "(on < p_on).to(d.dtype), d)", "1 - d, d)", "a jump always flips instead of drawing from the posterior"),
        ("departures.py", "(on < p_on).to(d.dtype), d)", "(jump < p_on).to(d.dtype), d)", "one uniform number for two decisions"),
        ("departures.py", '"quadratic": lambda t: 2 * t', '"quadratic": lambda t: t', "slope of the quadratic schedule"),
        ("departures.py", '"cosine": lambda t: 1 - torch.cos(0.5 * math.pi * t)', '"cosine": lambda t: torch.sin(0.5 * math.pi * t)',
         "another curve from 0 to 1, which no longer fits its slope"),
        ("departures.py", "/ (kappa * (1 - d) + (1 - kappa) * off))", "/ (kappa * (1 - d) + off))",
         "the evidence of an expressed gene stays bounded instead of growing like -log(1 - kappa)"),
        ("departures.py", "off, on = (torch.sigmoid((2 * d - 1)", "on, off = (torch.sigmoid((2 * d - 1)", "evidence of on and off exchanged"),
    ],
    "test_pairing.py": [
        ("departures.py", "- 2 * xT @ x0.T", "+ 2 * xT @ x0.T", "sign of the cross term of the squared distance"),
        ("departures.py", 'if cost == "sqeuclidean" else squared.clamp_min(0).sqrt()', 'if cost != "sqeuclidean" else squared.clamp_min(0).sqrt()',
         "Euclidean and squared exchanged"),
        ("departures.py", "return 1 - F.normalize(xT, dim=1)", "return 1 - F.normalize(xT, dim=0)", "cosine over cells instead of genes"),
        ("train.py", "mine.append((sources[i][partner.cpu().numpy()], about))", "mine.append((sources[i], about))", "the pairing is thrown away"),
        ("train.py", "pool, rows = rows[:len(rows) // 2], rows[len(rows) // 2:]", "pool, rows = rows[len(rows) // 2:], rows[len(rows) // 2:]",
         "null pairs of a cell with itself"),
        ("train.py", "pool = screen.controls(t)", "pool = screen.controls(screen.cell_types[0])", "controls of another cell type"),
        ("departures.py", "return 2 * sigma ** 2", "return sigma ** 2", "epsilon of half the cost with the whole cost"),
        ("departures.py", "* C.max().item()", "* C.mean().item()", "the released code's epsilon is of the largest cost"),
        ("departures.py", "sinkhorn_log(a, b, C, reg=epsilon", "sinkhorn_log(a, b, C, reg=C.mean().item()", "Sinkhorn ignores epsilon"),
        ("departures.py", "sinkhorn_log(a, b, C, reg=epsilon", "sinkhorn_log(a, b, -C, reg=epsilon", "Sinkhorn pairs the farthest cells"),
        ("departures.py", 'if method == "random":\n        plan', 'if method != "exact":\n        plan', "Sinkhorn returns the independent coupling"),
        ("departures.py", "for v in (a, b, C)), numItermax", "for v in (a, b, -C)), numItermax", "the exact plan is the dearest one"),
        ("departures.py", "most = math.log(min(plan.shape))", "most = math.log(plan.numel())", "no plan is ever one-to-one"),
        ("departures.py", "cumulative = plan.double().cumsum(1)", "cumulative = plan.sum(0, keepdim=True).expand_as(plan).double().cumsum(1)",
         "partners drawn from the marginal: the plan is thrown away"),
        ("departures.py", ".squeeze(1).clamp_max(plan.shape[1] - 1)", ".squeeze(1).sub(1).clamp(0, plan.shape[1] - 1)", "partners off by one"),
        ("departures.py", "C = transport_cost(xT, x0, settings.cost)", "C = transport_cost(xT, x0)", "--cost does nothing"),
        ("departures.py", "C = transport_cost(xT, x0, settings.cost)", "C = transport_cost(x0, xT, settings.cost)", "rows are controls: the plan is transposed"),
        ("departures.py", "(plan.sum(1) * n - 1).abs().max().item(), (plan.sum(0) * m - 1)", "(plan.sum(1) * n - 1).abs().max().item(), (plan.sum(1) * n - 1)",
         "Sinkhorn's failure to converge goes unseen"),
    ],
    "test_schrodinger_bridge.py": [
        ("toy_data.py", "return (S @ D @ np.linalg.inv(S) - sigma ** 2 * identity) / 2", "return (D - sigma ** 2 * identity) / 2",
         "right only where S0 and S1 commute"),
        ("toy_data.py", "4 * S @ S1 @ S + sigma ** 4 * identity", "4 * S @ S1 @ S + sigma ** 2 * identity", "power of sigma in the closed form"),
        ("toy_data.py", "pull = C.T + t * S1 - (1 - t) * S0 - t * (C + C.T + noise)", "pull = C.T + t * S1 - (1 - t) * S0 - t * (C + C.T)",
         "the learned drift forgets the bridge's noise"),
    ],
    "test_loss_and_sampler.py": [
        ("departures.py", "condition.prior.mean()", "0 * condition.prior.mean()", "the prior is forgotten"),
        ("departures.py", "return (dT * (xT - predicted) ** 2).sum(1)", "return ((xT - predicted) ** 2).sum(1)", "the mask is dropped"),
        ("departures.py", ".div(dT.sum(1).clamp_min(1)).mean()", ".div(dT.shape[1]).mean()", "a mean over all genes instead of the expressed ones"),
        ("departures.py", "d0, dT = (x0 != 0).to(x0), (xT != 0).to(xT)", "d0, dT = (x0 != 0).to(x0), (x0 != 0).to(xT)",
         "the activation that is learned is the control's"),
        ("departures.py", "values.fill(x, populations[:, i], share) if", "values.fill(x, populations[:, 0], share) if",
         "the perturbed cell's silent genes are filled from controls"),
        ("departures.py", "dt = mixture_sample(d0, dT, t, settings.kappa, share)", "dt = mixture_sample(d0, dT, 1 - t, settings.kappa, generator)",
         "the two bridges run at different times"),
        ("departures.py", "xt = bridge_sample(x0, end, t, settings.sigma, share)", "xt = bridge_sample(end, x0, t, settings.sigma, generator)",
         "the training path starts at the perturbed cell"),
        ("departures.py", "condition = Encoded(*(F.embedding(which, part) for part in", "condition = Encoded(*(F.embedding(which.sort()[0], part) for part in",
         "pairs meet the conditions of other pairs"),
        ("departures.py", "level * d if settings.discrete", "level * (1 - d) if settings.discrete", "Eq. 18 keeps the silent genes"),
        ("departures.py", "level = x.clamp_min(0)", "level = x", "negative expression"),
        ("departures.py", "step = exact_bridge_step if settings.exact_step else euler_maruyama_step", "step = exact_bridge_step",
         "--no-exact-step does nothing"),
        ("departures.py", "d = ctmc_step(d, p_on, t, h, settings.kappa, generator)", "d = ctmc_step(d, p_on, t, h, \"linear\", generator)",
         "sampling ignores the schedule that was trained"),
        ("departures.py", "x, d = values.fill(x0, cell_type, generator) if settings.if_expressed else x0,", "x, d = x0,", "if-expressed in training, zeros in sampling"),
        ("departures.py", "return torch.where(x != 0, x, self.values", "return torch.where(x == 0, x, self.values", "expressed levels are overwritten"),
        ("departures.py", "self.values[start + nth]", "self.values[start]", "every draw is the first value"),
        ("departures.py", "cell_type.float(), generator) < self.settings.label_dropout", "cell_type.float(), generator) > self.settings.label_dropout",
         "labels are hidden with the opposite probability"),
        ("departures.py", "generator.generator)[generator.rows]", "generator.generator)[:len(like)]", "every process draws the first one's numbers"),
        ("departures.py", "device=x0.device)[share.rows] + draw", "device=x0.device)[:len(x0)] + draw", "every process takes the earliest times"),
    ],
    "test_networks.py": [
        ("departures.py", "residual = (1 - t) * residual + self.gate(t)", "residual = (1 - t).sqrt() * residual + self.gate(t)",
         "what is learnt falls too slowly: the drift still diverges"),
        ("departures.py", "memory = self.memory(z).unflatten(1, (2, -1)).transpose(0, 1)", "memory = self.memory(z).unflatten(1, (2, -1)).transpose(0, 1).flip(0)",
         "levels and log odds exchanged"),
        ("departures.py", "tensor.pin_memory().to(device, non_blocking=True)", "tensor.to(device)", "the host waits for the GPU"),
        ("departures.py", "model.control_fraction.mean() if discrete", "model.control_fraction.mean().item() if discrete",
         "every step waits for a number from the device"),
        ("departures.py", "enabled=self.bfloat16", "enabled=False", "bfloat16 changes nothing"),
        ("departures.py", "discrete * torch.log1p((memory[1] / a) ** 2)", "discrete * (memory[1] / a) ** 2", "a Gaussian prior, which flattens strong effects"),
        ("departures.py", "torch.log1p((memory[0] / model.level_scale / a) ** 2)", "torch.log1p((memory[0] / a) ** 2)",
         "the prior on levels forgets their units"),
        ("departures.py", "z * ~(known & ~known_pair)[:, None]", "z", "the trunks apply to a cell type what they learnt of a gene in others"),
        ("departures.py", "not (self.scale and model.settings.null_pairs)", "not model.settings.null_pairs", "the trunks forget a drug in a new cell type"),
        ("departures.py", "not (self.scale and model.settings.null_pairs)", "not self.scale", "the trunks are told what only null pairs could teach them"),
        ("departures.py", "told = z if self.training or not", "told = z if not", "the trunks learn nothing of a target without its cell type's part"),
        ("departures.py", "(model.control_fraction.mean() if discrete else 1.0)", "model.control_fraction.mean()",
         "one bridge alone: its loss counts every gene, the prior only those that are on"),
        ("departures.py", "0.0 if dosed else settings.prior", "settings.prior", "drugs get the genes' prior"),
        ("departures.py", "return logit + self.evidence(t, d, cell_type) if self", "return logit - self.evidence(t, d, cell_type) if self",
         "the gene's own state counts against it"),
        ("departures.py", "self.gate(t) * (moved - t * condition.level)", "self.gate(t) * moved", "the gate's prior mean does not move with time"),
        ("departures.py", "(self.control_level if self.settings.discrete else self.control_mean)", "self.control_mean",
         "the mean with zeros instead of the mean if expressed"),
        ("departures.py", "gene >= 0, -self.control_mean[cell_type, gene]", "gene >= 0, self.control_mean[cell_type, gene]", "sign of the knock-down"),
        ("departures.py", "signal = torch.where(held == 1, held, signal @ W.T)", "signal = torch.where(held == 1, held, signal @ W)",
         "messages run against the edges"),
        ("departures.py", "signal = torch.where(held == 1, held, signal @ W.T)", "signal = signal @ W.T", "the silenced gene answers to its regulators"),
        ("departures.py", "(R.abs() > threshold)", "(R > threshold)", "negative co-expression is not an edge"),
        ("departures.py", "seen = ~(knock[:, part] != 0).any(1)", "seen = ~(knock[:, part] != 0).all(1)", "folds of two leak their knock-downs"),
        ("departures.py", "/ max(len(z) * (len(z) - 1), 1)", "/ max(len(z) - 1, 1)", "the spread of one memory, not of the mean"),
        ("departures.py", "effects[part] = fit[part]", "pass", "a target's row has seen its own knock-down"),
        ("departures.py", "settled = torch.linalg.inv(torch.eye(P).to(S) - edges[nodes])", "settled = torch.eye(P).to(S) + 0 * edges[nodes]",
         "targets do not act on each other"),
        ("departures.py", "known, known_pair = known & ~hide, known_pair & ~hide & ~hide_pair", "known_pair = known_pair & ~hide_pair",
         "the memory is never hidden, so the network never has to explain anything"),
        ("departures.py", "z = torch.where(known[:, None], self.target(p), unknown)", "z = self.target(p)", "unseen targets get an untrained memory"),
        ("departures.py", "state = torch.cat([state * d, d], 1)", "state = torch.cat([state, d], 1)", "silent genes' drawn levels are shown"),
        ("departures.py", "return mean * (1 - chance /", "return mean * (1 + chance /", "shrinkage that expands"),
        ("departures.py", "torch.sigmoid(slope.exp() * (torch.log10", "torch.sigmoid(-slope.exp() * (torch.log10", "more drug, less effect"),
    ],
    "test_real_files.py": [
        ("data.py", "counts = counts and all((part == np.round(part)).all() for part in np.array_split(X.data, 1 + X.nnz // 2 ** 24))", "counts = counts", "log1p data are logged again"),
        ("data.py", 'return "+".join(sorted(set(parts))) or CONTROL', 'return "+".join(parts) or CONTROL', "A+B and B+A are two perturbations"),
        ("data.py", '    if screen.kind == "gene":\n        return "+".join(sorted({', '    if True:\n        return "+".join(sorted({', "a drug called (+)-JQ1 is sorted like a pair"),
        ("data.py", 'or screen.kind == "drug" and targets_of(p, "drug")[0][0] == perturbation', "", "a drug's name alone means no dose"),
        ("data.py", "if name.endswith(f\"@{t}\")", "if name.split('@')[-1] == t.split('+')[0]", "cell types with a + in the name"),
        ("data.py", "held_out = {key for key in conditions if out[screen.groups[key]].all()}", "held_out = {key for key in conditions if out[screen.groups[key]].any()}",
         "one test cell holds out a condition"),
        ("files.py", 'X = f.get(f"layers/{layer}" if layer else "X")', 'X = f.get("X")', "--layer is ignored"),
        ("files.py", "range(0, max(1, X.shape[0] if rows is None else len(rows)), 4096)", "range(0, 1, 4096)", "a matrix ends after a block"),
        ("data.py", "(control|ctrl)\\d*|nontargeting", "(control|ctrl)\\d*|non-targeting", "hyphens are gone before labels are compared"),
        ("data.py", 'CELL_TYPE_COLUMNS = ("cell_type", "cell_line", "celltype"', 'CELL_TYPE_COLUMNS = ("cell_type", "celltype", "cell_line"',
         "scPerturb's tissue instead of its cell line"),
    ],
    "test_files.py": [
        ("files.py", "n += part.nnz", "n = part.nnz", "the third block lands on the second"),
        ("files.py", "mapped, ends, n = 8 * most > in_memory()", "mapped, ends, n = False", "nothing is ever left on disk"),
        ("files.py", "part.eliminate_zeros()", "pass", "stored zeros count as expressed"),
        ("files.py", "part.check_format(full_check=True)", "pass", "a corrupt matrix is believed"),
        ("sample.py", "groups = [rows[::thin] for rows in groups]", "groups = [rows[:len(rows) // thin] for rows in groups]", "tables hold the first cells only"),
    ],
    "test_unseen.py": [
        ("train.py", "groups.items() if p != data.CONTROL] or [math.inf]", "groups.items()]", "controls count as a condition of the prior"),
        ("departures.py", "self.from_structure(self.structure[p]), unknown)", "unknown, unknown)", "structures are not used"),
        ("departures.py", "known, known_pair = known & ~hide, known_pair & ~hide & ~hide_pair", "known, known_pair = known & ~hide, known_pair & ~hide",
         "the part for the cell type never drops out by itself"),
        ("departures.py", "torch.log10(dose.clamp_min(1e-12)) - self.usual_dose - middle", "dose - middle", "the dose enters without its logarithm"),
        ("departures.py", "- self.usual_dose - middle", "- middle", "doses in nM all saturate"),
        ("departures.py", "slope.exp() * (torch.log10", "slope * (torch.log10", "a Hill curve may fall"),
        ("data.py", 'table = pd.read_csv(path, index_col=0)', 'pd.read_csv(path, index_col=0)', "--drug-embedding is read and dropped"),
        ("train.py", "model.encoder.structure[model.targets.index(drug)] = ", "model.encoder.structure[0] = ", "every structure is the first drug's"),
        ("toy_data.py", "(half_way[which] / dose) ** slope[which]", "(dose / half_way[which]) ** slope[which]", "more of a drug does less"),
        ("sample.py", "doses = {p for p in seen if data.targets_of(p, \"drug\")[0][0] == perturbation}", "doses = set()", "a drug's name alone asks for dose 1"),
        ("sample.py", "or groups_of(screen) != content[\"groups\"]", "", "a file whose conditions changed is sampled as if it had not"),
        ("baselines.py", "len(its.keys() - wanted.keys()), round(dose", "round(dose", "a pair stands in for a single gene"),
    ],
    "test_data.py": [
        ("data.py", "scale = np.median(total[total > 0])", "scale = np.mean(total[total > 0])", "Scanpy normalises to the median library"),
        ("data.py", "np.log1p(part * np.repeat(", "np.log(part * np.repeat(", "log of a normalised count instead of log1p"),
        ("data.py", "dispersion = np.log(np.where(variance > 0, variance / mean, np.nan))", "dispersion = -np.log(np.where(variance > 0, variance / mean, np.nan))",
         "the least variable genes are kept"),
        ("data.py", "rank = np.where(np.isin(screen.genes, list(targets)), np.inf,", "rank = np.where(np.isin(screen.genes, list(targets)), -np.inf,",
         "perturbed genes are thrown out first"),
        ("data.py", "held = {p for p in genes_of if genes_of[p] & chosen}", "held = {p for p in genes_of if genes_of[p] <= chosen}",
         "pairs with a held-out gene leak into training"),
        ("sample.py", "start, count = np.where(silent, start[-1], start), np.where(silent, count[-1], count)", "pass",
         "a gene silent in a population has nothing to draw"),
        ("data.py", "return {key: rows for key, rows in self.groups.items() if key not in self.held_out}", "return dict(self.groups)",
         "held-out cells are trained on"),
        ("sample.py", "offset = np.cumsum([0] + [t.nnz for t in tables[:-1]])", "offset = np.cumsum([t.nnz for t in tables])",
         "draws come from the next population"),
    ],
    "test_evaluate.py": [
        ("evaluate.py", "(1 if squared else 0.5)", "(0.5 if squared else 1)", "root and square exchanged"),
        ("evaluate.py", "- mean_kernels(x, x, kernels, True) -", "- mean_kernels(x, x, kernels) -", "biased: a cell's distance to itself counts"),
        ("evaluate.py", "return 2 * mean_kernels(x, y, kernels)", "return mean_kernels(x, y, kernels)", "the cross term counted once"),
        ("evaluate.py", "kernels, True) if own is None else own)", "kernels, True) if own is None else 0)", "the table's distances lack the spread of the measured cells"),
        ("evaluate.py", "two_sample(a, b, kernels[genes], own[genes])", "two_sample(a, b, kernels[genes], own[\"all\"])",
         "the spread of all genes taken for that of the DE genes"),
        ("evaluate.py", "x, y, n, m = np.sort(x, 0), np.sort(y, 0)", "x, y, n, m = np.sort(x, 1), np.sort(y, 1)", "genes sorted within cells"),
        ("evaluate.py", "gap -= y[edges[:-1] // n]", "gap -= y[edges[:-1] // m % m]",
         "quantiles of unequal samples misaligned"),
        ("evaluate.py", "return 1 - (score - floor) / (control - floor)", "return (score - floor) / (control - floor)", "the gap left instead of the gap closed"),
        ("evaluate.py", "correlation((x > 0).mean(0), (y > 0).mean(0))", "correlation(x.mean(0), y.mean(0))", "correlation of means instead of activation"),
        ("evaluate.py", "ranked = np.argsort(-welch_t(measured, control_moments)", "ranked = np.argsort(welch_t(measured, control_moments)",
         "the twenty genes that change least"),
        ("evaluate.py", 'rivals["floor"] = measured[order[half:half + size]]', 'rivals["floor"] = target', "the floor scored against itself"),
        ("evaluate.py", 'rivals["floor"] = measured[order[half:half + size]]', 'rivals["floor"] = measured[rng.permutation(len(measured))[:half]]',
         "the floor shares cells with the half that it is scored against"),
        ("evaluate.py", "counts=False)[0][:, [where[g] for g in names]]", "counts=False)[0][:, sorted(where[g] for g in names)]", "genes compared with other genes"),
        ("evaluate.py", "(values.trace(offset=start, dtype=np.float64) if within else 0)", "0", "biased: a cell's distance to itself counts"),
        ("evaluate.py", "values.trace(offset=start, dtype=np.float64)", "values.trace(dtype=np.float64)", "from the second block on, the wrong distances are left out"),
        ("evaluate.py", "rooted(energy, squared), emd(a, b)", "rooted(energy), emd(a, b)", "--squared has no effect"),
        ("evaluate.py", "return -two_sample(", "return two_sample(", "sign of MMD^2"),
        ("evaluate.py", "return correlation(x.mean(0) - reference, y.mean(0) - reference)", "return correlation(x.mean(0), y.mean(0))",
         "cells correlate whatever a perturbation does"),
        ("evaluate.py", "np.mean((far < own) + 0.5 * (far == own))", "np.mean(far < own)", "a prediction that tells nothing apart looks perfect"),
        ("evaluate.py", "better = (model - x) * (-1 if metric in DISTANCES else 1)", "better = model - x", "farther counts as better"),
        ("evaluate.py", "stats.binomtest(entry[\"beaten_in\"], contested)", "stats.binomtest(entry[\"beaten_in\"], len(x))", "ties count against the model"),
        ("evaluate.py", "if k[1] == key[1] and k != key))", "if k[1] == key[1]))", "the true condition competes with itself"),
        ("evaluate.py", "controls[rng.permutation(len(controls))[:len(measured)]]", "controls[rng.integers(0, len(controls), len(measured))]", "controls drawn twice"),
        ("evaluate.py", "size = min(half, *(len(x) for x in methods.values() if x is not None))", "size = half", "few predicted cells look worse than they are"),
        ("evaluate.py", "list(screen.training_groups().values())))[:500]", "list(screen.groups.values())))[:500]", "held-out cells set the kernel's width"),
        ("evaluate.py", "int(((better > 0) | (better < 0)).sum())", "int((better != 0).sum())", "an undefined score counts against the model"),
        ("figures.py", "{entry['mean']:.3f} ± {entry['sd']:.3f}", "{entry['sd']:.3f} ± {entry['mean']:.3f}", "mean and deviation exchanged"),
        ("evaluate.py", "equal_var=False", "equal_var=True", "Student's t where Welch's is meant"),
    ],
    "test_baselines.py": [
        ("baselines.py", "np.bincount(nodes, -level[t]", "np.bincount(nodes, level[t]", "a knock-down that raises its target"),
        ("baselines.py", "return np.asarray(S, np.float64) / cells, cells", "return np.asarray(S, np.float64), cells", "a sum of squares for a covariance"),
        ("baselines.py", "return shifted(x0, -sum(", "return shifted(x0, sum(", "a knock-out that raises"),
        ("baselines.py", "if len(alone) < 2 or not all(alone)", "if not any(alone)", "a sum with a target missing"),
        ("baselines.py", "return shifted(x0, sum(np.mean(", "return shifted(x0, 0.5 * sum(np.mean(", "the mean of two effects in place of their sum"),
        ("baselines.py", "means - means.mean(0)", "means", "the first component is the level, not what differs"),
        ("baselines.py", "G.T @ (Y - b[:, None]) @ P.T", "G.T @ Y @ P.T", "the mean shift is predicted twice"),
        ("baselines.py", "rows in screen.training_groups().items()}\n    return", "rows in screen.groups.items()}\n    return", "held-out cells are looked at"),
        ("baselines.py", "moved = (start @ W.T - start)", "moved = (start @ W - start)", "LAOT's map transposed"),
        ("baselines.py", "np.where(x0 > 0, np.maximum(x0 + shift, 0), 0)", "np.maximum(x0 + shift, 0)", "silent genes are switched on by a shift"),
    ],
    "test_ablation.py": [
        ("departures.py", "dT if settings.discrete else torch.ones_like(dT)", "dT", "without the discrete bridge silent genes are trained by nothing"),
        ("departures.py", "settings.discrete * activation_loss", "activation_loss", "the ablated bridge is trained all the same"),
        ("departures.py", "level * d if settings.discrete else level", "level * d", "the ablated bridge masks all the same"),
        ("departures.py", "state = torch.cat([state, d * (x -", "state = torch.cat([state, (x -", "draws of silent genes leak into the coupled bridge"),
    ],
    "test_trackability.py": [
        ("baselines.py", "middle, half = (G[i, i] + G[j, j]) / 2, np.hypot((G[i, i] - G[j, j]) / 2, G[i, j])", "middle, half = (G[i, i] + G[j, j]) / 2, np.abs(G[i, j])",
         "eigenvalues of a Gram matrix as if all cells had one length"),
        ("baselines.py", "np.sqrt(room / (2 * len(x))), np.sqrt(room / 2), pdist(x).min() / 2", "np.sqrt(room / (2 * len(x))), np.sqrt(room / 2), pdist(x).min()",
         "cells may move their whole distance"),
        ("baselines.py", "xT @ moved.T, maximize=True", "xT @ moved.T", "the dearest assignment"),
        ("baselines.py", "moved = x0 @ W.T", "moved = x0 @ W", "the map is applied transposed"),
        ("baselines.py", "W = (inverse[:, order] @ xT).T", "W = (inverse @ xT).T", "W is fitted to cells in the wrong order"),
        ("toy_data.py", "return rng.normal(0, d ** -0.5, (n, d)), E / np.linalg.norm(E)", "return rng.normal(0, 1, (n, d)), E / np.linalg.norm(E)",
         "cells of length sqrt(d)"),
    ],
    "test_toy_data.py": [
        ("toy_data.py", "spread, targets = np.linalg.inv(np.eye(n_genes) - W)", "spread, targets = np.eye(n_genes) + W.T", "effects travel one edge, backwards"),
        ("toy_data.py", "mean * rng.gamma(1 / dispersion, dispersion, mean.shape)", "mean", "Poisson instead of negative binomial"),
        ("toy_data.py", "shift = np.where(penetrant[:, None], effect.T[which], 0)", "shift = effect.T[which]", "controls and escaped cells are knocked down too"),
        ("toy_data.py", "map(np.exp, (log_rate + shift, log_rate))", "map(np.exp, (log_rate + shift, log_rate + shift))",
         "the counterfactual is perturbed"),
    ],
}


def scratch_copy(folder, edit):
    """The project's Python files in a folder, with the edit applied. Raises ValueError if its old text is not there exactly once."""
    for name in os.listdir(ROOT):
        if name.endswith(".py"):
            shutil.copy(f"{ROOT}/{name}", folder)
    shutil.copytree(f"{ROOT}/tests", f"{folder}/tests", ignore=shutil.ignore_patterns("__pycache__"))
    if edit:
        name, old, new, _ = edit
        with open(f"{folder}/{name}", "r+") as f:
            text = f.read()
            if text.count(old) != 1:
                raise ValueError(f"old text stands {text.count(old)} times")
            f.seek(0)
            f.write(text.replace(old, new))
            f.truncate()


late = []


def too_long(*_):
    late.append(True)
    raise TimeoutError("this edit runs for ever, or its tests are slow")


def run(task):
    """(task, verdict, seconds) of one edit, or of none, in a scratch copy; in a process of its own that has torch already."""
    tests, edit = task
    began = time.time()
    with tempfile.TemporaryDirectory() as folder, open(os.devnull, "w") as nowhere:
        try:
            scratch_copy(folder, edit)
        except ValueError as e:
            return task, str(e), 0.0
        os.chdir(folder)
        sys.path[:0] = [folder, f"{folder}/tests"]
        sys.dont_write_bytecode = True
        torch.set_num_threads(1)
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(300)
        late.clear()
        with contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", f"{folder}/tests/{tests}"]))
        os.chdir(ROOT)
    if late:                                                               # caught or not, nobody knows
        return task, "too long", time.time() - began
    verdict = {0: "survived" if edit else "passes", 1: "killed" if edit else "FAILS"}.get(code, f"broken: pytest ended with {code}")
    return task, verdict, time.time() - began


def main(word="", tested=False):
    """Run all edits that hold the word; returns 1 if one was not killed. tested: the tests are known to pass without any edit."""
    hypothesis.settings.register_profile("mutants", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate], derandomize=True,
                                         database=None, deadline=None)     # finding a failure is enough: no shrinking
    hypothesis.settings.load_profile("mutants")
    edits = [(tests, edit) for tests, rows in MUTANTS.items() for edit in rows if word.lower() in " ".join(edit).lower()]
    tasks = [(tests, None) for tests in dict.fromkeys(tests for tests, _ in edits) if not tested] + edits
    bad = not edits
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        for (tests, edit), verdict, seconds in pool.imap_unordered(run, tasks, chunksize=1):
            bad += verdict not in ("killed", "passes")
            print(f"{verdict:>10}  {seconds:4.0f} s  {tests}  {f'{edit[0]}: {edit[3]}' if edit else 'without any edit'}", flush=True)
    print(f"{len(edits)} edits, all killed" if not bad else f"{bad} of {len(tasks)} runs did not end as they should")
    return min(bad, 1)


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--tested"]
    sys.exit(main(*words[:1], tested="--tested" in sys.argv))
