"""Scores per checkpoint: prompt suites, extractors, selection, comparison."""
