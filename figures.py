"""Every figure of the scripts, and the tables of evaluate.py. Colours are Okabe and Ito's, safe for colour-blind readers, or dark to light."""
import glob
import io
import os
import re

import matplotlib
import numpy as np

import data

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)

plt.rcParams["text.parse_math"] = False                                     # a $ in a gene's or a cell type's name is a $
MEASURED, PREDICTED, CONTROLS = "#0072B2", "#D55E00", "#9A9A9A"
CONDITIONS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]


# -------------------------------------------------------------------------------------------------------------- tables

GENE_SETS = ("all", "DE20", "DE40")
TABLES = [                                                                  # (what is shown, of which scores); the first two are the paper's tables 1 and 2
    ("raw", [(m, g) for g in GENE_SETS for m in ("E-distance", "EMD")]),
    ("raw", [(m, g) for m in ("activation PCC", "MMD2") for g in GENE_SETS]),
    ("raw", [("Pearson delta", "all"), ("Pearson delta", "DE20"), ("Pearson delta from mean", "all"), ("DE overlap", "DE20"), ("DE overlap", "DE40"),
             ("discrimination", "all")]),
    ("gap", [(m, g) for g in GENE_SETS for m in ("E-distance", "EMD")]),
    ("wins", [(m, g) for m in ("E-distance", "EMD") for g in ("all", "DE20")] + [("Pearson delta", "all"), ("discrimination", "all")])]
TITLES = {"raw": "mean ± standard deviation over {n} conditions",
          "gap": "gap closed: 0 as far as the control cells, 1 as close as the floor",
          "wins": "conditions in which the model is better, and the p-value of a two-sided sign test"}
SHORT = {"E-distance": "E", "MMD2": "MMD²", "activation PCC": "PCC on", "Pearson delta": "r of Δ", "Pearson delta from mean": "r from mean",
         "discrimination": "discrim."}
CONVENTION = """Measured cells are halved at random, 5 times; every method is scored against the same half, with as many cells as it holds (fewer,
for all, where a method has fewer); the floor is the other half. E: root of the unbiased energy distance; EMD: mean Wasserstein-1 over
genes; MMD²: Gaussian kernel; of log1p, lower is better. PCC on: correlation of the fractions of expressing cells; r of Δ: of mean
changes from the controls; r from mean: from the mean of the training perturbations; overlap: of the genes that change most; discrim.:
rank of the true condition, 0.5 is chance."""
PAPER = {  # arXiv 2511.13124, Tables 1 and 2, Departures: (E, sd), (EMD, sd), (PCC, sd) of all, DE20, DE40; its own split and cells
    "Adamson": {"all": ((.5955, .1212), (.0356, .0053), (.9910, .0078)), "DE20": ((.5028, .1942), (.0953, .0487), (.9515, .0685)),
                "DE40": ((.5243, .2243), (.1013, .0442), (.9493, .0716))},
    "sci-Plex3": {"all": ((.5478, .1461), (.0254, .0051), (.9652, .0690)), "DE20": ((.2764, .1246), (.0623, .0317), (.9437, .0969)),
                  "DE40": ((.2827, .1113), (.0565, .0340), (.9520, .0722))}}


def paper_of(screen):
    """Which of the paper's two data sets a screen is ("Adamson", "sci-Plex3"), by names that no other holds together; or None."""
    targets = {target for p, _ in screen.groups for target in dict(data.targets_of(p, screen.kind))}
    if {"TMEM167A", "HSD17B12", "CREB1"} <= targets and all(t.startswith("K562") for t in screen.cell_types):
        return "Adamson"
    if screen.kind == "drug" and len(targets) > 150 and {"A549", "K562", "MCF7"} <= set(screen.cell_types):
        return "sci-Plex3"
    return None


def grids(summary, rows, paper=None):
    """The tables that a person reads: [(title, header, lines)], all of text. paper: the data set whose published numbers go below ours."""
    n, shown = len(rows), dict(summary)
    if paper:
        shown[f"paper, {paper}"] = {m: {g: {"mean": v[i][0], "sd": v[i][1], "conditions": n} for g, v in PAPER[paper].items()}
                                    for i, m in enumerate(("E-distance", "EMD", "activation PCC"))}
    out = []
    for kind, columns in TABLES:
        columns = [c for c in columns if any(c[1] in scores.get(c[0], {}) for scores in summary.values())]
        lines = [[name, *(_cell(kind, scores.get(m, {}).get(g)) for m, g in columns)] for name, scores in shown.items()]
        out.append((TITLES[kind].format(n=n), ["", *(f"{SHORT.get(m, m)} {g}" for m, g in columns)], [x for x in lines if any(x[1:])]))
    partial = {name: s["E-distance"]["all"]["conditions"] for name, s in summary.items() if s["E-distance"]["all"]["conditions"] < n}
    if partial:
        out[0] = (out[0][0] + "".join(f"; {name}: the {k} that it applies to" for name, k in partial.items()), *out[0][1:])
    if 1 < n <= 8:
        header = ["E-distance, all genes", *(r["condition"] for r in rows)]
        out.append(("each condition", header, [[name, *(f"{r['scores'][name]['E-distance']['all']:.3f}" if name in r["scores"] else "" for r in rows)]
                                               for name in summary]))
    return out


def _cell(kind, entry):
    if entry is None:
        return ""
    if kind == "raw":
        return f"{entry['mean']:.3f} ± {entry['sd']:.3f}"
    if kind == "gap":
        return f"{entry['gap_closed']:.3f}" if "gap_closed" in entry else ""
    return f"{entry['beaten_in']}/{entry['conditions']}, {entry['p']:.1g}" if "p" in entry else ""


def convention(squared):
    return CONVENTION.replace("root of the unbiased", "unbiased") if squared else CONVENTION


def text(tables, squared=False):
    out = [convention(squared), ""]
    for title, header, lines in tables:
        widths = [max(map(len, column)) + 2 for column in zip(header, *lines)]
        out += [title, *("".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]).rstrip() for line in (header, *lines)), ""]
    return "\n".join(out)


def markdown(tables, squared=False):
    out = [convention(squared), ""]
    for title, header, lines in tables:
        out += [f"**{title}**", "", *("| " + " | ".join(line) + " |" for line in (header, ["---"] * len(header), *lines)), ""]
    return "\n".join(out)


def ablation_table(table):
    """Mean ± standard deviation over seeds of every variant (rows of train.ablate), as Markdown, in the order of the table."""
    columns = [c for c in table if c not in ("name", "seed") and table[c].notna().any()]
    by_name = table.groupby("name", sort=False)[columns]
    lines = ["| " + " | ".join([name, *(f"{m:.2f} ± {s:.2f}" for m, s in zip(mean, by_name.std(ddof=0).loc[name]))]) + " |"
             for name, mean in by_name.mean().iterrows()]
    return "\n".join([f"Distances: gap closed. {table['seed'].nunique()} seeds.", "", "| " + " | ".join(["", *columns]) + " |",
                      "| " + " | ".join(["---"] * (len(columns) + 1)) + " |", *lines, ""])


def draw_ablation(path, table):
    """Gap closed by every variant, as the paper's Fig. 6: bars are means over seeds, dots the seeds; the line is the default."""
    names, measures = list(dict.fromkeys(table["name"]))[::-1], ["E-distance, all", "E-distance, DE20", "EMD, all", "EMD, DE20"]
    figure, panels = plt.subplots(1, 4, figsize=(12, 0.9 + 0.27 * len(names)), sharey=True, layout="constrained")
    for panel, measure in zip(panels, measures):
        values = [table.loc[table["name"] == name, measure].to_numpy() for name in names]
        low = min(-0.02, *(-0.3 if v.mean() < -0.3 else v.min() for v in values))
        panel.barh(names, [max(v.mean(), low) for v in values], color=[PREDICTED if name == "default" else "#56B4E9" for name in names])
        for i, v in enumerate(values):
            panel.plot(np.maximum(v, low), [i] * len(v), "o", color="black", markersize=2.5)
            if v.mean() < low:
                panel.text(low, i, f" {v.mean():.1f}", va="center", fontsize=8)
        panel.axvline(table.loc[table["name"] == "default", measure].mean(), color="black", linewidth=0.8, linestyle=(0, (2, 2)))
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xlim(low * 1.1, None)
        panel.set_title(measure, loc="left", fontsize=10)
    figure.supxlabel("gap closed between control cells (0) and another half of the real cells (1); higher is better", fontsize=9)
    finish(figure, path)


# -------------------------------------------------------------------------------------------------------------- scores

def draw_scores(folder, screen, rows, summary, predicted):
    """All figures of a scoring; rows come strongest first."""
    key_of = {"@".join(key): key for key in predicted}
    rows = [{**row, "key": key_of[row["condition"]]} for row in rows]
    for old in glob.glob(f"{glob.escape(folder)}/violin_*.png"):           # of another scoring, perhaps of other conditions
        os.remove(old)
    for i, row in enumerate(rows[:6]):
        draw_violins(f"{folder}/violin_{i + 1}_{re.sub(r'[^A-Za-z0-9_.+@-]', '_', row['condition'])[:100]}.png", screen, row, predicted)
    draw_pca(f"{folder}/pca.png", screen, rows, predicted)
    draw_activation_map(f"{folder}/activation_map.png", screen, rows, predicted)
    draw_means(f"{folder}/mean_change.png", screen, rows, predicted)
    draw_means(f"{folder}/activation.png", screen, rows, predicted, fractions=True)
    draw_gap(f"{folder}/gap_closed.png", rows, summary)


def draw_violins(path, screen, row, predicted, n=10):
    """Measured and predicted expression of a condition's top DE genes, split violins (the paper's Fig. 4)."""
    key = row["key"]
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
    finish(figure, path)


def jittered(values):
    """Values fit for a kernel density: a violin of constants has none."""
    return values if values.std() > 1e-6 else values + np.linspace(0, 1e-2, len(values))


def principal_axes(cells):
    """Centre (N,), two axes (N, 2) and the share of variance along each, of cells (n, N)."""
    centre = cells.mean(0)
    axes = np.linalg.svd(cells - centre, full_matrices=False)[2][:2].T
    return centre, axes, ((cells - centre) @ axes).var(0) / max((cells - centre).var(0).sum(), 1e-12)


def draw_pca(path, screen, rows, predicted):
    """Measured (left) and predicted (right) cells in the two principal axes of the measured ones; one cell type."""
    cell_type = rows[0]["key"][1]
    keys = [row["key"] for row in rows if row["key"][1] == cell_type][:len(CONDITIONS)]
    groups, control = [screen.dense(screen.groups[k]) for k in keys], screen.dense(screen.controls(cell_type)[:500])
    centre, axes, share = principal_axes(np.concatenate([control, *groups]))
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharex=True, sharey=True, layout="constrained")
    for panel, title, cells in ((panels[0], "measured", groups), (panels[1], "predicted", [predicted[k].toarray() for k in keys])):
        panel.scatter(*((control - centre) @ axes).T, s=9, color=CONTROLS, alpha=0.35, linewidth=0, label="control")
        for (perturbation, _), x, colour in zip(keys, cells, CONDITIONS):
            at = (x - centre) @ axes
            panel.scatter(*at.T, s=12, color=colour, alpha=0.6, linewidth=0, label=perturbation)
            panel.scatter(*at.mean(0), s=110, marker="X", color=colour, edgecolor="black", linewidth=0.9, zorder=3)
        panel.set(title=title, xlabel=f"PC 1 ({share[0]:.0%} of variance)")
    panels[0].set_ylabel(f"PC 2 ({share[1]:.0%} of variance)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, title=f"{cell_type}; crosses: means", loc="outside right center", frameon=False, markerscale=1.8)
    finish(figure, path)


def evenly(rows, most=400):
    """At most so many of the rows, spread over all of them."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]


def draw_activation_map(path, screen, rows, predicted):
    """Which genes are on, of measured and predicted cells in one embedding (the paper's Fig. 5): PCA, and UMAP if umap-learn is installed."""
    keys = [row["key"] for row in rows[:2]]
    try:
        import umap
    except ImportError:
        umap = None
    figure, panels = plt.subplots(1 + bool(umap), len(keys), figsize=(4.6 * len(keys) + 0.4, 3.9 * (1 + bool(umap))), layout="constrained", squeeze=False)
    for key, column in zip(keys, panels.T):
        cells = [(screen.dense(evenly(screen.controls(key[1]))), CONTROLS, "control"), (screen.dense(evenly(screen.groups[key])), MEASURED, "measured"),
                 (predicted[key][evenly(np.arange(predicted[key].shape[0]))].toarray(), PREDICTED, "predicted")]
        on = np.concatenate([x > 0 for x, _, _ in cells]).astype(np.float32)
        centre, axes, share = principal_axes(on[:len(cells[0][0]) + len(cells[1][0])])
        maps = [((on - centre) @ axes, [f"PC {i + 1} ({s:.0%} of variance)" for i, s in enumerate(share)])]
        if umap:
            maps.append((umap.UMAP(random_state=0, n_jobs=1, n_neighbors=min(15, len(on) - 1)).fit_transform(on), ["UMAP 1", "UMAP 2"]))
        ends = np.cumsum([0, *(len(d) for d, _, _ in cells)])
        for panel, (at, names) in zip(column, maps):
            for i, (_, colour, label) in enumerate(cells):
                panel.scatter(*at[ends[i]:ends[i + 1]].T, s=10, color=colour, alpha=0.3 if label == "control" else 0.55, linewidth=0, label=label)
            for i, (_, colour, label) in enumerate(cells):
                panel.scatter(*at[ends[i]:ends[i + 1]].mean(0), s=110, marker="X", color=colour, edgecolor="black", linewidth=0.9, zorder=3)
            panel.set(xlabel=names[0], ylabel=names[1])
        column[0].set_title(f"{'@'.join(key)}: genes on or off", loc="left")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, title="crosses: means", loc="outside right center", frameon=False, markerscale=1.8)
    finish(figure, path)


def draw_means(path, screen, rows, predicted, fractions=False):
    """Predicted against measured, a point a gene: change of the mean from the controls, or the fraction of cells that express it."""
    rows = rows[:6]
    columns = min(3, len(rows))
    figure, panels = plt.subplots(-(-len(rows) // columns), columns, figsize=(3.3 * columns + 0.3, 3.2 * -(-len(rows) // columns) + 0.3),
                                  layout="constrained", squeeze=False)
    for panel, row in zip(panels.flat, rows):
        key = row["key"]
        control = np.asarray(screen.X[screen.controls(key[1])].mean(0)).ravel()
        x, y = ((m > 0).mean(0) if fractions else m.mean(0) - control for m in (screen.dense(screen.groups[key]), predicted[key].toarray()))
        strongest = np.isin(screen.genes, row["top_genes"])
        limits = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
        panel.plot(limits, limits, color="black", linewidth=0.8, linestyle=(0, (2, 2)))
        panel.scatter(x[~strongest], y[~strongest], s=9, color=CONTROLS, linewidth=0, label="genes")
        panel.scatter(x[strongest], y[strongest], s=16, color=PREDICTED, linewidth=0, label="the 20 that change most")
        r = np.corrcoef(x, y)[0, 1] if np.ptp(x) > 0 and np.ptp(y) > 0 else np.nan
        panel.set_title(f"{row['condition']}   r = {r:.2f}", loc="left", fontsize=9)
        for i in [] if fractions else np.argsort(-np.abs(x))[:3]:
            panel.annotate(screen.genes[i], (x[i], y[i]), xytext=(4, -3), textcoords="offset points", fontsize=7,
                           ha="left" if x[i] < limits.mean() else "right")
    for panel in list(panels.flat)[len(rows):]:
        panel.set_visible(False)
    what = "fraction of cells expressing" if fractions else "change of mean (log1p)"
    figure.supxlabel(f"measured {what}", fontsize=10)
    figure.supylabel(f"predicted {what}", fontsize=10)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    finish(figure, path)


def draw_gap(path, rows, summary):
    """Gap closed (E-distance, all genes): each method's, sorted, and in each condition (40 at most, from -1.5 to 2), best predicted on top."""
    gap = {name: scores["E-distance"]["all"]["gap_closed"] for name, scores in summary.items() if name not in ("control", "floor")}
    order = sorted(gap, key=gap.get)
    conditions, rows = len(rows), rows[:40]
    values = np.array([[(s["control"] - s.get(name, np.nan)) / (s["control"] - s["floor"]) if s["control"] > s["floor"] else np.nan for name in order]
                       for s in ({m: v["E-distance"]["all"] for m, v in r["scores"].items()} for r in rows)])
    cut, values = np.nanmin(values, initial=0) < -1.5 or np.nanmax(values, initial=1) > 2, values.clip(-1.5, 2)
    at = np.argsort(np.nan_to_num(values[:, order.index("model")], nan=-9))
    figure, panels = plt.subplots(1, 2, figsize=(10, max(3.2, 0.6 + 0.19 * len(rows))), layout="constrained", width_ratios=(1, 1.6))
    colour = {name: CONDITIONS[i % 6] if name != "model" else PREDICTED for i, name in enumerate(sorted(set(order) - {"model"}))} | {"model": PREDICTED}
    panels[0].barh(order, [gap[name] for name in order], color=[colour[name] for name in order])
    for i, name in enumerate(order):
        panels[0].text(max(gap[name], 0) + 0.02, i, f"{gap[name]:.2f}", va="center", fontsize=9)
    panels[0].set_title("all conditions", loc="left")
    panels[1].barh(range(len(rows)), values[at, order.index("model")], color=colour["model"], alpha=0.45, label="model")
    for name, marker in zip([name for name in order if name != "model"], "osD^vPX"):
        panels[1].plot(values[at, order.index(name)], range(len(rows)), marker, color=colour[name], markersize=4.5, label=name)
    panels[1].set_yticks(range(len(rows)), [rows[i]["condition"] for i in at], fontsize=7)
    panels[1].set_title(("each condition" if conditions == len(rows) else f"{len(rows)} of {conditions} conditions") + ", cut at -1.5 and 2" * bool(cut), loc="left")
    panels[1].set_xlim(np.nanmin(values, initial=0) - 0.05, max(1.1, np.nanmax(values, initial=1) + 0.05))
    for panel in panels:
        panel.axvline(1, color="black", linewidth=0.8, linestyle=(0, (2, 2)))
        panel.axvline(0, color="black", linewidth=0.8)
        panel.set_xlabel("E-distance gap closed (dashed: another half of the real cells)", fontsize=8)
    panels[0].set_xlim(min(0, *gap.values()) - 0.05, max(1.1, *gap.values()) + 0.1)
    figure.legend(*panels[1].get_legend_handles_labels(), loc="outside lower center", ncols=7, frameon=False, fontsize=8)
    finish(figure, path)


def draw_paths(path, x, d, genes, condition):
    """Sample paths of three genes, (steps + 1, cells, 3): the Brownian bridge of the level if expressed, and the chain that switches it."""
    time = np.linspace(0, 1, len(x))
    figure, panels = plt.subplots(2, 3, figsize=(10, 5.6), sharex=True, layout="constrained", height_ratios=(1.2, 1))
    for i, (top, bottom) in enumerate(panels.T):
        ends_on = d[-1, :, i] > 0
        for on, colour in ((False, CONTROLS), (True, PREDICTED)):
            lines = x[:, ends_on == on, i]
            top.plot(time, lines[:, :25], color=colour, linewidth=0.7, alpha=0.6)
            top.plot([], [], color=colour, label="cells in which it ends on" if on else "off: the level is not looked at")
        top.plot(time, x[:, :, i].mean(1), color="black", linewidth=2, label="mean of the level if expressed")
        top.set_title(genes[i], loc="left")
        order = np.lexsort((np.abs(np.diff(d[:, :, i], axis=0)).argmax(0), d[-1, :, i], d[0, :, i]))
        bottom.pcolormesh(np.linspace(0, 1, len(x) + 1), np.arange(x.shape[1] + 1), d[:, order, i].T,
                          cmap=matplotlib.colors.ListedColormap(["#EEEEEE", MEASURED]), vmin=0, vmax=1)
        bottom.set(xlabel="time t: 0 control, 1 perturbed", title=f"{d[0, :, i].mean():.0%} of cells on, then {d[-1, :, i].mean():.0%}")
        bottom.title.set_fontsize(9)
    panels[0, 0].set_ylabel("Brownian bridge:\nlevel if expressed (log1p)")
    panels[1, 0].set_ylabel("Markov chain: cells, sorted\n(blue: gene is on)")
    figure.suptitle(f"From control cells to {condition}", x=0.01, ha="left", fontsize=11)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    finish(figure, path)


def draw_loss(path, epoch, endpoint, activation):
    figure, axes = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    for axis, y, title, unit in ((axes[0], endpoint, "Expression bridge (Eq. 9)", "squared error on expressed genes"),
                                 (axes[1], activation, "Activation bridge (Eq. 14)", "cross-entropy (nats per gene)")):
        axis.plot(epoch, y, color=MEASURED, marker="o" if len(epoch) < 3 else None)
        axis.set(title=title, xlabel="epoch", ylabel=unit)
        axis.xaxis.get_major_locator().set_params(integer=True)
    finish(figure, path)


def finish(figure, path):
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    write(figure, path)


def write(figure, path):
    memory = io.BytesIO()
    figure.savefig(memory, dpi=150)
    plt.close(figure)
    data.save(path, memory.getbuffer())                                    # all or nothing, like every other file


# ---------------------------------------------------------------------------------------------------------------- toys

STYLE = {"exact": ("#000000", "o"), "entropic": ("#0072B2", "s"), "random": ("#E69F00", "^")}      # dark to light in grey


def draw_gaussian(path, table, known):
    """Cross-covariance over batch size: of the pairs (hollow) and of the trained bridge (filled; line: in theory). known: {batch size: exact
    pairs' in one dimension}."""
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
    panels[0].set_ylabel("Cov(start, end) / closed form")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    finish(figure, path)


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
    write(figure, path)
