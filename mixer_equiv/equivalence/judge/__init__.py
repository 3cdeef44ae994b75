"""Internal. Runs both sides, compares them, decides on the verdict and explains it.

The order of reading: `evidence.py`, `decide.py`, `causes.py`, `report_assembly.py`.
"""
