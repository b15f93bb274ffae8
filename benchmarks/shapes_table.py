"""Write the shapes of the known architectures: `python -m benchmarks.shapes_table`."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from benchmarks.architectures import ARCHITECTURES
from dreambooth_core.planning.shapes import SIGNATURE

TABLE = Path(__file__).parents[1] / "dreambooth_core" / "planning" / "shapes.json"


def main() -> None:
    """Count tensors of one shape and one kind of place; check against the published numbers."""
    lines = []
    for name, architecture in ARCHITECTURES.items():
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(architecture.unet)
        assert isinstance(unet, UNet2DConditionModel)
        total = sum(p.numel() for p in unet.parameters())
        assert architecture.num_parameters in (None, total), (name, total)
        kinds = Counter(
            (".".join(n.split(".")[-4:]), tuple(p.shape)) for n, p in unet.named_parameters()
        )
        values = [unet.config[key] for key in SIGNATURE]
        signature = json.dumps([list(v) if isinstance(v, tuple) else v for v in values])
        rows = ",\n".join(json.dumps([n, list(s), c]) for (n, s), c in sorted(kinds.items()))
        lines.append(f'"{name}": {{"signature": {signature}, "unet": [\n{rows}\n]}}')
        print(name, f"{total:,} parameters, {len(kinds)} kinds of tensors")
    TABLE.write_text("{" + ",\n".join(lines) + "}\n")


if __name__ == "__main__":
    main()
