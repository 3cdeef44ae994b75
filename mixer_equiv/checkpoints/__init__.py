"""Internal. Checkpoints: loading, inferring, checking, converting, changing, inspecting and saving. Start at `io`."""
