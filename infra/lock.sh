#!/usr/bin/env bash
# Resolve pyproject.toml in a fresh environment. Write the exact versions to requirements.lock and the
# additional packages of the extra `jax` to requirements-jax.lock. Exclude the packages that only CUDA
# builds of torch need; such a build pins its own versions.
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
    echo "# Written by infra/lock.sh from pyproject.toml; exact versions for all machines."
    cat "$scratch/all"
} > requirements.lock.new
{
    echo "# Written by infra/lock.sh: the additional packages of the extra \`jax\`; the others do not change."
    grep -vxFf "$scratch/all" "$scratch/with-jax"
} > requirements-jax.lock.new
mv requirements.lock.new requirements.lock
mv requirements-jax.lock.new requirements-jax.lock
