"""HTTP endpoints beside vLLM's own."""
