"""The layer in plain torch, and in other libraries."""
