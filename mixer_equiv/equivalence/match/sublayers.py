"""`exchange`: a program in which two branches of the stream, such as two MLPs, are in each other's place.

A branch begins at a value of the stream and ends in a sum of that and its own result. Nothing here knows a model.
"""

from __future__ import annotations

import dataclasses

from mixer_equiv.operations import Program, Step

# The `what` of a deviation by which a program has been changed so. Its step is the sum in which both branches end.
SWAPPED = "sublayers_swapped"


def branches_end(program: Program, start: int, count: int) -> int | None:
    """The place of the sum in which so many branches in a row end, of which the first begins at `start`."""
    place: int | None = start
    for _ in range(count):
        sums = (i for i, step in enumerate(program.steps) if step.operation == "add" and step.inputs[0] == place)
        place = next((i + 1 for i in sums), None)
        if place is None:
            return None
    return place


def exchange(program: Program, start: int) -> Program | None:
    """The program with the two branches from the value at `start` in each other's place.

    None if there are not two, of one block by the first part of their names.
    """
    middle, end = (branches_end(program, start, count) for count in (1, 2))
    if middle is None or end is None:
        return None
    if len({program.steps[place - 1].name.partition("/")[0] for place in (middle, end)}) > 1:
        return None
    first, second = middle - start, end - middle
    earlier = tuple(_moved(step, middle, start, -first) for step in program.steps[middle:end])
    later = tuple(_moved(step, start, start + second, second) for step in program.steps[start:middle])
    stages = {
        name: number + second if start < number <= middle else number - first if middle < number <= end else number
        for name, number in program.stages.items()
    }
    return Program((*program.steps[:start], *earlier, *later, *program.steps[end:]), stages)


def _moved(step: Step, stream: int, new_stream: int, by: int) -> Step:
    """The step with its inputs counted so much further, and another value for the stream."""
    return dataclasses.replace(step, inputs=tuple(new_stream if i == stream else i + by for i in step.inputs))
