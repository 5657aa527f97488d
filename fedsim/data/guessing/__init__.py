"""What ``fedsim init`` makes of a file of one's own: its columns, their parts in a task, and a config that says so."""
