"""The trainer's processes: launching, accelerate's configuration, supervision."""
