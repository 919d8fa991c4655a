"""scGen: vector arithmetic in the latent space of a variational autoencoder.

Lotfollahi, Wolf and Theis 2019. Axes: B cells in a batch, N genes, d latent dimensions.
"""

import copy
from functools import cache

import numpy as np
import torch
from torch import nn

import screens
from rivals.training import minimise
from rivals.vector_arithmetic import arithmetic

HELD_OUT_CELLS = 2048  # at most, that early stopping looks at


class VAE(nn.Module):
    """An encoder N -> hidden -> hidden -> d and its mirror image, for log1p expression."""

    def __init__(self, genes, latent=100, hidden=800, dropout=0.2):
        super().__init__()
        self.encoder = hidden_layers(genes, hidden, dropout)
        self.mean = nn.Linear(hidden, latent)
        self.log_variance = nn.Linear(hidden, latent)
        self.decoder = hidden_layers(latent, hidden, dropout)
        self.expression = nn.Linear(hidden, genes)

    def encode(self, x):
        """The mean and the log variance (B, d) of z given x (B, N)."""
        h = self.encoder(x)
        return self.mean(h), self.log_variance(h)

    def decode(self, z):
        """The expected expression (B, N) of z (B, d), at least 0."""
        return torch.relu(self.expression(self.decoder(z)))


def hidden_layers(inputs, hidden, dropout):
    """Two layers, each: linear without a bias, batch normalisation, LeakyReLU, dropout."""
    layers = []
    for size in (inputs, hidden):
        layers.append(nn.Linear(size, hidden, bias=False))
        layers.append(nn.BatchNorm1d(hidden))
        layers.append(nn.LeakyReLU())
        layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)


def vae_loss(vae, x, noise, kl_weight=5e-5):
    """Mean over cells of |x - decode(z)|^2 / 2 + kl_weight KL(q(z|x), N(0, I)).

    z = mean + noise times the standard deviation; noise (B, d). With kl_weight 1 this is the
    negative ELBO of x ~ N(decode(z), I), less N/2 log 2 pi.
    """
    mean, log_variance = vae.encode(x)
    z = mean + noise * torch.exp(log_variance / 2)
    squared_error = ((x - vae.decode(z)) ** 2).sum(1)
    kl = (torch.exp(log_variance) + mean**2 - 1 - log_variance).sum(1) / 2
    return (squared_error / 2 + kl_weight * kl).mean()


def train_vae(vae, screen, device, steps, desc, batch=32, patience=10):
    """Train a VAE on all training cells but a tenth; return it in evaluation mode.

    Adam with a learning rate of 1e-3. The loss of that tenth is looked at every epoch, or twenty
    times in all if that is more often. Training stops after `steps`, or after `patience` looks that
    found nothing better; the best weights stay.
    """
    cells = screens.Cells(screen.X, device)
    rows = np.concatenate(list(screen.training_groups().values()))
    rows = rows[torch.randperm(len(rows)).numpy()]
    held_out, rows = np.split(rows, [max(1, len(rows) // 10)])
    held_out = cells(held_out[:HELD_OUT_CELLS])
    between_looks = max(1, min(len(rows) // batch, steps // 20))
    latent = vae.mean.out_features
    best = best_look = np.inf
    best_weights = None

    def loss(step):
        nonlocal best, best_look, best_weights
        look, rest = divmod(step, between_looks)
        if rest == 0:
            vae.eval()
            with torch.no_grad():
                now = vae_loss(vae, held_out, torch.zeros(latent, device=device)).item()
            vae.train()
            if now < best:
                best, best_look, best_weights = now, look, copy.deepcopy(vae.state_dict())
            if look - best_look >= patience:
                return None
        x = cells(rows[torch.randint(len(rows), (batch,)).numpy()])
        return vae_loss(vae, x, torch.randn(batch, latent, device=device))

    minimise(vae.parameters(), loss, steps, 1e-3, desc)
    vae.load_state_dict(best_weights)
    return vae.eval()


def latent_space(screen, seed, device, steps, desc, **shape):
    """encode and decode between cells (n, N) and latent means (n, d), arrays; and their VAE.

    It is trained when one of the two is called first. shape: of `VAE`.
    """
    device = torch.device(device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        vae = VAE(len(screen.genes), **shape).to(device)

    @cache
    def trained():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return train_vae(vae, screen, device, steps, desc)

    def encode(cells):
        network = trained()
        with torch.no_grad():
            return network.encode(to_tensor(cells))[0].cpu().numpy()

    def decode(codes):
        network = trained()
        with torch.no_grad():
            return network.decode(to_tensor(codes)).cpu().numpy()

    def to_tensor(values):
        return torch.as_tensor(values, dtype=torch.float32, device=device)

    return encode, decode, vae


def scgen(screen, seed=0, device="cpu", steps=4000):
    """Predict the decoded sum of a control's latent mean and delta (`arithmetic`).

    The published code takes up to 100 epochs; of 4,000 steps, that is a screen of 1,280 cells.
    Applies where this very perturbation, dose included, was trained on in some cell type.
    """
    encode, decode, vae = latent_space(screen, seed, device, steps, "scGen")
    predict = arithmetic(screen, encode, decode)
    predict.parameters = sum(weights.numel() for weights in vae.parameters())
    return predict
