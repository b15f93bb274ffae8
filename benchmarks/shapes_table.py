"""Write the shapes of the known architectures: `python -m benchmarks.shapes_table`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from benchmarks.architectures import ARCHITECTURES
from dreambooth_core.planning.shapes import SIGNATURE

TABLE = Path(__file__).parents[1] / "dreambooth_core" / "planning" / "shapes.json"


def _kinds(networks: Iterable[nn.Module]) -> tuple[str, int]:
    """Count tensors by position in their block and shape, as JSON rows; and all parameters."""
    named = [entry for network in networks for entry in network.named_parameters()]
    kinds = Counter((".".join(n.split(".")[-4:]), tuple(p.shape)) for n, p in named)
    rows = ",\n".join(json.dumps([n, list(s), c]) for (n, s), c in sorted(kinds.items()))
    return rows, sum(p.numel() for _, p in named)


def main() -> None:
    """Write the table; check the published numbers of parameters."""
    lines = []
    for name, architecture in ARCHITECTURES.items():
        with torch.device("meta"):
            unet, text = architecture.build_unet(), architecture.build_text()
        (unet_rows, unet_total), (text_rows, text_total) = _kinds([unet]), _kinds(text.values())
        assert architecture.num_parameters in (None, (unet_total, text_total)), name
        values = [unet.config[key] for key in SIGNATURE]
        signature = json.dumps([list(v) if isinstance(v, tuple) else v for v in values])
        lines.append(
            f'"{name}": {{"signature": {signature}, "unet": [\n{unet_rows}\n], '
            f'"text": [\n{text_rows}\n]}}'
        )
        print(name, f"U-Net {unet_total:,}, text encoders {text_total:,} parameters")
    TABLE.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
