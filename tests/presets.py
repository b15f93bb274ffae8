"""Shipped presets with a subject."""

from pathlib import Path

from dreambooth_core import config

_SUBJECT = """subjects:
  dog:
    instance_dir: data/instance/dog
    identifier: sks
    class_noun: dog
    prompts: null
    overrides: {}
"""


def view_of(tmp_path: Path, text: str) -> config.SubjectView:
    """The settings of a subject added to a preset's text."""
    path = tmp_path / "params.yaml"
    path.write_text(text.replace("subjects: {}\n", _SUBJECT))
    return config.for_subject(config.load_settings(path), "dog")
