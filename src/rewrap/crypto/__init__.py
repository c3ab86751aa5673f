"""Ciphers and stored layouts: pure functions over bytes, no I/O."""
