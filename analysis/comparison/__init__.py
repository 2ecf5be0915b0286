"""Runs beside each other: rows of a table, paired differences, what their seeds support, and pictures."""
