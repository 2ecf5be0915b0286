"""What convert_norm makes of the networks of others' libraries."""
