"""The settings. Torch-free.

`sections` declares the settings, `compatibility` the combinations that cannot work, `effects` which
stage reads which setting, `loading` reads params.yaml and reports its mistakes.
"""

from dreambooth_core.config.effects import STAGE_SETTINGS, dvc_params, effect_of, settings_of
from dreambooth_core.config.keys import flatten, nearest
from dreambooth_core.config.launching import (
    LaunchConfig,
    deepspeed_config,
    read_launch_config,
    strategy_of,
)
from dreambooth_core.config.loading import check_launches, for_subject, load_settings, load_view
from dreambooth_core.config.sections import (
    BaseModelSettings,
    Beta,
    ComputeSettings,
    DataSettings,
    Effect,
    EvaluateSettings,
    Fraction,
    LoraSettings,
    LrScheduler,
    Optimizer,
    PriorSettings,
    RegistrySettings,
    RuntimeSettings,
    Section,
    SelectSettings,
    Settings,
    Solver,
    Strategy,
    SubjectSettings,
    SubjectView,
    TrainSettings,
    Versions,
    WeightDtype,
)
from dreambooth_core.config.yaml_files import (
    add_entry,
    add_item,
    parse_yaml,
    read_yaml,
    replace_section,
    replace_value,
)

__all__ = [
    "STAGE_SETTINGS",
    "BaseModelSettings",
    "Beta",
    "ComputeSettings",
    "DataSettings",
    "Effect",
    "EvaluateSettings",
    "Fraction",
    "LaunchConfig",
    "LoraSettings",
    "LrScheduler",
    "Optimizer",
    "PriorSettings",
    "RegistrySettings",
    "RuntimeSettings",
    "Section",
    "SelectSettings",
    "Settings",
    "Solver",
    "Strategy",
    "SubjectSettings",
    "SubjectView",
    "TrainSettings",
    "Versions",
    "WeightDtype",
    "add_entry",
    "add_item",
    "check_launches",
    "deepspeed_config",
    "dvc_params",
    "effect_of",
    "flatten",
    "for_subject",
    "load_settings",
    "load_view",
    "nearest",
    "parse_yaml",
    "read_launch_config",
    "read_yaml",
    "replace_section",
    "replace_value",
    "settings_of",
    "strategy_of",
]
