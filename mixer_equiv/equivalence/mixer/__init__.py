"""Internal. The knowledge of the Mixer that the search needs.

It has the official program of every depth, harmless rewrites of it, and the way from a match to a layout. Start
reading at `find.py`.
"""
