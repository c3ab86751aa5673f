"""The Cosmos DB store: documents read by feed range, patched where they are, guarded by their etags."""
