"""Whole runs on Ray actors: many at a time, each on one actor, as the cells of a study are run."""
