"""Print requirements of pyproject.toml: `python requirements.py [dependencies] EXTRA ...`."""

import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = {"dependencies": project["dependencies"], **project["optional-dependencies"]}
    sys.stdout.writelines(f"{line}\n" for name in sys.argv[1:] for line in lists[name])
