"""The commands of analyze.py. Each module has `add(commands, ...)`, and what it runs."""
