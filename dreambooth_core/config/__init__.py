"""The settings. Torch-free.

`params.yaml` is where values live; `sections` says which are allowed, `effects` which stage reads
which, `loading` reads the file and explains what is wrong with it.
"""

from dreambooth_core.config.effects import STAGE_SETTINGS, dvc_params, effect_of, settings_of
from dreambooth_core.config.launching import LaunchConfig, deepspeed_config, read_launch_config
from dreambooth_core.config.loading import check_launches, for_subject, load_settings, load_view
from dreambooth_core.config.reading import read_yaml
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
    SubjectSettings,
    SubjectView,
    TrainSettings,
    Versions,
    WeightDtype,
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
    "SubjectSettings",
    "SubjectView",
    "TrainSettings",
    "Versions",
    "WeightDtype",
    "check_launches",
    "deepspeed_config",
    "dvc_params",
    "effect_of",
    "for_subject",
    "load_settings",
    "load_view",
    "read_launch_config",
    "read_yaml",
    "settings_of",
]
