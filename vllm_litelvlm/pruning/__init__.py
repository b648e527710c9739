"""Which visual tokens stay: pure torch, knowing nothing of vLLM or transformers."""
