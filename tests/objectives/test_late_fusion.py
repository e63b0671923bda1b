"""The gate of late fusion against PyTorch, in value and gradients."""

import jax.numpy as jnp
import numpy as np
import torch
from small_losses import D, value_and_grad

from sail_jax.objectives.late_fusion import init_gate, late_fusion


def test_late_fusion_equals_the_gate_in_torch(pairs):
    rng = np.random.default_rng(4)
    params = {"kernel": rng.normal(size=(2 * D, D)).astype(np.float32), "bias": rng.normal(size=D).astype(np.float32)}
    visual, fused = pairs
    linear = torch.nn.Linear(2 * D, D)
    linear.weight.data, linear.bias.data = torch.tensor(params["kernel"].T), torch.tensor(params["bias"])
    v, n = (torch.tensor(np.array(x), requires_grad=True) for x in pairs)
    gate = torch.sigmoid(linear(torch.cat([v, n], dim=-1)))
    expected = gate * v + (1 - gate) * n
    expected.square().sum().backward()
    value, gradients = value_and_grad(lambda v, n, p: (late_fusion(p, v, n) ** 2).sum(), argnums=(0, 1, 2))(
        visual, fused, params
    )
    np.testing.assert_allclose(value, expected.square().sum().item(), rtol=1e-5)
    wanted = [v.grad.numpy(), n.grad.numpy(), linear.weight.grad.numpy().T, linear.bias.grad.numpy()]
    got = [gradients[0], gradients[1], gradients[2]["kernel"], gradients[2]["bias"]]
    for left, right in zip(got, wanted, strict=True):
        np.testing.assert_allclose(left, right, rtol=2e-4, atol=2e-3)


def test_late_fusion_starts_as_the_mean_and_leaves_items_without_vision_alone(pairs):
    visual = pairs[0].at[5].set(0)
    mixed = late_fusion(init_gate(D), jnp.asarray(visual), jnp.asarray(pairs[1]))
    np.testing.assert_allclose(mixed[0], (visual[0] + pairs[1][0]) / 2, rtol=1e-6)
    np.testing.assert_array_equal(mixed[5], pairs[1][5])
