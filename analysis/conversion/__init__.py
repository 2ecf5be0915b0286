"""What convert_norm does to the networks of other libraries."""
