"""``GET /litelvlm``: a page that shows what pruning does to a picture, and what it asks for."""
