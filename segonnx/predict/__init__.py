"""From an image to its label map with an artifact, as nnU-Net's own inference goes, without torch."""
