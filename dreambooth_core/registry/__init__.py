"""The model registry and the tracker: the only importer of mlflow."""
