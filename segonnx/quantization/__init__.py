"""From an artifact to one whose convolutions compute in int8, with a verdict on images that nobody calibrated on."""
