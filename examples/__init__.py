"""The layer in plain torch, and in others' libraries."""
