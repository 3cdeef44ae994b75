"""Internal. The two that are compared: programs of ours, somebody else's models, checkpoints."""
