"""Internal. The catalogue of faults, the faults planted in code and in weights, and the kill matrix.

Diagnosis may import `catalogue.py` alone.
"""
