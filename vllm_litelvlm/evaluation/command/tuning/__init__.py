"""``litelvlm evaluate --tune``: a method's options, searched and judged by questions."""
