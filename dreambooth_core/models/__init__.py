"""Pipelines: loading, LoRA, sampling."""
