"""Every figure of evaluate.py and toy_data.py. Colours are Okabe and Ito's, safe for colour-blind readers, or dark to light."""
import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)

plt.rcParams["text.parse_math"] = False                                     # a $ in a gene's or a cell type's name is a $
MEASURED, PREDICTED, CONTROLS = "#0072B2", "#D55E00", "#9A9A9A"
CONDITIONS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]


# -------------------------------------------------------------------------------------------------------------- scores

def draw_violins(path, screen, row, predicted, n=10):
    """Measured and predicted expression of a condition's top DE genes, split violins (the paper's Fig. 4)."""
    key = next(k for k in predicted if "@".join(k) == row["condition"])
    columns = [int(np.flatnonzero(screen.genes == g)[0]) for g in row["top_genes"][:n]]
    measured, control = (screen.X[r][:, columns].toarray() for r in (screen.groups[key], screen.controls(key[1])))
    figure, axis = plt.subplots(figsize=(9, 3.6), layout="constrained")
    at = np.arange(len(columns))
    for x, side, colour in ((measured, "low", MEASURED), (predicted[key][:, columns].toarray(), "high", PREDICTED)):
        parts = axis.violinplot([jittered(c) for c in x.T], at, widths=0.9, side=side, showextrema=False)
        for body in parts["bodies"]:
            body.set(facecolor=colour, alpha=0.85, edgecolor="white", linewidth=0.5)
        offset = -0.12 if side == "low" else 0.12
        axis.scatter(at + offset, x.mean(0), s=18, color="white", edgecolor=colour, linewidth=1.2, zorder=3)
    axis.hlines(control.mean(0), at - 0.4, at + 0.4, color="black", linewidth=1, linestyle=(0, (2, 2)))
    handles = [plt.Rectangle((0, 0), 1, 1, facecolor=MEASURED), plt.Rectangle((0, 0), 1, 1, facecolor=PREDICTED),
               plt.Line2D([], [], color="black", linewidth=1, linestyle=(0, (2, 2)))]
    figure.legend(handles, ["measured", "predicted", "mean of controls"], frameon=False, ncols=3, loc="outside lower center")
    axis.set_title(f"{row['condition']}: the {len(columns)} genes that change most; circles: means", loc="left")
    axis.set_xticks(at, [str(g) for g in screen.genes[columns]], rotation=35 if len(columns) > 6 else 0, ha="right")
    axis.set(ylabel="expression (log1p)", ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def jittered(values):
    """Values fit for a kernel density: a violin of constants has none."""
    return values if values.std() > 1e-6 else values + np.linspace(0, 1e-2, len(values))


def draw_pca(path, screen, rows, predicted):
    """Measured (left) and predicted (right) cells in the two principal axes of the measured ones; one cell type."""
    key_of = {"@".join(k): k for k in predicted}
    cell_type = key_of[rows[0]["condition"]][1]
    keys = [k for k in (key_of[r["condition"]] for r in rows) if k[1] == cell_type][:len(CONDITIONS)]
    groups = [screen.dense(screen.groups[k]) for k in keys]
    control = screen.dense(screen.controls(cell_type)[:500])
    everything = np.concatenate([control, *groups])
    centre = everything.mean(0)
    axes_ = np.linalg.svd(everything - centre, full_matrices=False)[2][:2].T
    share = ((everything - centre) @ axes_).var(0) / (everything - centre).var(0).sum()
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained")
    for panel, title, cells in ((panels[0], "measured", groups), (panels[1], "predicted", [predicted[k].toarray() for k in keys])):
        panel.scatter(*((control - centre) @ axes_).T, s=9, color=CONTROLS, alpha=0.35, linewidth=0, label="control")
        for (perturbation, _), x, colour in zip(keys, cells, CONDITIONS):
            at = (x - centre) @ axes_
            panel.scatter(*at.T, s=12, color=colour, alpha=0.6, linewidth=0, label=perturbation)
            panel.scatter(*at.mean(0), s=110, marker="X", color=colour, edgecolor="black", linewidth=0.9, zorder=3)
        panel.set(title=title, xlabel=f"PC 1 ({share[0]:.0%} of variance)")
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(f"PC 2 ({share[1]:.0%} of variance)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, title=f"{cell_type}; crosses: means", loc="outside right center", frameon=False, markerscale=1.8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


# ---------------------------------------------------------------------------------------------------------------- toys

STYLE = {"exact": ("#000000", "o"), "entropic": ("#0072B2", "s"), "random": ("#E69F00", "^")}      # dark to light in grey


def draw_gaussian(path, table, known):
    """Cross-covariance over batch size: of the pairs (hollow) and of the trained bridge (filled; line: in theory).

    known: {batch size: exact pairs' in one dimension}."""
    dimensions = sorted(table["dimensions"].unique())
    figure, panels = plt.subplots(1, len(dimensions), figsize=(10, 3.8), sharey=True, layout="constrained")
    for panel, d in zip(panels, dimensions):
        panel.axhline(1, color="black", linewidth=0.8)
        for how, (colour, marker) in STYLE.items():
            mine = table[(table["dimensions"] == d) & (table["pairing"] == how)]
            panel.plot(mine["batch"], mine["bridge in theory"], color=colour, linewidth=1.2,
                       label="lines: trained bridge in theory" if how == "exact" else None)
            panel.plot(mine["batch"], mine["bridge"], marker, color=colour, label=f"{how}: trained bridge")
            panel.plot(mine["batch"], mine["pairs"], marker + ":", color=colour, mfc="white", label=f"{how}: its training pairs")
        if d == 1:
            panel.plot(known.keys(), known.values(), "--", color="#777777", label="exact pairs in theory (d = 1)")
        panel.set(xscale="log", xlabel="cells in one plan", title="1 dimension" if d == 1 else f"{d} dimensions", xlim=(6, 700))
        panel.set_xticks([8, 32, 128, 512], ["8", "32", "128", "512"], minor=False)
        panel.minorticks_off()
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("Cov(start, end) / closed form")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def draw_trackability(path, table, bounds):
    """Recovery over deviation and dimension, uniform and Gaussian E, LAOT and one plan, with the bounds marked."""
    figure, panels = plt.subplots(2, 2, figsize=(10, 6.4), sharex=True, sharey=True, layout="constrained")
    deviations = sorted(table["deviation"].unique())
    at = np.arange(len(deviations))
    for column, kind in enumerate(("uniform", "Gaussian")):
        mine = table[table["kind"] == kind]
        for panel, method in zip(panels[:, column], ("LAOT", "OT pairing")):
            image = panel.pcolormesh(at, sorted(table["dimensions"].unique()),
                                     mine.pivot(index="dimensions", columns="deviation", values=method), cmap="cividis", vmin=0, vmax=1)
            for bound, line in zip(bounds, (":", "--", "-")):
                reached = mine.groupby("dimensions")[bound].mean()
                reached = reached[reached > 0.01]                          # where delta >= 1 a RIP bound says nothing
                panel.plot(np.interp(reached, deviations, at), reached.index, line, marker="o", color="black", mfc="white",
                           markersize=4, label=bound)
            panel.set_title(f"{method}, {kind} E", fontsize=10)
            panel.set_xticks(at, [f"{s:g}" if s < 10 or s % 20 == 0 else "" for s in deviations], rotation=90, fontsize=7)
    for panel in panels[:, 0]:
        panel.set_ylabel("dimensions d")
    for panel in panels[1]:
        panel.set_xlabel("deviation $\\|W - I\\|_F$ (finer steps below 10)", parse_math=True)
    figure.colorbar(image, ax=panels, label="share of cells whose true partner is found", shrink=0.8)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)
