"""The model registry and run tracking; no other package imports mlflow."""
