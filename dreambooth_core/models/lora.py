"""LoRA adapters of U-Net and text encoders: attach, extract, write for diffusers and kohya.

The update of a layer is (alpha / r) * B @ A, with A of shape [r, in] and B of [out, r].
Source: Hu et al. 2021, "LoRA", section 4.1. DoRA (Liu et al. 2024, eq. 5) also trains a magnitude
for every row of the updated weight.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from torch import nn

from dreambooth_core.config import LoraSettings, similar
from dreambooth_core.errors import CorruptRecordError, SettingsError
from dreambooth_core.models.tensors import read_tensors, write_tensors
from dreambooth_core.numerics.seeding import generator_for

FITTING = (
    "ends of names of linear layers and convolutions, such as to_q, to_k, to_v, to_out.0 in "
    "a U-Net and q_proj, k_proj, v_proj, out_proj in a text encoder"
)
"""The valid names of layers, for messages."""

_CAN_TAKE = (nn.Linear, nn.Conv2d)
_NUM_SHOWN = 3


def require_layers(parts: Mapping[str, nn.Module], settings: LoraSettings) -> None:
    """Raise SettingsError with every layer name that matches no layer an adapter can wrap.

    `parts` are the trained networks. peft ignores such a name if another one matches. A text
    encoder layer must exist in only one of the text encoders.
    """
    text = [module for part, module in parts.items() if part != "unet"]
    wanted = [_Names("lora_layers", "the U-Net", settings.lora_layers, [parts["unet"]])]
    if text:
        names = settings.text_encoder_layers
        wanted.append(_Names("text_encoder_layers", "the text encoder", names, text))
    mistakes = [each.mistake() for each in wanted]
    found = [mistake for mistake in mistakes if mistake is not None]
    if found:
        raise SettingsError.of(problem for mistake in found for problem in mistake.problems)


@dataclass(frozen=True)
class _Names:
    """The layer names of an option, and the networks to search."""

    option: str
    where: str
    names: Sequence[str]
    networks: Sequence[nn.Module]

    def mistake(self) -> SettingsError | None:
        """One error with everything that is wrong with the names, or None."""
        key = f"train.lora.{self.option}"
        if not self.names:
            return SettingsError(f"names no layer of {self.where}", key=key, allowed=FITTING)
        found = {name: self._found(name) for name in self.names}
        unknown = [name for name, modules in found.items() if not modules]
        unfit = [name for name, modules in found.items() if not _all_fit(modules)]
        said = [
            f"{words}: {', '.join(names)}"
            for words, names in (
                (f"no layer of {self.where} has the name", unknown),
                ("cannot take an adapter", unfit),
            )
            if names
        ]
        if not said:
            return None
        instead = {name: self._instead(name, found[name]) for name in (*unknown, *unfit)}
        hints = [f"{' or '.join(near)} for {name}" for name, near in instead.items() if near]
        return SettingsError(
            ", and ".join(said),
            key=key,
            got=", ".join(self.names),
            allowed=FITTING,
            hint=f"did you mean {', '.join(hints)}?" if hints else "leave the name out",
        )

    def _found(self, name: str) -> list[nn.Module]:
        """The modules that the name matches in peft: by the whole path, or its end."""
        return [
            module
            for network in self.networks
            for path, module in network.named_modules()
            if path == name or path.endswith(f".{name}")
        ]

    def _instead(self, name: str, modules: Sequence[nn.Module]) -> list[str]:
        """Suggestions: layers inside the matched modules, else layers of similar names."""
        inside = [
            f"{name}.{path}"
            for module in modules
            for path, layer in module.named_modules()
            if path and isinstance(layer, _CAN_TAKE)
        ]
        known = sorted({_short(path) for network in self.networks for path in _fitting(network)})
        near = similar(name, known, limit=_NUM_SHOWN)
        return list(dict.fromkeys(inside))[:_NUM_SHOWN] or near


def _all_fit(modules: Sequence[nn.Module]) -> bool:
    return all(isinstance(module, _CAN_TAKE) for module in modules)


def _fitting(network: nn.Module) -> list[str]:
    return [path for path, module in network.named_modules() if isinstance(module, _CAN_TAKE)]


def _short(path: str) -> str:
    """The usual short name of a layer: to_q, but to_out.0, as 0 alone is not a name."""
    parent, _, last = path.rpartition(".")
    return f"{parent.rpartition('.')[2]}.{last}" if last.isdigit() else last


LORA_FILE = "pytorch_lora_weights.safetensors"
"""The name that `pipeline.load_lora_weights(folder)` looks for."""
KOHYA_FILE = "lora_kohya.safetensors"

_METADATA_KEY = "lora_adapter_metadata"
_TEXT_STACK = "text_model."
_ADAPTER = "default"
_KEPT = ("r", "lora_alpha", "lora_dropout", "use_dora", "bias")
_MAGNITUDE = "lora_magnitude_vector"
_KOHYA_NAMES = {
    "lora_A.weight": "lora_down.weight",
    "lora_B.weight": "lora_up.weight",
    _MAGNITUDE: "dora_scale",
    f"{_MAGNITUDE}.weight": "dora_scale",
}


# ---- attach -------------------------------------------------------------------------------------


def add_adapter(model: nn.Module, settings: LoraSettings, *, part: str, seed: int) -> None:
    """Freeze a network and add trainable fp32 adapters that change nothing yet (B is zero).

    `part` is the network's name in the pipeline. A is drawn with standard deviation 1/r, by
    generators of (seed, part, layer). Raises SettingsError if no name in the settings matches a
    layer of the network; `require_layers` checks every name.
    """
    model.requires_grad_(False)
    option, layers = _layers_for(part, settings)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.lora_alpha,  # pyright: ignore[reportArgumentType] - any number works
        lora_dropout=settings.lora_dropout,
        target_modules=list(layers),
        init_lora_weights="gaussian",
        use_dora=settings.use_dora,
    )
    attach: Any = model
    try:
        attach.add_adapter(config)
    except ValueError as error:
        raise SettingsError(
            f"fits no layer of the {part}",
            key=f"train.lora.{option}",
            got=", ".join(layers),
            allowed=FITTING,
        ) from error
    for weight in adapter_parameters(model):
        weight.data = weight.data.float()
    _draw_initial(model, rank=settings.rank, seed=seed, part=part)


def _layers_for(part: str, settings: LoraSettings) -> tuple[str, tuple[str, ...]]:
    """The option for a network's layers, and its value."""
    if part == "unet":
        return "lora_layers", settings.lora_layers
    return "text_encoder_layers", settings.text_encoder_layers


def _draw_initial(model: nn.Module, *, rank: int, seed: int, part: str) -> None:
    """Replace peft's initial values, which come from the global generator."""
    role = "lora" if part == "unet" else f"lora/{part}"
    adapters = sorted((name, p) for name, p in model.named_parameters() if ".lora_A." in name)
    with torch.no_grad():
        for index, (_, weight) in enumerate(adapters):
            noise = torch.randn(weight.shape, generator=generator_for(seed, role, index))
            weight.copy_(noise / rank)


def adapter_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The adapters' weights, in the order of the model's parameters."""
    return [p for name, p in model.named_parameters() if ".lora_" in name]


# ---- diffusers' format --------------------------------------------------------------------------


def adapter_state_dict(parts: Mapping[str, nn.Module]) -> dict[str, torch.Tensor]:
    """The adapters' weights by name, such as `<part>.<layer>.lora_A.weight`."""
    state: dict[str, torch.Tensor] = {}
    for part, model in parts.items():
        for name, tensor in sorted(get_peft_model_state_dict(model).items()):
            state[f"{part}.{name if part == 'unet' else _text_name(name)}"] = tensor
    return state


def name_in_file(parameter: str) -> str:
    """The name in an adapter file of the parameter `<part>.<name in the network>`."""
    part, name = parameter.split(".", 1)
    name = name.replace(f"{_MAGNITUDE}.{_ADAPTER}.weight", _MAGNITUDE).replace(f".{_ADAPTER}.", ".")
    return f"{part}.{name if part == 'unet' else _text_name(name)}"


def _text_name(name: str) -> str:
    """The name of a text encoder's tensor in files, independent of the library's version.

    DoRA's magnitudes get the ending that transformers reads. Under peft's own name, it would
    initialize them again and only log a warning.
    """
    plain = _TEXT_STACK + name.removeprefix(_TEXT_STACK)
    return f"{plain}.weight" if plain.endswith(_MAGNITUDE) else plain


def write_adapter(parts: Mapping[str, nn.Module], folder: Path) -> None:
    """Write the adapters as `folder/pytorch_lora_weights.safetensors`, with their alpha.

    Without the metadata, a loader would assume alpha = r and scale the update wrongly.
    """
    metadata = {
        f"{part}.{key}": value
        for part, model in parts.items()
        for key, value in _described(model).items()
    }
    text = json.dumps(metadata, sort_keys=True, indent=2)
    write_tensors(folder / LORA_FILE, adapter_state_dict(parts), metadata={_METADATA_KEY: text})


def _described(model: Any) -> dict[str, Any]:
    config = model.peft_config[_ADAPTER].to_dict()
    return {**{k: config[k] for k in _KEPT}, "target_modules": sorted(config["target_modules"])}


def read_adapter(folder: Path) -> tuple[dict[str, torch.Tensor], float]:
    """Read the output of `write_adapter`: weights by name, and alpha. Raises CorruptRecordError."""
    state = read_tensors(folder / LORA_FILE)
    return state, float(_read_metadata(folder / LORA_FILE)["unet.lora_alpha"])


def _read_metadata(path: Path) -> dict[str, Any]:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as opened:
        header = opened.metadata() or {}
    try:
        return json.loads(header[_METADATA_KEY])
    except (KeyError, ValueError):
        raise CorruptRecordError(f"{path} lacks its rank and alpha") from None


# ---- kohya's format -----------------------------------------------------------------------------


def kohya_state_dict(state: Mapping[str, torch.Tensor], *, alpha: float) -> dict[str, torch.Tensor]:
    """The adapters under kohya's names, for AUTOMATIC1111 and ComfyUI.

    `unet.a.b.to_q.lora_A.weight` becomes `lora_unet_a_b_to_q.lora_down.weight`, and every layer
    gets an `.alpha` (diffusers' own conversion always writes alpha = r). DoRA's magnitudes become
    columns `[out, 1]` named `.dora_scale`, as in LyCORIS.
    """
    prefixes = _kohya_prefixes(state)
    kohya: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        part, path = name.split(".", 1)
        ending = next(ending for ending in _KOHYA_NAMES if path.endswith(ending))
        layer = path.removesuffix(f".{ending}")
        module = f"{prefixes[part]}_{layer.replace('.', '_')}"
        value = tensor[:, None] if ending.startswith(_MAGNITUDE) else tensor
        kohya[f"{module}.{_KOHYA_NAMES[ending]}"] = value
        kohya[f"{module}.alpha"] = torch.tensor(alpha)
    return kohya


def _kohya_prefixes(state: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Kohya's name of each part: two text encoders are numbered, a single one is not."""
    paired = any(name.startswith("text_encoder_2.") for name in state)
    first = "lora_te1" if paired else "lora_te"
    return {"unet": "lora_unet", "text_encoder": first, "text_encoder_2": "lora_te2"}


def write_kohya(folder: Path, *, out: Path) -> None:
    """Write the adapters of a checkpoint folder in kohya's format to the file `out`."""
    state, alpha = read_adapter(folder)
    rank = next(len(tensor) for name, tensor in state.items() if ".lora_A." in name)
    metadata = {"ss_network_dim": str(rank), "ss_network_alpha": str(alpha)}
    write_tensors(out, kohya_state_dict(state, alpha=alpha), metadata=metadata)
