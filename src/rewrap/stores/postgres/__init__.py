"""Postgres: connections, schema, the statements of the hot path, the guard, and verify's own queries."""
