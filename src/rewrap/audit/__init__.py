"""The record of every run: one line in a file, one message to a webhook, and never a secret in it."""
