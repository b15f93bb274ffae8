#!/bin/sh
# Start SeaweedFS as one process with the S3 interface. Each key reaches its own bucket only; the
# administrator's creates them.
set -eu
umask 077
cat >/tmp/s3.json <<JSON
{"identities": [
  {"name": "admin", "actions": ["Admin", "Read", "Write", "List"],
   "credentials": [{"accessKey": "admin", "secretKey": "$S3_ADMIN_SECRET"}]},
  {"name": "mlflow", "actions": ["Read:mlflow", "Write:mlflow", "List:mlflow"],
   "credentials": [{"accessKey": "mlflow", "secretKey": "$S3_MLFLOW_SECRET"}]},
  {"name": "dvc", "actions": ["Read:dvc", "Write:dvc", "List:dvc"],
   "credentials": [{"accessKey": "dvc", "secretKey": "$S3_DVC_SECRET"}]}
]}
JSON
exec weed server -dir=/data -ip=127.0.0.1 -ip.bind=127.0.0.1 -volume.max=0 \
  -master.volumeSizeLimitMB=1024 -filer -s3 -s3.port=8333 -s3.ip.bind=0.0.0.0 \
  -s3.config=/tmp/s3.json
