"""Internal. Record a run of any torch module in float64, with other parameters than it has.

Start at `run.record`. Two modes work together (`dispatch_modes`): the function mode sees calls before torch
looks at dtypes, and puts float64 values in the place of every tensor that was not made during the pass;
the dispatch mode sees every operation that is carried out, and writes it on the `tape`. The module, and
all that it refers to, stay as they are.
"""

from mixer_equiv.equivalence.record.torch.nested_tensors import find_constant_tensors, find_unlisted_parameters
from mixer_equiv.equivalence.record.torch.run import WAYS, call, gradients, record

__all__ = ["WAYS", "call", "find_constant_tensors", "find_unlisted_parameters", "gradients", "record"]
