"""Mistakes that students make, as edits of course/answers.py: the grader must mark each wrong.

MISTAKES is {exercise: [(old text, new text, what is wrong)]}. tests/mutants holds what a typist
gets wrong in the project; these are what somebody gets wrong who is learning it.
"""

MISTAKES = {
    "bridge_sample": [
        (
            "line + variance.sqrt() * noise.normal(x0)",
            "line + variance * noise.normal(x0)",
            "variance for standard deviation",
        ),
        (
            "variance = sigma**2 * t * (1 - t)",
            "variance = sigma * t * (1 - t)",
            "sigma not squared",
        ),
        (
            "variance = sigma**2 * t * (1 - t)",
            "variance = sigma**2 * t",
            "Brownian motion that nothing pins",
        ),
        (
            "line + variance.sqrt() * noise.normal(x0)",
            "line + variance.sqrt() * noise.uniform(x0)",
            "uniform numbers for normal ones: they have another mean, too",
        ),
        (
            "line + variance.sqrt() * noise.normal(x0)",
            "line + (12 * variance).sqrt() * (noise.uniform(x0) - 0.5)",
            "the right mean and variance, but not normal",
        ),
        (
            "line + variance.sqrt() * noise.normal(x0)",
            "line + variance.sqrt() * torch.randn_like(x0)",
            "random numbers that come from elsewhere",
        ),
        (
            "    line = x0 + t * (xT - x0)\n",
            "    torch.manual_seed(0)\n    noise.normal = torch.randn_like\n"
            "    line = x0 + t * (xT - x0)\n",
            "seeding inside the function: the same draw for ever",
        ),
        (
            "line + variance.sqrt() * noise.normal(x0)",
            "line + variance.sqrt() * noise.normal(t)",
            "one random number for all genes of a cell",
        ),
        (
            "line = x0 + t * (xT - x0)",
            "line = x0 + t.mean() * (xT - x0)",
            "one time for all cells",
        ),
        (
            "    line = x0 + t * (xT - x0)\n",
            "    line = x0\n    line += t * (xT - x0)\n",
            "x0 changed in place",
        ),
        (
            "line = x0 + t * (xT - x0)",
            "line = x0 + t**2 * (xT - x0)",
            "a line that is not straight",
        ),
        (
            "line = x0 + t * (xT - x0)",
            "line = x0 + t[0] * (xT - x0)",
            "the first cell's time for all cells",
        ),
        (
            "    return line + variance.sqrt() * noise.normal(x0)",
            "    return (line + variance.sqrt() * noise.normal(x0)).double()",
            "float64 whatever came in",
        ),
    ],
    "bridge_drift": [
        ("time = 1 - t  #", "time = t  #", "the time that has passed for the time that is left"),
        ("way = xT - x\n", "way = x - xT\n", "arguments exchanged"),
        ("return way / time", "return way * time", "multiplied for divided"),
        ("return way / time", "return (way / time).numpy()", "an array where a tensor is due"),
        ("return way / time", "return way // time", "integer division"),
        ("return way / time", "return way.double() / time", "float64 whatever came in"),
    ],
    "endpoint_loss": [
        ("(end[on] - guess[on]) ** 2", "(end - guess) ** 2", "silent genes count"),
        ("(end[on] - guess[on]) ** 2", "(end[on] - guess[on]).abs()", "absolute error"),
        ("(end[on] - guess[on]) ** 2", "end[on] ** 2 - guess[on] ** 2", "square of what?"),
        (
            "cost = squared.mean() if on.any() else squared.sum()",
            "cost = squared.mean()",
            "0 / 0 for a cell that expresses nothing",
        ),
        (
            "cost = squared.mean() if on.any() else squared.sum()",
            "cost = squared.sum()",
            "sum for mean",
        ),
        (
            "cost = squared.mean() if on.any() else squared.sum()",
            "cost = squared.sum() / len(on)",
            "a mean over all genes",
        ),
        (
            "cost = squared.mean() if on.any() else squared.sum()",
            "cost = squared.mean().sqrt() if on.any() else squared.sum()",
            "a root mean square",
        ),
        (
            "        costs.append(cost)\n",
            "        if on.any():\n            costs.append(cost)\n",
            "a cell that expresses nothing is no cell",
        ),
        (
            "return torch.stack(costs).mean()",
            "return ((dT * (xT - predicted) ** 2).sum() / dT.sum())",
            "a mean over all cells' genes together",
        ),
        ("return torch.stack(costs).mean()", "return torch.stack(costs).sum()", "sum for mean"),
        (
            "return torch.stack(costs).mean()",
            "return torch.stack(costs).mean().detach()",
            "nothing can be learnt: no gradient",
        ),
        ("return torch.stack(costs).mean()", "return torch.stack(costs)", "a loss for each cell"),
        (
            "zip(xT, predicted, dT == 1, strict=True)",
            "zip(xT, predicted, xT > 0, strict=True)",
            "levels above 0 for genes that are on",
        ),
        (
            "squared = (end[on] - guess[on]) ** 2",
            "squared = (end - guess * on) ** 2",
            "only the prediction is masked",
        ),
        (
            "return torch.stack(costs).mean()",
            "return torch.stack(costs).double().mean()",
            "float64 whatever came in",
        ),
    ],
    "euler_maruyama_step": [
        (
            "drifted + spread * noise.normal(x)",
            "drifted + spread * noise.normal(x[:, :1])",
            "one random number for all genes of a cell",
        ),
        ("spread = sigma * math.sqrt(h)", "spread = sigma * h", "h for its root"),
        ("spread = sigma * math.sqrt(h)", "spread = sigma**2 * h", "variance for deviation"),
        ("spread = sigma * math.sqrt(h)", "spread = math.sqrt(sigma * h)", "sigma under the root"),
        (
            "spread = sigma * math.sqrt(h)",
            "spread = sigma * math.sqrt(h) if t + h < 1 else 0.0",
            "no noise in the last step",
        ),
        ("x + h * bridge_drift(x, xT, t)", "x + bridge_drift(x, xT, t)", "a step of length 1"),
        (
            "x + h * bridge_drift(x, xT, t)",
            "x + h * bridge_drift(x, xT, t + h)",
            "off by one step: the drift at the end of the step",
        ),
        (
            "x + h * bridge_drift(x, xT, t)",
            "x + h * bridge_drift(xT, x, t)",
            "arguments exchanged",
        ),
        (
            "    drifted = x + h * bridge_drift(x, xT, t)\n",
            "    drifted = x\n    drifted += h * bridge_drift(x, xT, t)\n",
            "x changed in place",
        ),
        (
            "drifted + spread * noise.normal(x)",
            "drifted + spread * 12**0.5 * (noise.uniform(x) - 0.5)",
            "the right mean and variance, but not normal",
        ),
        (
            "drifted + spread * noise.normal(x)",
            "drifted + spread * torch.randn_like(x)",
            "random numbers that come from elsewhere",
        ),
        (
            "return drifted + spread * noise.normal(x)",
            "return (drifted + spread * noise.normal(x)).double()",
            "float64 whatever came in",
        ),
    ],
    "mixture_sample": [
        ("(noise.uniform(d0) < t).to(d0)", "(noise.uniform(d0) > t).to(d0)", "the wrong side"),
        ("(noise.uniform(d0) < t).to(d0)", "(noise.uniform(t) < t).to(d0)", "a coin for a cell"),
        (
            "(noise.uniform(d0) < t).to(d0)",
            "((t > 0.5) & (d0 == d0)).to(d0)",
            "the likelier state instead of a draw",
        ),
        ("(noise.uniform(d0) < t).to(d0)", "t", "the mean of the states for a state"),
        ("(noise.uniform(d0) < t).to(d0)", "(noise.normal(d0) < t).to(d0)", "normal numbers"),
        (
            "return end * dT + (1 - end) * d0",
            "return (end * dT + (1 - end) * d0) == 1",
            "True and False for 1.0 and 0.0",
        ),
        (
            "return end * dT + (1 - end) * d0",
            "return torch.maximum(d0, end * dT)",
            "genes are switched on and never off",
        ),
        (
            "return end * dT + (1 - end) * d0",
            "return (d0 - end).abs()",
            "a gene flips instead of going to its end state",
        ),
        (
            "noise.uniform(d0) < t",
            "torch.rand_like(d0) < t",
            "random numbers that come from elsewhere",
        ),
        (
            "noise.uniform(d0) < t",
            "noise.uniform(d0) <= t",
            "a uniform number of 0 switches at t = 0",
        ),
        (
            "return end * dT + (1 - end) * d0",
            "return (end * dT + (1 - end) * d0).double()",
            "float64 whatever came in",
        ),
        (
            "noise.uniform(d0) < t",
            "noise.uniform(d0) < t[0]",
            "the first cell's time for all cells",
        ),
    ],
    "ctmc_rate": [
        ("p_of_y = y * p_on + (1 - y) * p_off", "p_of_y = 0.5", "p_on is not looked at"),
        ("speed = 1 / (1 - t)", "speed = t / (1 - t)", "kappa for its derivative, as printed"),
        ("speed = 1 / (1 - t)", "speed = 1 / max(t, 1e-6)", "the time that has passed"),
        ("speed = 1 / (1 - t)", "speed = 1 - t", "multiplied for divided"),
        (
            "p_of_y = y * p_on + (1 - y) * p_off",
            "p_of_y = p_on",
            "the probability of on for that of y",
        ),
        ("speed * (p_of_y - same)", "speed * p_of_y", "what leaves a state is forgotten"),
        ("speed * (p_of_y - same)", "speed * (same - p_of_y)", "the wrong sign"),
        (
            "speed * (p_of_y - same)",
            "speed * (1 - same) * p_of_y",
            "the rate of staying is 0: what flows out is not taken off",
        ),
        (
            "return speed * (p_of_y - same)",
            "return (speed * (p_of_y - same)).double()",
            "float64 whatever came in",
        ),
    ],
    "ctmc_step": [
        ("share = h / (1 - t)", "share = h", "the time that is left is forgotten"),
        ("share = h / (1 - t)", "share = h // (1 - t)", "integer division"),
        ("share = h / (1 - t)", "share = h / (1 - t - h + 1e-9)", "off by one step"),
        (
            "on_after = d + share * (p_on - d)",
            "on_after = d + share * p_on",
            "Eq. 17 as printed: nothing is taken from the present state",
        ),
        (
            "return (noise.uniform(d) < on_after).to(d)",
            "return (on_after > 0.5).to(d)",
            "the likelier state instead of a draw",
        ),
        (
            "return (noise.uniform(d) < on_after).to(d)",
            "return on_after",
            "a probability for a state",
        ),
        (
            "return (noise.uniform(d) < on_after).to(d)",
            "return (noise.uniform(d[:, :1]) < on_after).to(d)",
            "one random number for all genes of a cell",
        ),
        (
            "return (noise.uniform(d) < on_after).to(d)",
            "u = noise.uniform(d)\n    return torch.where(u < share, (u < p_on).to(d), d)",
            "one random number for whether and whither",
        ),
        (
            "on_after = d + share * (p_on - d)",
            "on_after = d + share * (p_on.mean() - d)",
            "one probability for all genes",
        ),
        (
            "return (noise.uniform(d) < on_after).to(d)",
            "return torch.bernoulli(on_after.clamp(0, 1))",
            "random numbers that come from elsewhere",
        ),
        (
            "noise.uniform(d) < on_after",
            "noise.uniform(d) <= on_after",
            "a uniform number of 0 switches on what stays off",
        ),
        (
            "return (noise.uniform(d) < on_after).to(d)",
            "return (noise.uniform(d) < on_after).double()",
            "float64 whatever came in",
        ),
    ],
    "activation_loss": [
        ("sign = 1 - 2 * dT", "sign = 2 * dT - 1", "on and off exchanged"),
        (
            "softplus(sign * log_odds).mean()",
            "softplus(sign * log_odds).sum()",
            "sum for mean",
        ),
        (
            "softplus(sign * log_odds).mean()",
            "softplus(sign * log_odds).sum(1).mean()",
            "summed over genes",
        ),
        (
            "return torch.nn.functional.softplus(sign * log_odds).mean()",
            "p = 1 / (1 + torch.exp(-log_odds))\n"
            "    return -(dT * torch.log(p) + (1 - dT) * torch.log(1 - p)).mean()",
            "the logarithm of 0",
        ),
        (
            "return torch.nn.functional.softplus(sign * log_odds).mean()",
            "p = torch.sigmoid(log_odds).clamp(1e-7, 1 - 1e-7)\n"
            "    return -(dT * torch.log(p) + (1 - dT) * torch.log(1 - p)).mean()",
            "clamped: a sure and wrong answer costs 16 and no more",
        ),
        (
            "return torch.nn.functional.softplus(sign * log_odds).mean()",
            "p = torch.sigmoid(log_odds)\n"
            "    return torch.nn.functional.binary_cross_entropy_with_logits(p, dT)",
            "the logistic function twice",
        ),
        (
            "return torch.nn.functional.softplus(sign * log_odds).mean()",
            "return (dT * torch.nn.functional.softplus(-log_odds)).mean()",
            "genes that are off cost nothing",
        ),
        (
            "return torch.nn.functional.softplus(sign * log_odds).mean()",
            "return ((torch.sigmoid(log_odds) - dT) ** 2).mean()",
            "a squared error for a cross-entropy",
        ),
        (
            "softplus(sign * log_odds).mean()",
            "softplus((sign * log_odds).mean())",
            "the loss of the mean for the mean of the losses",
        ),
        (
            "softplus(sign * log_odds).mean()",
            "softplus(sign * log_odds).mean().detach()",
            "nothing can be learnt: no gradient",
        ),
    ],
    "transport_cost": [
        (
            "xT[:, None, :] - x0[None, :, :]",
            "x0[:, None, :] - xT[None, :, :]",
            "rows for columns",
        ),
        ("squared = (difference**2).sum(2)", "squared = (difference**2).mean(2)", "mean for sum"),
        ("squared = (difference**2).sum(2)", "squared = difference.abs().sum(2)", "no squares"),
        ("return squared.sqrt()", "return squared", "the root is forgotten"),
        (
            "return (1 - xT @ x0.T / lengths).clamp(min=0)",
            "return xT @ x0.T / lengths",
            "a similarity for a cost",
        ),
        (
            "return (1 - xT @ x0.T / lengths).clamp(min=0)",
            "return 1 - xT @ x0.T",
            "forgetting to normalise",
        ),
        (
            "lengths = xT.norm(dim=1)[:, None] * x0.norm(dim=1)",
            "lengths = xT.norm() * x0.norm()",
            "one length for all cells",
        ),
        (
            "squared = (difference**2).sum(2)",
            "squared = (xT**2).sum(1)[:, None] + (x0**2).sum(1) - 2 * xT @ x0.T",
            "rounding takes a small difference below 0",
        ),
    ],
    "sinkhorn": [
        ("g = -math.log(m) - torch", "g = -torch", "columns that sum to 1 each: not normalised"),
        ("g = -math.log(m) - torch", "g = -math.log(n) - torch", "rows for columns"),
        (
            "        g = -math.log(m) - torch.logsumexp(log_weight + f[:, None], dim=0)\n",
            "",
            "the columns are never put right",
        ),
        ("log_weight = -C / epsilon", "log_weight = C / epsilon", "the dearest pairs"),
        ("log_weight = -C / epsilon", "log_weight = -C * epsilon", "multiplied for divided"),
        ("for _ in range(iterations):", "for _ in range(1):", "one iteration"),
        (
            "return torch.exp(f[:, None] + g[None, :] + log_weight)",
            "return f[:, None] + g[None, :] + log_weight",
            "the logarithm of the plan",
        ),
        (
            "return torch.exp(f[:, None] + g[None, :] + log_weight)",
            "K = torch.exp(log_weight)\n    u, v = C.new_ones(n), C.new_ones(m)\n"
            "    for _ in range(iterations):\n        u = 1 / n / (K @ v)\n"
            "        v = 1 / m / (K.T @ u)\n    return u[:, None] * K * v",
            "without logarithms: it underflows for a small epsilon",
        ),
        (
            "return torch.exp(f[:, None] + g[None, :] + log_weight)",
            "return torch.softmax(log_weight, 1) / n",
            "a softmax of each row: the columns have any weight",
        ),
        (
            "    log_weight = -C / epsilon\n",
            "    C -= C.min()\n    log_weight = -C / epsilon\n",
            "the costs are changed in place",
        ),
        ("log_weight = -C / epsilon", "log_weight = -C / (2 * epsilon)", "half the cost"),
        (
            "log_weight = -C / epsilon",
            "log_weight = -C / epsilon**2",
            "epsilon squared, as if it were sigma",
        ),
        ("for _ in range(iterations):", "for _ in range(2000):", "iterations that are not counted"),
    ],
    "draw_partners": [
        (
            "passed = (edges <= dart).sum(dim=1)",
            "passed = plan.argmax(dim=1)",
            "the likeliest control instead of a draw",
        ),
        ("(edges <= dart)", "(edges < dart)", "a control of weight 0 is drawn"),
        ("noise.uniform(length) * length", "noise.uniform(length)", "forgetting to normalise"),
        (
            "noise.uniform(length) * length",
            "noise.uniform(length[:1]) * length",
            "one dart for all rows",
        ),
        ("plan.double().cumsum(dim=1)", "plan.double().cumsum(dim=0)", "rows for columns"),
        ("return passed.clamp(", "return passed.double().clamp(", "numbers that are no indices"),
        ("return passed.clamp(", "return (passed - 1).clamp(min=0, ", "off by one"),
        (
            "passed = (edges <= dart).sum(dim=1)",
            "passed = (edges[0] <= dart).sum(dim=1)",
            "the first row's weights for all",
        ),
        (
            "return passed.clamp(max=plan.shape[1] - 1)",
            "return passed",
            "a column that does not exist",
        ),
        (
            "noise.uniform(length) * length",
            "torch.rand_like(length) * length",
            "random numbers that come from elsewhere",
        ),
        (
            "    dart = noise.uniform(length) * length\n",
            "    edges = plan.cumsum(dim=1) / plan.sum(dim=1, keepdim=True)\n"
            "    dart = noise.uniform(edges[:, -1:])\n",
            "divided by a sum that rounding lets differ from the last edge",
        ),
        (
            "noise.uniform(length) * length",
            "noise.uniform(length) * plan.sum()",
            "the sum of the plan for that of the row",
        ),
    ],
    "propagate": [
        ("messages = W @ signal", "messages = W.T @ signal", "rows for columns: against the edges"),
        ("heard = W.abs().sum(dim=1)", "heard = W.abs().sum(dim=0)", "rows for columns"),
        ("heard = W.abs().sum(dim=1)", "heard = W.sum(dim=1)", "weights cancel each other"),
        (
            "heard = W.abs().sum(dim=1)",
            "heard = (W != 0).sum(dim=1)",
            "a plain mean: the weights do not sum to 1",
        ),
        ("mean = messages / heard.masked_fill(deaf, 1)", "mean = messages", "sum for mean"),
        ("heard.masked_fill(deaf, 1)", "heard", "0 / 0 for a gene that hears nobody"),
        ("            mean[node] = 1  #", "            #", "the perturbed gene is let go"),
        ("for _ in range(hops):", "for _ in range(hops - 1):", "off by one hop"),
        ("for _ in range(hops):", "for _ in range(hops + 1):", "off by one hop"),
        (
            "            messages = W @ signal\n",
            "            for j in range(len(W)):\n"
            "                if j != node and not deaf[j]:\n"
            "                    signal[j] = W[j] @ signal / heard[j]\n"
            "            continue\n",
            "in-place update while reading: a message runs through the network in one hop",
        ),
        (
            "        signal[node] = 1\n",
            "        signal[nodes] = 1\n",
            "all genes perturbed together",
        ),
        ("return torch.stack(responses)", "return sum(responses)", "sum of the responses"),
        (
            "            mean[node] = 1  #",
            "            mean[deaf] = signal[deaf]  #",
            "held only where the perturbed gene hears nobody",
        ),
        ("messages = W @ signal", "messages = W.abs() @ signal", "the sign is dropped"),
        (
            "        signal[node] = 1\n",
            "        signal[node] = 1\n        hops = 1\n",
            "one hop, whatever hops says",
        ),
        (
            "    heard = W.abs().sum(dim=1)",
            "    W = W - W.diag().diag()\n    heard = W.abs().sum(dim=1)",
            "a gene's edge to itself is left out",
        ),
        ("mean[node] = 1", "mean[node] = 0.5", "held at another level"),
        (
            "            mean[node] = 1  #",
            "            mean[deaf] = 1\n            mean[node] = 1  #",
            "a gene that hears nobody comes on",
        ),
    ],
    "sample": [
        (
            "x = euler_maruyama_step(x, end, t, h, sigma, noise)",
            "x = euler_maruyama_step(x, end, t + h, h, sigma, noise)",
            "the drift of the end of the step: the last one divides by 0",
        ),
        (
            "d = ctmc_step(d, p_on, t, h, noise)",
            "d = ctmc_step(d, p_on, t + h, h, noise)",
            "the rate of the end of the step: the last one divides by 0",
        ),
        ("t = step * h\n", "t = (step + 1) * h\n", "off by one step"),
        ("for step in range(steps):", "for step in range(steps - 1):", "a step too few"),
        ("for step in range(steps):", "for step in range(1, steps):", "it begins a step late"),
        ("h = 1 / steps", "h = 1 // steps", "integer division"),
        ("p_on = 1 / (1 + torch.exp(-log_odds))", "p_on = log_odds", "log odds for probability"),
        (
            "d = ctmc_step(d, p_on, t, h, noise)",
            "d = (p_on > 0.5).to(d)",
            "the likelier state instead of a draw",
        ),
        (
            "d = ctmc_step(d, p_on, t, h, noise)",
            "d = (noise.uniform(d) < p_on).to(d)",
            "the states are drawn anew at every step",
        ),
        (
            "x = euler_maruyama_step(x, end, t, h, sigma, noise)",
            "x = euler_maruyama_step(x, end, t, h, sigma, noise).clamp(min=0)",
            "negative levels become 0 on the way",
        ),
        (
            "x = euler_maruyama_step(x, end, t, h, sigma, noise)",
            "x = euler_maruyama_step(x, end, t, h, sigma, noise) * d",
            "levels are masked on the way",
        ),
        (
            "x = euler_maruyama_step(x, end, t, h, sigma, noise)",
            "x = x0 + (t + h) * (end - x0)",
            "a straight line without noise",
        ),
        (
            "x = euler_maruyama_step(x, end, t, h, sigma, noise)",
            "x.copy_(euler_maruyama_step(x, end, t, h, sigma, noise))",
            "the controls are overwritten",
        ),
        ("    x = x0\n", "    x = noise.normal(x0)\n", "it starts at noise, as diffusion does"),
        ("    d = d0\n", "    d = torch.zeros_like(d0)\n", "it starts with all genes off"),
        ("level = torch.clamp(x, min=0)", "level = x.abs()", "negative levels are mirrored"),
        ("return level * d, level", "return level, level * d", "the results exchanged"),
        ("return level * d, level", "return level * p_on, level", "a mean for a draw"),
        ("return level * d, level", "return level * d, level * d", "the level is masked too"),
        ("return level * d, level", "return level * d", "one result for two"),
        ("@torch.no_grad()\n", "", "gradients are kept"),
        ("    model.eval()\n", "", "the networks drop out what they learnt"),
        (
            "torch.zeros(cells, dtype=torch.long)",
            "torch.arange(cells)",
            "a condition for each cell, and there is one",
        ),
        (
            "time = torch.full((cells, 1), t, dtype=x.dtype)",
            "time = torch.tensor(t)",
            "a time without a cell",
        ),
        ("sigma = model.settings.sigma", "sigma = 0.2", "the settings are not looked at"),
        (
            "            trace.append((x, d))\n",
            "            pass\n",
            "the trace stays empty",
        ),
        (
            "d = ctmc_step(d, p_on, t, h, noise)",
            "d = torch.where(torch.rand_like(d) < h / (1 - t), torch.bernoulli(p_on), d)",
            "random numbers that come from elsewhere",
        ),
        ("return level * d, level", "return level.round() * d, level", "levels rounded to counts"),
        (
            "        end, log_odds = model.predict(time, x, d, condition)\n",
            "        end, log_odds = x, d\n",
            "the networks are never asked",
        ),
        ("trace.append((x, d))", "trace.append(x)", "half of the trace"),
        (
            "    for step in range(steps):\n        t = step * h\n",
            "    t = -h\n    while t + h < 1:\n        t += h\n",
            "times that are added up: rounding makes one step too many",
        ),
        (
            "p_on = 1 / (1 + torch.exp(-log_odds))",
            "p_on = (log_odds > 0).to(d)",
            "a threshold for the logistic function",
        ),
        (
            "        d = ctmc_step(d, p_on, t, h, noise)\n",
            "        ctmc_step(d, p_on, t, h, noise)\n",
            "the states never move",
        ),
        (
            "d = ctmc_step(d, p_on, t, h, noise)",
            "d = ctmc_step(d, p_on, 0.0, h, noise)",
            "each step of the states is a first step",
        ),
        ("return level * d, level", "return level, level", "the final product is forgotten"),
        ("return level * d, level", "return end * d, end", "the networks' end for the level"),
    ],
    "e_distance": [
        (
            "within_x = total(x, x) / (n * (n - 1))",
            "within_x = total(x, x) / (n * n)",
            "biased: a cell's distance to itself counts",
        ),
        (
            "within_y = total(y, y) / (m * (m - 1))",
            "within_y = total(y, y) / (n * (n - 1))",
            "the number of the other group's pairs",
        ),
        (
            "within_x = total(x, x) / (n * (n - 1))",
            "within_x = total(x, x) / (n * (n - 1) // 2)",
            "each pair counted twice, and divided by their number once",
        ),
        ("2 * between - within_x", "between - within_x", "the first mean is counted once"),
        (
            "2 * between - within_x - within_y",
            "2 * between - (within_x + within_y) / 2",
            "the mean of both spreads for their sum",
        ),
        ("np.sqrt((difference**2).sum(axis=2))", "(difference**2).sum(axis=2)", "squared lengths"),
        (
            "np.sqrt((difference**2).sum(axis=2))",
            "np.abs(difference).sum(axis=2)",
            "sums over genes for lengths",
        ),
        (
            "np.sqrt((difference**2).sum(axis=2))",
            "np.sqrt((difference**2).mean(axis=2))",
            "mean for sum",
        ),
        (
            "energy = max(0.0, 2 * between - within_x - within_y)",
            "energy = abs(2 * between - within_x - within_y)",
            "an estimate below 0 is mirrored",
        ),
        (
            "return energy if squared else math.sqrt(energy)",
            "return math.sqrt(energy) if squared else energy",
            "root and square exchanged",
        ),
        (
            "energy = max(0.0, 2 * between - within_x - within_y)",
            "energy = np.linalg.norm(x.mean(0) - y.mean(0))",
            "the distance of the means",
        ),
        (
            "return energy if squared else math.sqrt(energy)",
            "return energy",
            "the root is forgotten",
        ),
        (
            "return energy if squared else math.sqrt(energy)",
            "return energy**2 if squared else math.sqrt(energy)",
            "squared twice",
        ),
    ],
    "wasserstein": [
        ("        b = np.sort(b)\n", "", "one side is not sorted"),
        ("zip(x.T, y.T, strict=True)", "zip(x, y, strict=False)", "rows for columns"),
        ("return np.array(areas)", "return np.mean(areas)", "a mean over the genes"),
        (
            "areas.append((width * np.abs(below_a - below_b)).sum())",
            "areas.append((width * (below_a - below_b)).sum())",
            "areas of both signs cancel: the difference of the means",
        ),
        (
            "areas.append((width * np.abs(below_a - below_b)).sum())",
            "areas.append((width * (below_a - below_b) ** 2).sum())",
            "squares for lengths",
        ),
        (
            "areas.append((width * np.abs(below_a - below_b)).sum())",
            "areas.append(np.abs(below_a - below_b).mean())",
            "the width of the steps is forgotten",
        ),
        (
            "areas.append((width * np.abs(below_a - below_b)).sum())",
            "k = min(len(a), len(b))\n        areas.append(np.abs(a[:k] - b[:k]).mean())",
            "of unequal samples the highest are left out",
        ),
        (
            "areas.append((width * np.abs(below_a - below_b)).sum())",
            "u = np.linspace(0, 1, 101)\n"
            "        areas.append(np.abs(np.quantile(a, u) - np.quantile(b, u)).mean())",
            "quantiles that are interpolated on a grid",
        ),
        (
            'np.searchsorted(b, values[:-1], side="right") / len(b)',
            'np.searchsorted(b, values[:-1], side="right") / len(a)',
            "both divided by the cells of one",
        ),
        (
            'below_a = np.searchsorted(a, values[:-1], side="right")',
            'below_a = np.searchsorted(a, values[:-1], side="left")',
            "off by one: below for not above",
        ),
        (
            "        a = np.sort(a)\n        b = np.sort(b)\n",
            "        areas.append(np.abs(a - b).mean())\n        continue\n",
            "cells are compared in the order in which they come",
        ),
        (
            "areas.append((width * np.abs(below_a - below_b)).sum())",
            "u = (np.arange(1000) + 0.5) / 1000\n"
            '        a, b = (np.quantile(c, u, method="inverted_cdf") for c in (a, b))\n'
            "        areas.append(((a - b) ** 2).mean() ** 0.5)",
            "Wasserstein-2 for Wasserstein-1",
        ),
        (
            "        a = np.sort(a)\n        b = np.sort(b)\n",
            "        areas.append(np.abs(np.sort(a) - np.sort(b)).mean())\n        continue\n",
            "sorted and subtracted: only for as many cells on both sides",
        ),
        (
            "areas.append((width * np.abs(below_a - below_b)).sum())",
            "grid = np.linspace(values[0], values[-1], 2001)\n"
            '        a, b = (np.searchsorted(c, grid, side="right") / len(c) for c in (a, b))\n'
            "        areas.append(np.abs(a - b).mean() * (grid[-1] - grid[0]))",
            "an integral on a grid",
        ),
    ],
}
