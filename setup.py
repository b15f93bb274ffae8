"""Puts the files of a new project into the wheel, for `dreambooth init`."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
NAMES = ROOT / "cli" / "workspace_files.txt"


class BuildWithTemplate(build_py):
    """Also copies what `cli/workspace_files.txt` lists to `cli/template/`."""

    def run(self) -> None:
        """Build; an editable installation uses the files of the checkout."""
        super().run()
        if self.editable_mode:
            return
        template = Path(self.build_lib) / "cli" / "template"
        shutil.rmtree(template, ignore_errors=True)
        for name in NAMES.read_text(encoding="utf-8").split():
            source, target = ROOT / name, template / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)


setup(cmdclass={"build_py": BuildWithTemplate})
