"""Learned bridges between Gaussians, beside the closed-form Schroedinger bridge.

python -m course.gaussian        a table and a figure, about five minutes on 2 CPU cores
"""

import argparse
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy import stats
from tqdm import tqdm

import screens
from departures import (
    Conditions,
    ImprovedSettings,
    Noise,
    Populations,
    activation,
    model_class,
    pair,
    sample,
)
from report.style import finish
from toy_data import learned_covariance, minibatch_covariance, schrodinger_covariance

PAIRINGS = ("exact", "entropic", "random")
STYLE = {"exact": ("#000000", "o"), "entropic": ("#0072B2", "s"), "random": ("#E69F00", "^")}
LIFT = 10  # far from zero every gene is on, and only the Brownian bridge has anything to learn


def fit_bridge(x0, xT, sigma, steps=1000, batch=256, seed=0):
    """Train the project's own bridge on pairs x0, xT (n, d) of real vectors.

    Returns a sampler, x0 (m, d) -> x_T (m, d). The model is Departures with its skip gate: the best
    endpoint predictor between Gaussians is linear in x_t.
    """
    torch.manual_seed(seed)
    noise = Noise(seed)
    d = x0.shape[1]
    x0 = torch.as_tensor(x0 + LIFT, dtype=torch.float32)
    xT = torch.as_tensor(xT + LIFT, dtype=torch.float32)
    settings = ImprovedSettings(sigma=sigma, if_expressed=False, width=64)
    names = [f"gene{i}" for i in range(d)], ["shift"], ["cell"]
    model = model_class(settings)(settings, *names, conditions=2)
    model.level_scale.copy_(x0.std(0))
    model.describe_cell_type("cell", x0.mean(0), x0.mean(0), np.ones(d), x0.var(0), len(x0))
    both = Conditions(torch.tensor([[-1], [0]]), torch.ones(2, 1), torch.zeros(2).long())
    cells = torch.full((2, 1), float(len(x0)))
    level = torch.stack([x0.mean(0), xT.mean(0)]) / x0.std(0)
    model.encoder.fit(Populations(both, cells, cells.expand(2, d), level), model)
    conditions = Conditions(torch.zeros(1, 1).long(), torch.ones(1, 1), torch.zeros(1).long())
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    cooling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(x0), (batch,), generator=noise.generator)
        start, end = x0[rows], xT[rows]
        which = torch.zeros_like(rows)
        losses = model.loss(
            start, end, activation(start), activation(end), conditions, which, noise
        )
        optimiser.zero_grad()
        sum(losses).backward()
        optimiser.step()
        cooling.step()

    def draw(start):
        start = torch.as_tensor(start + LIFT, dtype=torch.float32)
        _, level = sample(model, start, activation(start), conditions, noise)
        return level.numpy() - LIFT

    return draw


def paired(x0, xT, n, settings, noise):
    """x0 reordered so that row i is the partner of xT[i], from plans over batches of n cells."""
    x0 = torch.as_tensor(x0, dtype=torch.float32)
    xT = torch.as_tensor(xT, dtype=torch.float32)
    partners = []
    for start, end in zip(x0.split(n), xT.split(n), strict=True):
        drawn, _ = pair(end, start, settings, noise)
        partners.append(start[drawn])
    return torch.cat(partners).numpy()


def random_covariances(d, rng):
    """Two random covariances (d, d); 1 in one dimension."""
    if d == 1:
        return np.eye(1), np.eye(1)
    rotations = [stats.ortho_group.rvs(d, random_state=rng) for _ in range(2)]
    S0, S1 = [(Q * rng.uniform(0.5, 1.5, d)) @ Q.T for Q in rotations]
    return S0, S1


def off(A, B):
    """How far A is from B, relative to B."""
    return np.linalg.norm(A - B) / np.linalg.norm(B)


def gaussian(out, seed=0, dimensions=(1, 2, 20), batches=(8, 32, 128, 512), pairs=8192, sigma=1.0):
    """Train bridges on minibatch pairs of two Gaussians and compare them with the closed form.

    Returns a table; the figure goes into the folder `out`.
    """
    rows = []
    rng = np.random.default_rng(seed)
    for d in dimensions:
        S0, S1 = random_covariances(d, rng)
        target = schrodinger_covariance(S0, S1, sigma)
        choices = [(how, n) for how in PAIRINGS for n in batches]
        for how, n in tqdm(choices, f"{d} dimensions"):
            x0 = rng.multivariate_normal(np.zeros(d), S0, pairs)
            xT = rng.multivariate_normal(np.ones(d), S1, pairs)
            settings = ImprovedSettings(sigma=sigma, pairing=how, epsilon="bridge")
            partner = paired(x0, xT, n, settings, Noise(seed))
            C = np.cov(partner.T, xT.T)[:d, d:]
            start = rng.multivariate_normal(np.zeros(d), S0, 20_000)
            end = fit_bridge(partner, xT, sigma, seed=seed)(start)
            joint = np.cov(start.T, end.T)
            in_theory = learned_covariance(C, S0, S1, sigma)
            row = {
                "dimensions": d,
                "pairing": how,
                "batch": n,
                "pairs": along(C, target),
                "bridge": along(joint[:d, d:], target),
                "bridge in theory": along(in_theory, target),
                "pairs off": off(C, target),
                "bridge off": off(joint[:d, d:], target),
                "mean off": np.abs(end.mean(0) - 1).max(),
                "covariance off": off(joint[d:, d:], S1),
            }
            rows.append(row)
    table = pd.DataFrame(rows)
    draw_gaussian(f"{out}/gaussian.png", table)
    return table


def along(C, target):
    """How much of the target there is in a covariance: 1 at the closed form."""
    return (C * target).sum() / (target**2).sum()


def draw_gaussian(path, table):
    """Cross-covariance over batch size, of the pairs (hollow) and the trained bridge (filled)."""
    dimensions = sorted(table["dimensions"].unique())
    figure, panels = plt.subplots(
        1, len(dimensions), figsize=(10, 3.8), sharey=True, layout="constrained", squeeze=False
    )
    for panel, d in zip(panels[0], dimensions, strict=True):
        panel.axhline(1, color="black", linewidth=0.8)
        for how, (colour, marker) in STYLE.items():
            mine = table[(table["dimensions"] == d) & (table["pairing"] == how)]
            theory = "lines: trained bridge in theory" if how == "exact" else None
            panel.plot(mine["batch"], mine["bridge in theory"], color=colour, label=theory)
            panel.plot(
                mine["batch"], mine["bridge"], marker, color=colour, label=f"{how}: trained bridge"
            )
            panel.plot(
                mine["batch"], mine["pairs"], marker + ":", color=colour, mfc="white",
                label=f"{how}: its training pairs",
            )  # fmt: skip
        if d == 1:
            sizes = 2 ** np.arange(3, 10)
            one = schrodinger_covariance(np.eye(1), np.eye(1), 1.0).item()
            known = [minibatch_covariance(n) / one for n in sizes]
            label = "exact pairs in theory (d = 1)"
            panel.plot(sizes, known, "--", color="#777777", label=label)
        title = "1 dimension" if d == 1 else f"{d} dimensions"
        panel.set(xscale="log", xlabel="cells in one plan", title=title, xlim=(6, 700))
        panel.set_xticks([8, 32, 128, 512], ["8", "32", "128", "512"], minor=False)
        panel.minorticks_off()
    panels[0, 0].set_ylabel("Cov(start, end) / closed form")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    finish(figure, path)


def run_experiment(experiment, description):
    """Run an experiment from the command line: print its table, write it and its figure."""
    parser = argparse.ArgumentParser(description=description, **screens.ONE_LINE)
    name = experiment.__name__
    folder = f"runs/{name}"
    parser.add_argument("--out", default=folder, help=f"folder for the numbers ({folder})")
    args = parser.parse_args()
    os.makedirs(args.out, exist_ok=True)
    table = experiment(args.out)
    screens.save(f"{args.out}/{name}.csv", table.to_csv(index=False).encode())
    print(table.to_string(index=False, float_format="{:.3f}".format))
    print(f"all numbers and figures: {args.out}/")


if __name__ == "__main__":
    screens.run_script(lambda: run_experiment(gaussian, __doc__))
