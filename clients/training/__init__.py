"""Local training: work groups, gradients, optimizers, and the sums that go to the server."""
