"""What runs keep for later ones: tokens, layer scores, the start's evaluation and the fuse trial, in files keyed by content."""
