"""Mutation testing of what moves weights and judges them: `make mutation`.

cosmic-ray's operators change the code, one place at a time, and the tests of that module must notice.
"""
