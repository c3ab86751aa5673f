"""The ledger: which runs there were, how far each table is, what is in quarantine."""
