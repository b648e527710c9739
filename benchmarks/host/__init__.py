"""What the host spends on a request."""
