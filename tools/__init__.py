"""Maintenance tools that are not installed with the product."""
