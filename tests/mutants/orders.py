"""Right edits: other random numbers of the same law. The mathematics' tests must not notice them.

So what a student writes may draw in any order, and passes if its law is right.
"""

BRIDGE = (
    "departures.py",
    "    z = noise.normal(x0)\n",
    "    z = -noise.normal(x0)\n",
    "the bridge's noise with the other sign",
)
MIXTURE = (
    "departures.py",
    "    return torch.where(u < t, dT, d0)\n",
    "    return torch.where(u >= 1 - t, dT, d0)\n",
    "the end state where a number is large, not where it is small",
)
PARTNERS = (
    "departures.py",
    "    u = noise.uniform(cumulative[:, -1:]) * cumulative[:, -1:]\n",
    "    u = (1 - 1e-9 - noise.uniform(cumulative[:, -1:])).abs() * cumulative[:, -1:]\n",
    "partners drawn from the plan's other end",
)
TIMES = (
    "departures.py",
    "        t = noise.uniform(x0[:, :1])\n",
    "        noise.uniform(x0)\n        t = noise.uniform(x0[:, :1])\n",
    "the times drawn later",
)
STEP = (
    "departures.py",
    "    z = noise.normal(x)\n    return x + h * bridge_drift",
    "    z = -noise.normal(x)\n    return x + h * bridge_drift",
    "a step's noise with the other sign",
)
JUMPS = (
    "departures.py",
    "    jumps = noise.uniform(d) < h / (1 - t)\n    drawn = (noise.uniform(d) < p_on).to(d)\n",
    "    drawn = (noise.uniform(d) < p_on).to(d)\n    jumps = noise.uniform(d) < h / (1 - t)\n",
    "where a gene would jump to before whether it jumps",
)
FILLED = (
    "departures.py",
    "        nth = (noise.uniform(x) * count).long()",
    "        nth = ((1 - noise.uniform(x)) * count).ceil().long() - 1",
    "the values of silent genes from the list's other end",
)

RIGHT = {
    "maths/test_brownian_bridge.py": [BRIDGE, STEP],
    "maths/test_discrete_bridge.py": [MIXTURE, JUMPS],
    "maths/test_schroedinger_bridge.py": [BRIDGE, PARTNERS, STEP],
    "maths/test_pairing.py": [PARTNERS],
    "maths/test_losses.py": [BRIDGE, MIXTURE, TIMES],
    "maths/test_sampler.py": [STEP, JUMPS],
    "maths/test_if_expressed.py": [FILLED],
    "maths/test_part_one.py": [BRIDGE, TIMES, JUMPS],
}
