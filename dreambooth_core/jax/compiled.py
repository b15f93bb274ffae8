"""The four compiled functions of an update. Arrays that they replace are donated to them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from dreambooth_core.config import TrainSettings
from dreambooth_core.jax import optax_adamw
from dreambooth_core.jax.functional import Arrays, Tensors, micro_step_loss
from dreambooth_core.jax.optax_adamw import Moments
from dreambooth_core.training.step import StepInput
from dreambooth_core.training.trainable import TrainableModel

Sums = tuple[jax.Array, Arrays]
"""LossParts [3] and gradients by parameter, summed over micro-steps."""


class CompiledSteps:
    """Each function compiles on its first call, for the shapes of the run."""

    def __init__(self, model: TrainableModel, settings: TrainSettings) -> None:
        self._model, self._settings = model, settings
        self._optimizer = optax_adamw.adamw(settings)
        self._group_of = {
            name: index for index, group in enumerate(model.groups) for name in group.parameters
        }
        self._compiled_gradients: Any = None
        self.add = jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=0)
        self.finish = jax.jit(self._finish, donate_argnums=1)
        self.update = jax.jit(self._update, donate_argnums=(0, 1))

    def gradients(
        self, inputs: StepInput, parameters: Arrays, frozen: Arrays, tensors: Tensors
    ) -> tuple[Sums, jax.Array]:
        """Loss and gradients of a micro-step, and the error of each row [B].

        `tensors` are those of `inputs`, which provides everything else.
        """
        if self._compiled_gradients is None:
            loss = micro_step_loss(
                self._model.denoiser,
                inputs,
                prior_loss_weight=self._model.loss.prior_loss_weight,
                settings=self._settings,
            )
            self._compiled_gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (_, (parts, error_B)), gradients = self._compiled_gradients(parameters, frozen, tensors)
        return (parts, gradients), error_B

    def _finish(
        self, parts: jax.Array, gradients: Arrays, trained: jax.Array, stop: jax.Array
    ) -> tuple[jax.Array, Arrays]:
        """The values of an UpdateReport, and the mean gradients, zero for frozen groups."""
        parts, gradients = jax.tree.map(
            lambda total: total / self._settings.gradient_accumulation_steps, (parts, gradients)
        )
        gradients = {
            name: jnp.where(trained[self._group_of[name]], gradient, 0)
            for name, gradient in gradients.items()
        }
        norm = optax.tree.norm(gradients)
        return jnp.concatenate([parts, stop[None], norm[None]]), gradients

    def _update(
        self,
        parameters: Arrays,
        moments: Moments,
        gradients: Arrays,
        values: jax.Array,
        rates: jax.Array,
    ) -> tuple[Arrays, Moments]:
        """Parameters and moments after the update; unchanged if loss or norm is not finite."""
        loss, norm = values[0], values[4]
        healthy = jnp.isfinite(loss) & jnp.isfinite(norm)
        clipped = optax_adamw.clip(gradients, norm, max_grad_norm=self._settings.max_grad_norm)
        after = optax_adamw.moved(
            self._optimizer,
            parameters,
            moments,
            clipped,
            rates={name: rates[index] for name, index in self._group_of.items()},
        )
        return jax.tree.map(
            lambda new, old: jnp.where(healthy, new, old), after, (parameters, moments)
        )
