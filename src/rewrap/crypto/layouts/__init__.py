"""Descriptors of stored formats, as data: one TOML file each, named as jobs name them."""
