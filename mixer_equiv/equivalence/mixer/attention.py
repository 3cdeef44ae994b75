"""`attention_in`: where a trace weights values by a softmax of others, as attention does."""

from __future__ import annotations

import re

from mixer_equiv.equivalence.record.trace import Trace, Value

# Operations that are attention as a whole, and those of its two steps, in torch and JAX.
_WHOLE = re.compile(r"scaled_dot_product|multi_head_attention|_transformer_encoder")
_SOFTMAX = re.compile(r"softmax")
_PRODUCT = re.compile(r"bmm|matmul|einsum|dot_general")


def attention_in(trace: Trace) -> Value | None:
    """The first value of a trace that attention gives; None where there is none."""
    weights: set[int] = set()  # the numbers of values that a softmax of data gives, and views of them
    for value in (value for value in trace.values if value.is_data):
        takes_weights = not weights.isdisjoint(value.inputs)
        if _SOFTMAX.search(value.operation) or (takes_weights and value.is_view):
            weights.add(value.number)
        is_product = _PRODUCT.search(value.operation) and takes_weights
        if _WHOLE.search(value.operation) or (is_product and all(trace.values[i].is_data for i in value.inputs)):
            return value
    return None
