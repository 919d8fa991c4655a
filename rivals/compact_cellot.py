"""Compact CellOT: CellOT with a quarter of the weights, in an autoencoder's latent space.

Jafari et al. 2026. What is written here is what differs from CellOT.
"""

from rivals.cellot import transport_map
from rivals.scgen import latent_space

COMPACT = {"hidden": (32,) * 3, "slope": 0.0, "weights": (-0.01, 0.01), "positive": True}


def compact_cellot(screen, seed=0, device="cpu", steps=1000, vae_steps=4000):
    """Predict by a small convex network's gradient in the latent space of scGen's autoencoder.

    Of 50 dimensions, standardised; of 512 units a layer and without dropout. W is a softplus, s a
    ReLU, the learning rate 5e-4, and gradients are cut to a norm of 0.5 (the published code cuts
    those of g only). Applies where `cellot` does.
    """
    shape = {"latent": 50, "hidden": 512, "dropout": 0.0}
    encode, decode, vae = latent_space(screen, seed, device, vae_steps, "autoencoder", **shape)
    training = {"steps": steps, "learning_rate": 5e-4, "largest_gradient": 0.5}
    training["desc"] = "Compact CellOT"
    predict = transport_map(
        screen, encode, decode, COMPACT, training, seed, device, standardise=True
    )
    predict.parameters = sum(weights.numel() for weights in vae.parameters())
    return predict
