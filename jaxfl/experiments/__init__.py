"""Experiments as TOML files: their schema, the packaged ones, and how they are run."""
