"""Measurements of the plugin against stock vLLM."""
