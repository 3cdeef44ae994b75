"""Internal. What is known of the Mixer: its reference program, the layout of a match, harmless rewrites."""
