"""A rotation to watch: a throw-away Postgres, an application that keeps writing, and a kill."""
