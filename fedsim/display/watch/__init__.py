"""Looking at runs and studies from outside, while they go on or afterwards: ``fedsim watch``, and the page of a run."""
