"""Create what the services need once: the buckets, and the pipeline's account in MLflow.

It may run at every start: it leaves alone what is already there.
"""

import base64
import json
import os
import urllib.error
import urllib.request

import boto3
from botocore.exceptions import ClientError

BUCKETS = ("mlflow", "dvc")
USER = "pipeline"


def make_buckets() -> None:
    """Create the missing buckets, with the administrator's key from the environment."""
    s3 = boto3.client("s3", region_name="us-east-1")
    for name in BUCKETS:
        try:
            s3.head_bucket(Bucket=name)
        except ClientError:
            s3.create_bucket(Bucket=name)


def make_account(url: str, *, admin_password: str, password: str) -> None:
    """Create the account that may write its own experiments and models, and read all others."""
    login = base64.b64encode(f"admin:{admin_password}".encode()).decode()
    request = urllib.request.Request(
        f"{url}/api/2.0/mlflow/users/create",
        data=json.dumps({"username": USER, "password": password}).encode(),
        headers={"Authorization": f"Basic {login}", "Content-Type": "application/json"},
    )
    try:
        urllib.request.urlopen(request, timeout=60).close()
    except urllib.error.HTTPError as error:
        if b"RESOURCE_ALREADY_EXISTS" not in error.read():
            raise


if __name__ == "__main__":
    make_buckets()
    make_account(
        os.environ["MLFLOW_URL"],
        admin_password=os.environ["MLFLOW_ADMIN_PASSWORD"],
        password=os.environ["MLFLOW_PASSWORD"],
    )
