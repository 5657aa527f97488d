"""Tasks, sources of examples, metrics, and the columnar token table."""
