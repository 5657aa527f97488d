"""What happens to a device's result between its training and the server's sums."""
