"""Drawn scenes whose every object is known, with expressions, questions and answers about them."""
