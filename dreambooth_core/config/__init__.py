"""The settings. Torch-free.

`sections`, `judging` and `runtime` declare the settings, `compatibility` the rules for their
combinations, and `effects` the settings that each stage reads. `loading` reads params.yaml and
reports its mistakes.
"""

# The imports are the names that this package offers.
# ruff: noqa: F401
# pyright: reportUnusedImport=false

from dreambooth_core.config.effects import STAGE_SETTINGS, dvc_params, effect_of, settings_of
from dreambooth_core.config.judging import (
    WEIGHTS_LETTERS,
    Choice,
    CompareSettings,
    check_reason,
)
from dreambooth_core.config.keys import flatten, nearest, problems_of, similar
from dreambooth_core.config.launching import (
    LaunchConfig,
    deepspeed_config,
    read_launch_config,
    strategy_of,
)
from dreambooth_core.config.loading import (
    check_launches,
    check_settings,
    for_subject,
    load_settings,
    load_view,
    load_views,
    with_strategy,
)
from dreambooth_core.config.runtime import RuntimeSettings
from dreambooth_core.config.sections import (
    OVERRIDABLE,
    BaseModelSettings,
    Beta,
    ComputeSettings,
    DataSettings,
    Effect,
    EvaluateSettings,
    Fraction,
    LoraSettings,
    LrScheduler,
    PriorSettings,
    Section,
    SelectSettings,
    Settings,
    Solver,
    Strategy,
    SubjectSettings,
    SubjectView,
    TrainSettings,
)
from dreambooth_core.config.words import check_name
from dreambooth_core.config.yaml_files import (
    add_entry,
    add_item,
    flow_text,
    parse_yaml,
    read_text,
    read_yaml,
    remove_entry,
    remove_item,
    rename_key,
    replace_section,
    replace_text,
    replace_value,
    set_section,
    set_value,
    value_text,
)
