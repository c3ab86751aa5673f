"""Probes: questions a job asks of the application, before a run and after it."""
