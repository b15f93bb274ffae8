"""What a run would need: memory and time, from the settings, the model's shapes and a table."""
