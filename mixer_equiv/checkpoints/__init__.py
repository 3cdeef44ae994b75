"""Checkpoints: read, recognised, validated, converted and written. Internal; what is public is in `mixer_equiv`."""
