"""A checkpoint to try the plugin with, and the demo that serves it."""
