"""Prefect tasks: thin wrappers of the pipeline's stages, and their agreement with DVC."""
