"""The run's config: its schema, how a YAML file and overrides become one, and the sentences about mistakes in it."""
