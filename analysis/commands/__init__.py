"""The commands of analyze.py that need no trained network. Each module has `add(commands, ...)`, and what it runs."""
