"""MLP-Mixer, once and provably: convert weights between implementations and prove them the same function."""
