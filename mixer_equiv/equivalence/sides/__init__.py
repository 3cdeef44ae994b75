"""Internal. The two sides of a comparison: models of ours, somebody else's models, checkpoints.

`resolve.py` makes sides of whatever a caller gives; `base.py` says what a side is. Start reading there.
"""
