"""Pure functions: the only copies of the formulas."""
