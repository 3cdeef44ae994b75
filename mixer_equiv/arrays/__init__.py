"""Internal. Arrays of any framework and of files: conversion to NumPy, laziness, stacks, rounding; knows no Mixer.

Start with `lazy`: a mapping whose arrays are computed when they are used.
"""
