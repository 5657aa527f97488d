"""The run's config: its schema, reading it from YAML and overrides, and its error messages."""
