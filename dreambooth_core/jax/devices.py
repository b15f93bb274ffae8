"""The devices that JAX finds on this host."""

from __future__ import annotations

from dreambooth_core.errors import SettingsError
from dreambooth_core.jax.torchax_import import require_jax


def num_devices() -> int:
    """How many share each batch. Raises SettingsError without JAX, and where hosts are joined."""
    require_jax()
    import jax

    if jax.process_count() > 1:
        raise SettingsError(
            "training through JAX is for the devices of one host",
            got=f"{jax.process_count()} hosts",
            hint="start it on one host, without jax.distributed",
        )
    return len(jax.devices())
