#!/usr/bin/env bash
# Resolve pyproject.toml in a fresh environment and write the exact versions to requirements.lock,
# and what the extra `jax` adds to them to requirements-jax.lock.
# Packages that only a CUDA build of torch brings are left out: torch asks for its own.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch/venv"
pip() { "$scratch/venv/bin/python" -m pip "$@"; }
versions() {
    pip freeze --all --exclude-editable |
        grep -viE '^(nvidia-|triton==|pip==)' | sed -E 's/^(torch==[0-9.]+)\+.*/\1/; s/ @ .*//'
}

pip install --quiet 'torch==2.13.0' 'setuptools>=77' wheel
pip install --quiet --no-build-isolation --editable '.[dev,deepspeed]'
versions > "$scratch/all"
pip install --quiet --no-build-isolation --constraint "$scratch/all" --editable '.[jax]'
versions > "$scratch/with-jax"

{
    echo "# Written by infra/lock.sh from pyproject.toml; exact versions for every machine."
    cat "$scratch/all"
} > requirements.lock.new
{
    echo "# Written by infra/lock.sh: what the extra \`jax\` adds to requirements.lock; nothing there changes."
    grep -vxFf "$scratch/all" "$scratch/with-jax"
} > requirements-jax.lock.new
mv requirements.lock.new requirements.lock
mv requirements-jax.lock.new requirements-jax.lock
