"""The search for better settings of a subject: trials of the pipeline's own stages.

`study` alone imports Optuna, which the extra `sweep` installs.
"""
