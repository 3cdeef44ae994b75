"""A Mixer trained on handwritten digits, and what loads it. Internal."""
