"""Limits that keep files short and easy to find; the linters' settings cover every package."""

from __future__ import annotations

import ast
import tomllib
from collections import defaultdict
from pathlib import Path

import pytest
from setuptools import find_packages

from tests.paths import ROOT

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
INSTALLED = ("app", "cli", "flows", "tasks", "dreambooth_core")
PACKAGES = (*INSTALLED, "tools")
#: Basenames that one package tree may use more than once, each with the reason.
SHARED_BASENAMES = {
    "cache.py": "the pipeline stage has the name of the data module that does its work",
    "class_images.py": "the stage, the scripts' folder layout and the sampling of class images",
    "trainer.py": "jax implements the interface of training.trainer",
}
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def _repeated_basenames(package: str) -> dict[str, list[str]]:
    paths: defaultdict[str, list[str]] = defaultdict(list)
    for path in _files(package):
        if not path.name.startswith("__"):
            paths[path.name].append(str(path.relative_to(ROOT)))
    return {name: found for name, found in paths.items() if len(found) > 1}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_function_is_longer_than_60_lines(package: str) -> None:
    functions = [
        (path.relative_to(ROOT), node)
        for path in _files(package)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert functions
    lengths = {
        f"{path}:{node.name}": (node.end_lineno or 0) - node.lineno + 1 for path, node in functions
    }
    assert {k: n for k, n in lengths.items() if n > MAX_FUNCTION_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_no_file_is_longer_than_400_lines(package: str) -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in _files(package)
    }
    assert {k: n for k, n in lengths.items() if n > MAX_FILE_LINES} == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_basenames_are_unique_within_a_package_unless_listed(package: str) -> None:
    repeated = _repeated_basenames(package)
    assert {k: paths for k, paths in repeated.items() if k not in SHARED_BASENAMES} == {}


def test_every_listed_basename_is_still_shared() -> None:
    repeated = {name for package in PACKAGES for name in _repeated_basenames(package)}
    assert set(SHARED_BASENAMES) - repeated == set()


def test_contracts_and_type_checks_cover_every_installed_package() -> None:
    patterns = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    installed = {name.partition(".")[0] for name in find_packages(str(ROOT), include=patterns)}
    assert installed == set(INSTALLED)
    tool = PYPROJECT["tool"]
    assert set(tool["importlinter"]["root_packages"]) == installed
    assert installed | {"tools", "benchmarks"} <= set(tool["pyright"]["include"])
    assert {str(path.relative_to(ROOT)) for path in ROOT.glob("train_*.py")} <= set(
        tool["pyright"]["include"]
    )
