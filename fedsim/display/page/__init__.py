"""One self-contained HTML page of a run, a study or a scaling study."""
