"""Tar shards: what is in them, and where they are kept."""
