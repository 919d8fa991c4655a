"""Report: what a person reads and sees of a run.

metrics.py      the metrics, each a formula
calibration.py  their positive control, range and ceiling; does a perturbation do anything
tables.py       the tables of evaluate.py, as text and Markdown; the paper's own numbers
genes.py        which genes a condition changes: a table
trust.py        how far to trust a prediction: novelty, expected error
cheats.py       the tables of cheats
scores.py       figures of a scoring: violins, maps of cells, means, gap closed
paths.py        figure of the sample paths of both bridges
training.py     figures of the losses and of an ablation
forecast.py     how long a run will take
ablation.py     `train.py --ablate`: variants of the method over seeds
page.py         report.html, one page that says all of it; page.css is how it looks
verdict.py      what a scoring says, in three sentences
options.py      the command lines of train.py and sample.py
loading.py      Ctrl-C while a script still loads its libraries
style.py        colours, and how a figure is written
"""
