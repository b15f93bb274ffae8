"""Which layers the settings of an adapter name, and what is said of names that fit none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from dreambooth_core.config import LoraSettings, similar
from dreambooth_core.errors import SettingsError

FITTING = (
    "ends of names of linear layers and convolutions, such as to_q, to_k, to_v, to_out.0 in "
    "a U-Net and q_proj, k_proj, v_proj, out_proj in a text encoder"
)
"""The names that an adapter can be given."""

_CAN_TAKE = (nn.Linear, nn.Conv2d)
_NUM_SHOWN = 3


def require_layers(parts: Mapping[str, nn.Module], settings: LoraSettings) -> None:
    """Raise SettingsError that tells every name of a layer which gives no adapter.

    `parts` are the networks that are trained. peft would ignore a name that stands beside a
    fitting one. A name of text encoders' layers need only be one of either of them.
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
    """The names of an option, and the networks in which they are looked for."""

    option: str
    where: str
    names: Sequence[str]
    networks: Sequence[nn.Module]

    def mistake(self) -> SettingsError | None:
        """What is wrong with the names, all of it in one error."""
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
        """The modules that peft takes the name for: the whole path, or the end of one."""
        return [
            module
            for network in self.networks
            for path, module in network.named_modules()
            if path == name or path.endswith(f".{name}")
        ]

    def _instead(self, name: str, modules: Sequence[nn.Module]) -> list[str]:
        """Layers inside those of the name, else layers of like names."""
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
    """The end of a path by which people know a layer: to_q, and to_out.0, as 0 is no name."""
    parent, _, last = path.rpartition(".")
    return f"{parent.rpartition('.')[2]}.{last}" if last.isdigit() else last
