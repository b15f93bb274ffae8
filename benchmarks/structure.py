"""Measure the structure of a checkout: its size, its imports, and the modules one run uses.

    python -m benchmarks.structure                    # from the source alone, at once
    python -m benchmarks.structure --traced --json    # with a short run of the pipeline: minutes
    python benchmarks/structure.py --root ../other    # another checkout, with any of its layouts

All figures cover the installed packages ([tool.setuptools.packages.find] of pyproject.toml).

*Reachable from the train stage*: the closure over static imports, starting from the stage module
(`train`) and from the module that its processes run (`train_worker`, which the stage only names in
a command line). Imports inside functions count, those under `if TYPE_CHECKING` do not. A package
counts if a module imports a name from its `__init__` and that file holds more than a docstring;
the parent packages of an imported module do not count. At commit 3901a4e this gives 79 modules
(74 without the imports inside functions, 30 without `train_worker`, 81 with parent packages).

*Imports of a module*: the distinct installed modules that it imports, by the same rules;
`from package import module` counts as the module. At 3901a4e the maximum is 34, `doors.session`.

*Files sharing a basename*: files whose module names end in the same word. An `__init__.py` has the
name of its folder. At 3901a4e there are 45 (41 if packages are left out).

*Modules one photo passes* (`--traced`): the installed modules with a function that runs between an
empty `work/` and the page, in any process or thread; SHORT_RUN shortens the run. Module bodies,
class bodies, lambdas, and functions that only run during an import do not count. The isolated
interpreter that guards the trainer (`python -I -S`) cannot be traced.

*Openings of params.yaml* (`--traced`): how often a run with nothing to do opens the file, in any
process. An opening belongs to the nearest calling module outside the standard library, the YAML
libraries and pydantic; "requested by" is the nearest caller from another package of the project.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, FrameType, ModuleType
from typing import Any

STAGE_PACKAGES = ("pipeline", "stages")
START = ("train", "train_worker")
LONG_FUNCTION = 60
LONG_FILE = 400
SHORT_RUN: Mapping[tuple[str, str], int] = {
    ("prior", "num_class_images"): 8,
    ("prior", "num_inference_steps"): 2,
    ("train", "max_train_steps"): 4,
    ("train", "checkpointing_steps"): 2,
    ("evaluate", "num_class_prompt_images"): 4,
    ("evaluate", "num_inference_steps"): 2,
    ("evaluate", "bootstrap_samples"): 50,
}
"""Settings of params.yaml that make the traced run short."""

_PARSERS = ("ruamel", "yaml", "pydantic", "pydantic_core", "pydantic_settings")
_IMPORT = "<frozen importlib._bootstrap>"
_NOTE = "_structure_note"
_OUTSIDE = ("DREAMBOOTH_WORKSPACE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PREFECT_HOME")


# ---- modules and their imports ------------------------------------------------------------------


def read_pyproject(root: Path) -> dict[str, Any]:
    """Read the checkout's pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def installed_modules(root: Path) -> dict[str, Path]:
    """Map the dotted name of each installed module to its file; packages to their `__init__`."""
    patterns = read_pyproject(root)["tool"]["setuptools"]["packages"]["find"]["include"]
    modules: dict[str, Path] = {}
    for folder in sorted(path.parent for path in root.glob("*/__init__.py")):
        if any(fnmatch.fnmatchcase(folder.name, pattern) for pattern in patterns):
            modules.update(_modules_below(folder, folder.name))
    return modules


def _modules_below(folder: Path, package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.iterdir()):
        if path.name == "__init__.py":
            yield package, path
        elif path.suffix == ".py":
            yield f"{package}.{path.stem}", path
        elif (path / "__init__.py").is_file():
            yield from _modules_below(path, f"{package}.{path.name}")


def is_docstring_only(tree: ast.Module) -> bool:
    """Whether a module is empty but for a docstring."""
    return all(isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant) for n in tree.body)


def import_statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements at any depth, except those under `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from import_statements(ast.Module(node.orelse, []))
        else:
            yield from import_statements(node)


def project_imports(name: str, tree: ast.Module, modules: Mapping[str, Path]) -> set[str]:
    """Return the installed modules that the module `name` imports."""
    found: set[str] = set()
    for statement in import_statements(tree):
        if isinstance(statement, ast.Import):
            found.update(alias.name for alias in statement.names)
            continue
        if statement.level:
            raise SystemExit(f"{name} has a relative import: absolute ones are expected")
        package = statement.module or ""
        names = {f"{package}.{alias.name}" for alias in statement.names}
        found |= {each if each in modules else package for each in names}
    return {each for each in found if each in modules and each != name}


def reachable(start: Iterable[str], imports: Mapping[str, set[str]]) -> set[str]:
    """Return the modules that `start` imports, directly or not, and `start` itself."""
    seen, pending = set[str](), set(start)
    while pending:
        seen |= pending
        pending = set[str]().union(*(imports[name] for name in pending)) - seen
    return seen


def start_modules(modules: Mapping[str, Path]) -> list[str]:
    """Return the train stage and the module that its processes run."""
    for package in STAGE_PACKAGES:
        names = [f"dreambooth_core.{package}.{stem}" for stem in START]
        if all(name in modules for name in names):
            return names
    raise SystemExit("found no train stage: name the modules to start from with --start")


# ---- figures from the source --------------------------------------------------------------------


def static_figures(root: Path, start: list[str] | None = None) -> dict[str, Any]:
    """Return the figures that need only the source."""
    modules = installed_modules(root)
    texts = {name: path.read_text(encoding="utf-8") for name, path in modules.items()}
    trees = {name: ast.parse(text) for name, text in texts.items()}
    lines = {name: len(text.splitlines()) for name, text in texts.items()}
    imports = {name: project_imports(name, tree, modules) for name, tree in trees.items()}
    start = start or start_modules(modules)
    reached = {m for m in reachable(start, imports) if not is_docstring_only(trees[m])}
    busiest = sorted(imports, key=lambda name: (-len(imports[name]), name))[:5]
    shared = shared_names(modules)
    return {
        "packages": sorted({name.partition(".")[0] for name in modules}),
        "files": len(modules),
        "lines": sum(lines.values()),
        "train_start": start,
        "train_reachable_modules": len(reached),
        "train_reachable_lines": sum(lines[name] for name in reached),
        "busiest_imports": len(imports[busiest[0]]),
        "busiest": {name: len(imports[name]) for name in busiest},
        "files_sharing_a_basename": sum(len(names) for names in shared.values()),
        "shared_basenames": {word: ", ".join(names) for word, names in shared.items()},
        "long_functions": {
            f"{name}:{function}": length
            for name, tree in trees.items()
            for function, length in function_lengths(tree)
            if length > LONG_FUNCTION
        },
        "long_files": {name: n for name, n in sorted(lines.items()) if n > LONG_FILE},
    }


def shared_names(modules: Iterable[str]) -> dict[str, list[str]]:
    """Group the modules whose dotted names end in the same word; groups of one are left out."""
    groups: dict[str, list[str]] = {}
    for name in modules:
        groups.setdefault(name.rpartition(".")[2], []).append(name)
    return {word: names for word, names in sorted(groups.items()) if len(names) > 1}


def function_lengths(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Yield the name and the length in lines of each function, nested ones too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1


# ---- inside a traced process --------------------------------------------------------------------


class Tracer(MetaPathFinder):
    """Record which installed modules run functions, and what opens params.yaml.

    Modules are imported with a call of `note` added to each function, which costs far less than
    `sys.settrace`. A finding is written at once, since the trainer's processes end by SIGKILL.
    """

    def __init__(self, folder: str, modules: Mapping[str, str], params: str) -> None:
        self._folder, self._modules, self._params = Path(folder), modules, params
        self._name_of = {path: name for name, path in modules.items()}
        self._noted: set[tuple[str, bool]] = set()
        self._standard_library = sysconfig.get_paths()["stdlib"]

    def start(self) -> None:
        """Trace this process, including its threads and forks."""
        setattr(builtins, _NOTE, self.note)
        sys.meta_path.insert(0, self)
        sys.addaudithook(self.on_event)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Find an installed module, to be loaded with the added calls."""
        spec = PathFinder.find_spec(fullname, path, target) if fullname in self._modules else None
        if spec is not None:
            spec.loader = _NotingLoader(fullname, self._modules[fullname])
        return spec

    def note(self, module: str) -> None:
        """Record that a function of `module` runs, and whether an import is the reason."""
        if (module, False) in self._noted:
            return
        in_import = any(path == _IMPORT for path in _calling_files(sys._getframe(1)))
        if (module, in_import) not in self._noted:
            self._noted.add((module, in_import))
            self._write(ran=module, in_import=in_import)

    def on_event(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Record each opening of params.yaml for reading."""
        if event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        path = Path(os.fsdecode(arguments[0]))
        is_written = arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if is_written or path.name != "params.yaml" or str(path.absolute()) != self._params:
            return
        files = [f for f in _calling_files(sys._getframe(1)) if not self._is_library(f)]
        reader = self._name_of.get(files[0])
        here = Path(files[0]).parent
        others = [f for f in files if f in self._name_of and Path(f).parent != here]
        self._write(
            opened=reader or _third_party(files[0]),
            requested_by=self._name_of[(others or files)[0]] if reader else None,
        )

    def _is_library(self, file: str) -> bool:
        if package := _third_party(file):
            return package in _PARSERS
        return file.startswith(("<frozen ", __file__, self._standard_library))

    def _write(self, **finding: object) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        file = os.open(self._folder / f"{os.getpid()}.jsonl", flags)
        os.write(file, f"{json.dumps(finding)}\n".encode())
        os.close(file)


class _NotingLoader(SourceFileLoader):
    """Add `note(MODULE)` to each function of a module, after the docstring; lambdas excepted."""

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:
        tree = ast.parse(data, path)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                call = ast.parse(f"{_NOTE}({self.name!r})").body[0]
                for part in ast.walk(call):
                    ast.copy_location(part, node.body[0])
                node.body.insert(0 if ast.get_docstring(node) is None else 1, call)
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)


def _third_party(file: str) -> str:
    """Return the package of a third-party file, or an empty string."""
    _, found, inside = file.rpartition(f"{os.sep}site-packages{os.sep}")
    return Path(inside).parts[0] if found else ""


def _calling_files(frame: FrameType | None) -> Iterator[str]:
    """Yield the files of a frame and of its callers, nearest first."""
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


# ---- the traced runs ----------------------------------------------------------------------------


def traced_figures(root: Path, subject: str) -> dict[str, Any]:
    """Run the pipeline twice in a copy: from nothing to the page, and with nothing to do."""
    with tempfile.TemporaryDirectory(prefix="structure-") as name:
        folder = Path(name).resolve()
        checkout = copy_checkout(root, folder / "checkout")
        shorten(checkout / "params.yaml")
        first = run_traced(checkout, folder / "first", subject)
        second = run_traced(checkout, folder / "second", subject)
    ran = {each["ran"] for each in first if each.get("in_import") is False}
    imported = {each["ran"] for each in first if each.get("in_import")} - ran
    opened = [each for each in second if "opened" in each]
    own = [each for each in opened if each["requested_by"]]
    return {
        "photo_modules": len(ran),
        "photo_module_names": sorted(ran),
        "modules_that_run_in_imports_only": sorted(imported),
        "params_opened": len(opened),
        "params_opened_by": Counter(each["opened"] for each in opened),
        "params_opened_by_the_project": len(own),
        "params_requested_by": Counter(each["requested_by"] for each in own),
    }


def copy_checkout(root: Path, target: Path) -> Path:
    """Copy the files that git tracks, or would track, into a repository with one commit."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=root, check=True, stdout=subprocess.PIPE).stdout
    for name in sorted({os.fsdecode(each) for each in names.split(b"\0") if each}):
        if name != "dvc.lock" and (root / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, target / name)
    author = ("-c", "user.name=structure", "-c", "user.email=structure@localhost")
    for words in (["init", "-q"], ["add", "--all"], [*author, "commit", "-q", "-m", "copy"]):
        subprocess.run(["git", *words], cwd=target, check=True)
    return target


def shorten(params: Path) -> None:
    """Write the settings of SHORT_RUN into params.yaml."""
    text = params.read_text(encoding="utf-8")
    for (section, key), value in SHORT_RUN.items():
        pattern = rf"(?m)(^{section}:\n(?:[ #].*\n)*?  {key}: ).*$"
        text, count = re.subn(pattern, rf"\g<1>{value}", text)
        if count != 1:
            raise SystemExit(f"params.yaml has no line for {section}.{key}: edit SHORT_RUN")
    params.write_text(text, encoding="utf-8")


def run_traced(checkout: Path, folder: Path, subject: str) -> list[dict[str, Any]]:
    """Run `dreambooth run` in a checkout and return the findings of all its processes."""
    findings, hook = folder / "findings", folder / "hook"
    findings.mkdir(parents=True)
    hook.mkdir()
    modules = {name: str(path) for name, path in installed_modules(checkout).items()}
    plan = {"folder": str(findings), "modules": modules, "params": str(checkout / "params.yaml")}
    start = f"import structure_tracer\nstructure_tracer.Tracer(**{plan!r}).start()\n"
    (hook / "sitecustomize.py").write_text(start, encoding="utf-8")
    shutil.copyfile(__file__, hook / "structure_tracer.py")
    environment = {name: value for name, value in os.environ.items() if name not in _OUTSIDE}
    environment |= {"PYTHONPATH": f"{hook}{os.pathsep}{checkout}", "OMP_NUM_THREADS": "1"}
    script = read_pyproject(checkout)["project"]["scripts"]["dreambooth"]
    module, _, function = script.partition(":")
    code = f"import sys, {module}; sys.exit({module}.{function}())"
    command = [sys.executable, "-c", code, "run", subject]
    subprocess.run(command, cwd=checkout, env=environment, check=True, stdout=sys.stderr)
    lines = [line for path in findings.iterdir() for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def report(figures: Mapping[str, Any]) -> str:
    """Format the figures, one per line; the entries of a table or a list follow, indented."""
    lines: list[str] = []
    for name, value in figures.items():
        rows = value if isinstance(value, dict | list) else ()
        lines.append(f"{name.replace('_', ' ')}: {'' if rows else value or 0}".rstrip())
        for row in rows:
            lines.append(f"    {row}: {value[row]}" if isinstance(value, dict) else f"    {row}")
    return "\n".join(lines)


def main() -> None:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--start", action="append", help="modules to start the closure from")
    parser.add_argument("--traced", action="store_true", help="also run the pipeline, traced")
    parser.add_argument("--subject", default="mug", help="the subject of the traced run")
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args()
    figures = static_figures(args.root, args.start)
    if args.traced:
        figures |= traced_figures(args.root, args.subject)
    print(json.dumps(figures, indent=2) if args.json else report(figures))


if __name__ == "__main__":
    main()
