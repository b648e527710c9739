"""Rewrites checkpoints of other layouts into the one that is served.

Nothing here was tried on published weights, as none could be had: only on checkpoints that the
tests write in the layouts that their authors' sources describe.
"""
