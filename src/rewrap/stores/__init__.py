"""Stores: one package or module for each kind of database."""
