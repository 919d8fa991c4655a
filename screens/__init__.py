"""Perturbation screens: h5ad files in and out, and all that is known of a screen.

    screen.py        Screen; prepare, from a file to a screen with its split and its genes
    files.py         h5ad files, read in blocks and written whole or not at all
    public.py        public screens by name, downloaded once
    labels.py        what a file's columns mean: controls, perturbations, doses, cell types
    normalise.py     counts to log1p
    split.py         which conditions are held out; what the name of a condition means
    genes.py         which genes are kept
    statistics.py    means, fractions, covariances, effects of knock-downs
    drugs.py         structures of drugs
    networks.py      a user's gene network
    tensors.py       rows of a screen as tensors; all that needs torch
    limits.py        what numbers may be, and what form plain values must have
    command_line.py  errors in one line, and a clean stop, for all scripts

`python -m screens file.h5ad` says what is understood of a file.
"""

from screens.command_line import (
    ONE_LINE,
    STOPPED,
    InputError,
    check_effects,
    check_plain,
    in_one_line,
    run_script,
    some,
)
from screens.drugs import fingerprints, structures
from screens.files import (
    blocks,
    check_folder,
    in_memory,
    open_h5ad,
    read_log,
    read_table,
    save,
    stacked,
    write_h5ad,
)
from screens.genes import choose_genes, describe_genes, seurat_dispersion, take_genes
from screens.labels import CONTROL, did_you_mean, dose_ratios, is_control, targets_of, unlikeness
from screens.limits import SEED, check_limits, flag, from_json, has_form, whole
from screens.networks import read_edges
from screens.normalise import log1p_csr
from screens.public import data_path, downloaded, list_public, public_name
from screens.screen import (
    COLUMNS,
    READING,
    Screen,
    check_reading,
    describe,
    prepare,
    prepare_again,
    read_screen,
    same_screen,
)
from screens.split import at_type, resolve, split
from screens.statistics import (
    control_statistics,
    directions,
    hurdle_shifts,
    knock_downs,
    mean_of,
    mean_shifts,
    population_statistics,
    stated_directions,
    sums_of_cells,
    training_statistics,
    within_covariance,
)
from screens.tensors import Cells, active_values, check_device, condition_arrays, to_device

__all__ = [
    "COLUMNS",
    "CONTROL",
    "ONE_LINE",
    "READING",
    "SEED",
    "STOPPED",
    "Cells",
    "InputError",
    "Screen",
    "active_values",
    "at_type",
    "blocks",
    "check_device",
    "check_effects",
    "check_folder",
    "check_limits",
    "check_plain",
    "check_reading",
    "choose_genes",
    "condition_arrays",
    "control_statistics",
    "data_path",
    "describe",
    "describe_genes",
    "did_you_mean",
    "directions",
    "dose_ratios",
    "downloaded",
    "fingerprints",
    "flag",
    "from_json",
    "has_form",
    "hurdle_shifts",
    "in_memory",
    "in_one_line",
    "is_control",
    "knock_downs",
    "list_public",
    "log1p_csr",
    "mean_of",
    "mean_shifts",
    "open_h5ad",
    "population_statistics",
    "prepare",
    "prepare_again",
    "public_name",
    "read_edges",
    "read_log",
    "read_screen",
    "read_table",
    "resolve",
    "run_script",
    "same_screen",
    "save",
    "seurat_dispersion",
    "some",
    "split",
    "stacked",
    "stated_directions",
    "structures",
    "sums_of_cells",
    "take_genes",
    "targets_of",
    "to_device",
    "whole",
    "training_statistics",
    "unlikeness",
    "within_covariance",
    "write_h5ad",
]
