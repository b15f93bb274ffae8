#!/bin/sh
# Start MLflow's server with accounts and the artifact proxy. Clients need neither the database nor
# the object store. Settings come from the environment, so no password appears among the arguments.
set -eu
umask 077
export MLFLOW_AUTH_CONFIG_PATH="${TMPDIR:-/tmp}/mlflow-accounts.ini"
cat >"$MLFLOW_AUTH_CONFIG_PATH" <<INI
[mlflow]
default_permission = READ
database_uri = $MLFLOW_ACCOUNTS_URI
admin_username = admin
# A password is hashed once a minute instead of once a request.
auth_cache_ttl_seconds = 60
INI
exec mlflow server --app-name basic-auth --host "${HOST:-0.0.0.0}" --port "${PORT:-5000}" \
  --workers "${WORKERS:-2}" --serve-artifacts --artifacts-destination s3://mlflow
