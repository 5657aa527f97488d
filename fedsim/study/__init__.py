"""Studies: methods side by side over data sets and seeds, with statistics."""
