"""The JAX devices of this host."""

from __future__ import annotations

from dreambooth_core.errors import SettingsError
from dreambooth_core.jax.torchax_import import require_jax


def num_devices() -> int:
    """The number of devices that share a batch.

    Raises SettingsError if JAX is missing or spans several hosts.
    """
    require_jax()
    import jax

    if jax.process_count() > 1:
        raise SettingsError(
            "training through JAX runs on the devices of one host only",
            got=f"{jax.process_count()} hosts",
            hint="start it on one host, without jax.distributed",
        )
    return len(jax.devices())
