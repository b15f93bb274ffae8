#!/usr/bin/env bash
# Resolve pyproject.toml in a fresh environment and write the exact versions to requirements.lock.
# Packages that only a CUDA build of torch brings are left out: torch asks for its own.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
venv=$(mktemp -d)/venv
trap 'rm -rf "$(dirname "$venv")"' EXIT
"$python" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet 'torch==2.13.0' 'setuptools>=77' wheel
"$venv/bin/python" -m pip install --quiet --no-build-isolation --editable '.[dev,deepspeed]'
{
    echo "# Written by infra/lock.sh from pyproject.toml; exact versions for every machine."
    "$venv/bin/python" -m pip freeze --all --exclude-editable |
        grep -viE '^(nvidia-|triton==|pip==)' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/; s/ @ .*//'
} > requirements.lock.new
mv requirements.lock.new requirements.lock
