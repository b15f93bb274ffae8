"""The import beside a torch that lacks overloads: what is dropped, what stays, what is said."""

import importlib.util
import subprocess
import sys

import pytest

from dreambooth_core.errors import SettingsError
from dreambooth_core.jax.torchax_import import require_jax, without_missing_entries

TABLE = """\
POLICY = {
    torch.ops.aten.prod.dim_int: CastPolicy.FP32,
    torch.ops.aten.prod.no_such_overload: CastPolicy.FP32,
    torch.ops.aten.no_such_operator.default: CastPolicy.FP32,
}
DECOMPOSED = [
    torch.ops.aten.std.correction,
    torch.ops.aten.std.no_such_overload,
]
call(torch.ops.aten.std.no_such_overload, 1)"""


def test_only_missing_overloads_are_blanked():
    kept = without_missing_entries(TABLE).splitlines()
    dropped = [number for number, line in enumerate(kept) if not line]
    assert dropped == [2, 3, 7]
    assert len(kept) == len(TABLE.splitlines())


def test_a_table_without_missing_entries_is_left_as_it_is():
    table = "POLICY = {\n    torch.ops.aten.prod.dim_int: CastPolicy.FP32,\n}"
    assert without_missing_entries(table) == table


@pytest.mark.skipif(importlib.util.find_spec("jax") is not None, reason="JAX is installed")
def test_without_the_extra_the_error_says_what_to_install():
    with pytest.raises(SettingsError, match=r"missing: jax.*requirements-jax\.lock"):
        require_jax()


def test_the_core_is_imported_without_jax():
    code = (
        "import sys; sys.modules['jax'] = sys.modules['torchax'] = None\n"
        "import dreambooth_core.pipeline.train, dreambooth_core.jax.torchax_import\n"
        "import dreambooth_core.jax.refusals"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.jax
def test_torchax_is_imported_and_computes_through_jax():
    from dreambooth_core.jax.torchax_import import import_torchax

    torchax = import_torchax()
    import jax.numpy as jnp

    with torchax.default_env():
        view = torchax.interop.torch_view(jnp.arange(3.0))
        assert (view * 2).sum().item() == 6.0
