"""Where keys come from, and the keyring a run holds."""
