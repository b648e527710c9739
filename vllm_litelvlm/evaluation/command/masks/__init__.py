"""``litelvlm evaluate --task masks``."""
