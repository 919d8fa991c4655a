"""Report: what a person reads and sees of a run.

tables.py    the tables of evaluate.py, as text and Markdown; the paper's own numbers
scores.py    figures of a scoring: violins, maps of cells, means, gap closed
paths.py     figure of the sample paths of both bridges
training.py  figures of the losses and of an ablation
forecast.py  how long a run will take
ablation.py  `train.py --ablate`: variants of the method over seeds
loading.py   Ctrl-C while a script still loads its libraries
style.py     colours, and how a figure is written
"""
