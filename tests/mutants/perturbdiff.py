"""Small wrong edits of PerturbDiff and of what trains rivals, which the named tests must catch."""

NETWORK = "rivals/set_diffusion.py"
RIVAL = "rivals/perturbdiff.py"

MUTANTS = {
    "maths/test_perturbdiff.py": [
        (
            NETWORK,
            "        nn.init.zeros_(self.modulation.bias)\n",
            "",
            "the gates are open before training",
        ),
        (
            NETWORK,
            "mlp_gate * self.mlp(",
            "gate * self.mlp(",
            "one gate for both halves of a block",
        ),
        (
            NETWORK,
            "made = self.out(modulated(tokens[:, : x.shape[1]], shift, scale))",
            "made = self.out(modulated(tokens[:, -x.shape[1] :], shift, scale))",
            "the controls' tokens are read in place of the cells'",
        ),
        (
            NETWORK,
            "cells = self.cell(torch.cat([x, earlier], -1))",
            "cells = self.cell(torch.cat([x, x], -1))",
            "no self-conditioning",
        ),
        (
            NETWORK,
            "c = self.time(waves) + self.parts(condition)",
            "c = self.time(waves)",
            "the network is not told the condition",
        ),
        (
            NETWORK,
            "F.relu(kept.sqrt() * x + (1 - kept).sqrt() * made)",
            "F.relu(made)",
            "a cell has to pass through the tokens' width even where nothing is to be changed",
        ),
        (
            NETWORK,
            "return F.relu(kept.sqrt() * x",
            "return (kept.sqrt() * x",
            "expression below 0",
        ),
        (
            NETWORK,
            "pairs = max(1, x.shape[1] * (x.shape[1] - 1))",
            "pairs = x.shape[1] ** 2",
            "biased: a cell's distance to itself counts",
        ),
        (
            NETWORK,
            "return 2 * torch.cdist(x, y).mean((1, 2)) - within",
            "return torch.cdist(x, y).mean((1, 2)) - within",
            "the cross term counted once",
        ),
        (
            NETWORK,
            "        with torch.no_grad():\n            made = model(",
            "        if True:\n            made = model(",
            "training reaches through the earlier prediction",
        ),
        (
            NETWORK,
            "device=device) < 0.5:",
            "device=device) < 0:",
            "sampling hands on predictions that training never saw",
        ),
        (
            NETWORK,
            "condition = condition * (torch.rand(len(x), 1, ",
            "condition = condition * (torch.rand(1, 1, ",
            "the condition is dropped from all sets or from none",
        ),
        (
            NETWORK,
            "noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise",
            "noisy = kept.sqrt() * x + (1 - kept) * noise",
            "a variance taken for a deviation",
        ),
        (
            NETWORK,
            "noise = torch.randn(x.shape, generator",
            "noise = torch.randn(x[:, :1].shape, generator",
            "the cells of a set share their noise",
        ),
        (
            NETWORK,
            "noise = (x - kept[i] ** 0.5 * made) / (1 - kept[i]) ** 0.5",
            "noise = torch.randn_like(x)",
            "not deterministic: noise that belongs to no path",
        ),
        (
            NETWORK,
            "x = kept[i + 1] ** 0.5 * made",
            "x = kept[i] ** 0.5 * made",
            "a step to where it is already",
        ),
        (
            NETWORK,
            "made = denoise(x, made, t)",
            "made = denoise(x, torch.zeros_like(x), t)",
            "the earlier prediction is forgotten between steps",
        ),
        (
            NETWORK,
            "F.relu(untold + guidance * (told - untold))",
            "F.relu(told + guidance * (told - untold))",
            "guidance of 1 exaggerates",
        ),
        (
            NETWORK,
            "torch.linspace(1e-4, 0.02, STEPS)",
            "torch.linspace(1e-4, 0.01, STEPS)",
            "data is left in the last step's noise",
        ),
        (
            RIVAL,
            "return [*screens.targets_of(perturbation, screen.kind), cell_type]",
            "return [*dict(screens.targets_of(perturbation, screen.kind)), cell_type]",
            "every dose of a drug is one",
        ),
        (
            RIVAL,
            "        average.update_parameters(model)\n",
            "",
            "the untrained network predicts",
        ),
        (
            RIVAL,
            "draw_sets(average, controls, told([(perturbation, cell_type)] * n_sets), own)",
            "draw_sets(average, controls, 0 * told([(perturbation, cell_type)] * n_sets), own)",
            "every condition is predicted alike",
        ),
        (
            RIVAL,
            'own.manual_seed(zlib.crc32(f"{seed} {perturbation}@{cell_type}".encode()))',
            "own.manual_seed(int(rng.integers(2**31)))",
            "cells depend on what was predicted before",
        ),
        (
            RIVAL,
            "keys = [key for key in screen.training_groups() if key[0] != CONTROL]",
            "keys = [key for key in screen.groups if key[0] != CONTROL]",
            "trains on held-out cells",
        ),
        (
            RIVAL,
            "* scale).cpu().numpy()",
            ").cpu().numpy()",
            "cells are left in the network's units",
        ),
    ],
    "program/test_trained_rivals.py": [
        (
            "rivals/kept.py",
            'if about.get("fingerprint") == mark:',
            "if about:",
            "cells of another screen are taken",
        ),
        (
            "rivals/kept.py",
            "for part in (X.data, X.indices, X.indptr):",
            "for part in (X.indices, X.indptr):",
            "changed values are not noticed",
        ),
        (
            "rivals/kept.py",
            "json.dumps([screen.fingerprint(), seed])",
            "json.dumps([sorted(map(str, screen.genes)), seed])",
            "another split is not noticed",
        ),
        (
            "rivals/kept.py",
            "json.dumps([screen.fingerprint(), seed])",
            "json.dumps([screen.fingerprint()])",
            "another seed is not noticed",
        ),
        (
            "rivals/kept.py",
            "names = screen.cells[starts[perturbation, cell_type]]",
            "names = screen.cells[: len(starts[perturbation, cell_type])]",
            "the first cells of the file are named as the controls",
        ),
        (
            "evaluate.py",
            "methods[name] = cells[key].toarray() if key in cells else None",
            "methods[name] = cells[key].toarray() if key in cells else x0",
            "where a rival does not apply it scores as the controls do",
        ),
        (
            "evaluate.py",
            "kept_cells(path, name, screen, starts, seed, device)",
            "kept_cells(path, name, screen, starts, 0, device)",
            "the seed does not reach the rivals",
        ),
        (
            "evaluate.py",
            "in_all = [name for name in several[0] if all(name in costs for costs in several)]",
            "in_all = list(several[0])",
            "a rival that some of the pooled runs lack is an error",
        ),
        (
            "report/tables.py",
            "written_costs(costs.get(line[0]))] for line in table.lines]",
            'written_costs(costs.get("model"))] for line in table.lines]',
            "every method costs what the model does",
        ),
        (
            "report/scores.py",
            'best = [name for name in order[::-1] if name != "model"][:5]',
            'best = [name for name in order if name != "model"][:5]',
            "the five worst rivals are shown",
        ),
    ],
}
