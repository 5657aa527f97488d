"""What becomes of a client's result on its way to the server."""
