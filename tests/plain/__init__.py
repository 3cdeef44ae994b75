"""The tests that depend on the processor or the system, run with less of both: `python -m tests.plain`."""
