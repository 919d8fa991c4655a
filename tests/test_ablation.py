"""The switches of the ablation do what their names say, and `train.py --ablate` runs, resumes and sums up."""
import os
import sys

import pandas as pd
import pytest
import torch

import toy_data
import train
from departures import ActiveValues, Departures, Settings, joint_loss, sample


def small_model(**changes):
    torch.manual_seed(0)
    model = Departures(Settings(width=16, embedding=4, steps=8, **changes), ["a", "b", "c"], ["a"], ["x"])
    model.add_cell_type("x", [1.0, 0.5, 2.0], [1.5, 1.0, 2.0], [0.6, 0.5, 1.0], 100)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model


def loss_of(model, xT, seed=0):
    values = ActiveValues(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.long), [1.0])
    return joint_loss(model, torch.ones_like(xT), xT, [((), 0)], torch.zeros(len(xT), dtype=torch.long), torch.zeros(len(xT), 2, dtype=torch.long),
                      values, torch.Generator().manual_seed(seed))


def test_without_the_discrete_bridge_one_bridge_answers_for_silent_genes_too():
    """The loss counts them, nothing trains d_theta, and the sampler multiplies by no mask."""
    x = torch.tensor([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0]])
    alone, both = small_model(discrete=False, if_expressed=False), small_model(if_expressed=False)
    level, activation, _ = loss_of(alone, x)
    (level + activation).backward()
    assert activation.item() == 0 and not any(p.grad is not None and p.grad.any() for p in alone.d_trunk.parameters())
    silent = torch.zeros(2, 3)                                             # Eq. 9 has nothing to say of cells that express nothing
    assert loss_of(alone, silent)[0].item() > 0.1 and loss_of(both, silent)[0].item() == 0
    draw = lambda model: sample(model, x.repeat(200, 1), ((), 0), None, torch.Generator().manual_seed(0))     # noqa: E731
    assert torch.equal(*draw(alone)) and not torch.equal(*draw(both))
    assert (draw(alone)[0] >= 0).all() and (draw(alone)[0] > 0).float().mean() > (draw(both)[0] > 0).float().mean()


def test_coupled_activation_looks_at_levels_of_expressed_genes_only():
    t, d, k = torch.full((2, 1), 0.5), torch.tensor([[1.0, 0.0, 1.0]] * 2), torch.zeros(2, dtype=torch.long)
    for coupled in (False, True):
        model = small_model(coupled=coupled)
        model.eval()
        from departures import Encoded
        condition = Encoded(*(part.expand(2, -1) for part in model.encoder([((), 0)], model)))
        logit = lambda x: model.predict_logit(t, torch.tensor([x] * 2), d, k, k, condition)                   # noqa: E731
        assert torch.equal(logit([1.0, 5.0, 2.0]), logit([1.0, 9.0, 2.0]))             # a silent gene's level is a draw
        assert torch.equal(logit([1.0, 5.0, 2.0]), logit([3.0, 5.0, 2.0])) != coupled


def test_ablate_runs_every_variant_over_seeds_once_and_writes_table_and_figure(tmp_path, monkeypatch, capsys):
    toy_data.simulate_screen(30, 4, 500, seed=0).write_h5ad(tmp_path / "s.h5ad")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "ABLATIONS", {"default": "", "random pairing": "--pairing random"})
    monkeypatch.setattr(sys, "argv", ["train.py", "--ablate", "1", "--data", "s.h5ad", "--epochs", "1", "--width=16", "--steps", "3", "--seed", "4"])
    train.main()
    table = pd.read_csv("runs/ablation-s/ablation.csv")
    assert table["name"].tolist() == ["default", "random pairing"] and table["seed"].tolist() == [4, 4]
    assert table["plan information"][0] > 0.2 > 0.01 > abs(table["plan information"][1]) and table["E-distance, all"].notna().all()
    assert os.path.getsize("runs/ablation-s/ablation.png") > 10_000 and "| random pairing |" in open("runs/ablation-s/ablation.md").read()
    settings = torch.load("runs/ablation-s/random-pairing-4/model.pt", weights_only=True)["settings"]
    assert (settings["pairing"], settings["epochs"], settings["width"], settings["seed"]) == ("random", 1, 16, 4)
    written = os.stat("runs/ablation-s/default-4/model.pt").st_mtime_ns
    train.main()
    assert os.stat("runs/ablation-s/default-4/model.pt").st_mtime_ns == written        # what is done is not done again
    monkeypatch.setitem(train.ABLATIONS, "worse", "--no-such-option")
    with pytest.raises(train.data.InputError, match="worse-4 --no-such-option.*unrecognized"):
        train.main()
