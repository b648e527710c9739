"""The paper's analyses of a CLIP or SigLIP, on any data set whose referred regions are known."""
