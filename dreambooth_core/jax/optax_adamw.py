"""optax's AdamW with torch's arithmetic and clipping, and its state under torch's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from dreambooth_core.config import TrainSettings
from dreambooth_core.jax.functional import Arrays, to_torch

Moments = Any
"""optax's state of `adamw`: moments by parameter name, and the number of updates."""

_CLIP_EPSILON = 1e-6  # torch's clip_grads_with_norm_ adds it to the norm


def adamw(settings: TrainSettings) -> optax.GradientTransformation:
    """AdamW's update before the multiplication by minus the learning rate."""
    return optax.chain(
        optax.scale_by_adam(settings.adam_beta1, settings.adam_beta2, settings.adam_epsilon),
        optax.add_decayed_weights(settings.adam_weight_decay),
    )


def clip(gradients: Arrays, norm: jax.Array, *, max_grad_norm: float | None) -> Arrays:
    """Scale the gradients down if their global norm exceeds the limit (None: no limit)."""
    if max_grad_norm is None:
        return gradients
    factor = jnp.minimum(1.0, max_grad_norm / (norm + _CLIP_EPSILON))
    return jax.tree.map(lambda gradient: gradient * factor, gradients)


def moved(
    transformation: optax.GradientTransformation,
    parameters: Arrays,
    moments: Moments,
    gradients: Arrays,
    *,
    rates: Mapping[str, jax.Array],
) -> tuple[Arrays, Moments]:
    """Parameters and moments after the update, each parameter with its own learning rate."""
    directions, moments = transformation.update(gradients, moments, parameters)
    after = {
        name: parameters[name] - rates[name] * direction
        for name, direction in cast(Arrays, directions).items()
    }
    return after, moments


def to_torch_state(moments: Moments) -> dict[str, torch.Tensor]:
    """The state under the torch trainer's names: `<parameter>|<quantity>`."""
    adam = moments[0]
    count = torch.tensor(float(adam.count))
    state = {f"{name}|step": count.clone() for name in adam.mu}
    state |= {f"{name}|exp_avg": to_torch(array) for name, array in adam.mu.items()}
    state |= {f"{name}|exp_avg_sq": to_torch(array) for name, array in adam.nu.items()}
    return state


def from_torch_state(fresh: Moments, state: Mapping[str, torch.Tensor]) -> Moments:
    """Fill a fresh state with one that either trainer saved."""
    adam, *rest = fresh
    count = max(int(state[f"{name}|step"]) for name in adam.mu)
    filled = adam._replace(
        count=np.int32(count),
        mu={name: np.array(state[f"{name}|exp_avg"]) for name in adam.mu},
        nu={name: np.array(state[f"{name}|exp_avg_sq"]) for name in adam.nu},
    )
    return (filled, *rest)
