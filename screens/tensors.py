"""From a screen's sparse rows to tensors on a device.

torch takes a second to load, so it is loaded by the first tensor: reading a file makes none.

Axes: C cells, N genes, B cells in a batch.
"""

import math

import numpy as np

from screens.command_line import InputError
from screens.files import in_memory
from screens.labels import targets_of

# ---- Devices -------------------------------------------------------------------------------------


def check_device(device):
    """Raise an InputError if a device, such as "cuda", is not available here."""
    import torch

    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # every kind of device has an error of its own
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--device {device}: not available here ({reason}); use --device cpu"
        ) from error


def to_device(device, values, dtype=None):
    """A tensor on a device of what the host knows.

    To a GPU it goes from page-locked memory: the host does not wait until it has arrived.
    """
    import torch

    tensor = torch.as_tensor(values, dtype=dtype)
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


# ---- Cells ---------------------------------------------------------------------------------------


class Cells:
    """The cells of a sparse matrix X (C, N), as dense batches (B, N) float32 on a device.

    cells(rows) is the batch of the cells with these row numbers. On a GPU that can hold X, X stays
    there (`settle`) and batches are made there, so that only row numbers travel.
    """

    def __init__(self, X, device):
        import torch

        self.X = X
        self.device = torch.device(device)
        self.resident = False
        if self.device.type == "cuda":
            free_bytes = torch.cuda.mem_get_info(self.device)[0]
            if 8 * X.nnz < 0.5 * free_bytes:
                self.settle()

    def settle(self):
        """Put X on the device, as the arrays of its CSR form."""
        import torch

        self.resident = True
        self.lengths = np.diff(self.X.indptr)
        self.start = torch.from_numpy(self.X.indptr[:-1]).to(self.device)
        self.count = torch.from_numpy(self.lengths).to(self.device)
        self.columns = torch.from_numpy(self.X.indices).to(self.device)
        self.values = torch.from_numpy(self.X.data).to(self.device)

    def __call__(self, rows):
        if not self.resident:
            return to_device(self.device, self.X[rows].toarray())
        import torch

        total = int(self.lengths[rows].sum())  # on the host, so as not to wait for the device
        rows = to_device(self.device, rows)
        count = self.count[rows]
        cell = torch.repeat_interleave(count, output_size=total)  # of each value
        # Where a cell's values begin in X, less where they begin in the batch.
        offset = self.start[rows] - (count.cumsum(0) - count)
        place = torch.arange(total, device=self.device) + offset[cell]
        batch = torch.zeros(len(rows), self.X.shape[1], device=self.device)
        return batch.index_put_((cell, self.columns[place].long()), self.values[place])


def active_values(X, groups):
    """Every gene's non-zero values in every group, for draws of a level if expressed.

    X (C, N) sparse; groups: P arrays of row numbers. Returns (start, count), each (P, N), and
    values: values[start[p, i] : start[p, i] + count[p, i]] are gene i's in group p. A gene that is
    silent in a group borrows its values in all the groups together, which stand last in `values`;
    one that is silent everywhere has count 0. Where all this would take more than `in_memory`,
    every second (third …) cell of each group has to do.
    """
    n_cells = sum(len(rows) for rows in groups)
    n_bytes = 24 * n_cells * X.nnz / X.shape[0]  # 24 a value, for a moment
    thin = max(1, math.ceil(n_bytes / in_memory()))
    groups = [rows[::thin] for rows in groups]
    by_gene = [X[rows].tocsc() for rows in [*groups, np.concatenate(groups)]]
    lengths = [table.nnz for table in by_gene]
    offsets = np.cumsum([0, *lengths[:-1]])
    count = np.stack([np.diff(table.indptr) for table in by_gene]).astype(np.int64)
    start = np.stack(
        [table.indptr[:-1] + offset for table, offset in zip(by_gene, offsets, strict=True)]
    ).astype(np.int64)
    silent = count == 0
    start = np.where(silent, start[-1], start)
    count = np.where(silent, count[-1], count)
    values = np.concatenate([table.data for table in by_gene])
    return start[:-1], count[:-1], values


# ---- Conditions ----------------------------------------------------------------------------------


def condition_arrays(conditions, targets, cell_types, kind):
    """Conditions as numbers: target (Q, M), dose (Q, M) float32 and cell type (Q,).

    conditions: Q of (perturbation, cell type); targets, cell_types: the names that the numbers
    stand for; kind: "gene" or "drug". M is the most targets that a condition has, and at least 1;
    where a condition has fewer, the target is -1 and the dose 1.
    """
    number_of = {name: i for i, name in enumerate(targets)}
    named = [targets_of(perturbation, kind) for perturbation, _ in conditions]
    shape = len(named), max([1, *[len(one) for one in named]])
    target = np.full(shape, -1, np.int64)
    dose = np.ones(shape, np.float32)
    for row, one in enumerate(named):
        for column, (name, its_dose) in enumerate(one):
            target[row, column] = number_of[name]
            dose[row, column] = its_dose
    cell_type = np.array([cell_types.index(name) for _, name in conditions], np.int64)
    return target, dose, cell_type
