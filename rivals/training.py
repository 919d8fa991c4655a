"""The one training loop of all trained rivals."""

import torch
from tqdm import tqdm


def minimise(
    parameters,
    loss,
    steps,
    learning_rate,
    desc,
    betas=(0.9, 0.999),
    weight_decay=0.0,
    largest_gradient=None,
):
    """Take Adam steps down a loss (Kingma and Ba 2015); return its values, one a step, float32.

    loss(step): a scalar tensor, or None to stop before all steps are taken. Parameters that get no
    gradient from it (requires_grad is off) stay where they are, and so do their moments: two
    networks can take turns. desc: the name on the progress bar. largest_gradient: the norm to which
    all gradients together are cut.
    """
    parameters = list(parameters)
    optimiser = torch.optim.Adam(
        parameters, learning_rate, betas, weight_decay=weight_decay, fused=True
    )
    losses = []
    for step in tqdm(range(steps), desc, leave=False, unit="step"):
        value = loss(step)
        if value is None:
            break
        optimiser.zero_grad()
        value.backward()
        if largest_gradient is not None:
            torch.nn.utils.clip_grad_norm_(parameters, largest_gradient)
        optimiser.step()
        losses.append(value.detach())  # on a GPU, .item() would wait for the device
    return torch.stack(losses).cpu().numpy()
