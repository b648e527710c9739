"""The plugin beside stock vLLM on a GPU, in one command of a few minutes."""
