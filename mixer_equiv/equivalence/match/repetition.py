"""`repeat`: a program in which a branch of the stream, such as an MLP with its LayerNorm, comes once more."""

from __future__ import annotations

import dataclasses

from mixer_equiv.operations import Parameter, Program, Step

# Ends the names of steps, parameters and axes of a branch that comes once more.
AGAIN = " again"


def repeat(program: Program, place: int) -> Program:
    """The program with the branch whose sum is the value at `place` repeated behind it.

    The branch begins at the first input of the sum. Its repetition has parameters of its own.
    """
    start = program.steps[place - 1].inputs[0]
    length = place - start
    again = tuple(_again(_shifted(step, start, length)) for step in program.steps[start:place])
    rest = tuple(_shifted(step, place, length) for step in program.steps[place:])
    stages = {name: number + length * (number > place) for name, number in program.stages.items()}
    return Program((*program.steps[:place], *again, *rest), stages)


def _shifted(step: Step, first: int, length: int) -> Step:
    """The step with its inputs, from value `first` on, counted so much further."""
    return dataclasses.replace(step, inputs=tuple(i + length * (i >= first) for i in step.inputs))


def _again(step: Step) -> Step:
    parameters = tuple(
        Parameter(parameter.name + AGAIN, tuple(axis + AGAIN for axis in parameter.axes))
        for parameter in step.parameters
    )
    return dataclasses.replace(step, name=step.name + AGAIN, parameters=parameters)
