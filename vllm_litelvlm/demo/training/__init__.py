"""Trains the small CLIP and the small LLaVA that the package's demo and examples run."""
