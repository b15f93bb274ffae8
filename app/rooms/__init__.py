"""The rooms of the app: one module each, with its pages."""
