#!/bin/sh
# Write random passwords to a file that only its owner can read: `infra/services/secrets.sh FILE`.
# Refuse to overwrite: running databases keep the passwords of their first start.
set -eu
file=$1
umask 077
set -C # `>` fails if the file exists
password() { od -An -N 24 -tx1 /dev/urandom | tr -d ' \n'; }
lines=$(
  for name in POSTGRES_PASSWORD PREFECT_DATABASE_PASSWORD MLFLOW_DATABASE_PASSWORD \
    MLFLOW_ADMIN_PASSWORD MLFLOW_PASSWORD MLFLOW_SESSION_KEY \
    S3_ADMIN_SECRET S3_MLFLOW_SECRET S3_DVC_SECRET; do
    echo "$name=$(password)"
  done
  echo "PREFECT_AUTH_STRING=pipeline:$(password)"
)
if ! echo "$lines" 2>/dev/null >"$file"; then
  echo "error: cannot create $file: it exists already, or its folder cannot be written" >&2
  echo "hint: keep its passwords; to start anew, remove it together with the services' volumes" >&2
  exit 1
fi
echo "wrote $file (mode 0600)"
