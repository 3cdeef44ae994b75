"""What operations of both frameworks do to the places of numbers: tables for following values through a graph."""

from __future__ import annotations

from mixer_equiv.equivalence.record.graph import Node


def operation_name(node: Node) -> str:
    """The name of a node's operation without namespace and overload: "aten.add.Tensor" is "add"."""
    return node.operation.split(".")[1] if "." in node.operation else node.operation


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# The same numbers, laid out in another way.
MOVES = _names(
    "alias broadcast_in_dim clone contiguous convert_element_type copy copy_p detach expand expand_dims lift_fresh "
    "permute reduce_precision reshape _reshape_alias rev squeeze stop_gradient t _to_copy transpose _unsafe_view "
    "unsqueeze view"
)

# Some of the numbers of one value, or those of several beside each other.
SELECTIONS = _names(
    "as_strided cat chunk concatenate dynamic_slice gather index_select narrow select slice split split_with_sizes "
    "stack unbind unsafe_chunk unsafe_split"
)

# Each number by itself.
FUNCTIONS = _names(
    "abs cos elu erf erf_inv erfc exp expm1 gelu hardsigmoid hardswish hardtanh integer_pow leaky_relu log log1p "
    "logistic mish neg pow relu rsqrt sigmoid silu sin softplus sqrt square tanh"
)

# Numbers at the same place of two values, which are added or chosen from, or of a gate and what it gates.
SUMS = _names("add add_any clamp clamp_max clamp_min max maximum min minimum select_n sub where")
PRODUCTS = _names("addcmul div mul")

# What one model computes in a step of its own, and another together with a layer: biases, scales, residuals, BatchNorm;
# and what it chooses of the result, which another may choose before.
JOINED = MOVES | SELECTIONS | _names("add add_any addcmul div mul native_batch_norm sub")

ELEMENTWISE = MOVES | FUNCTIONS | SUMS | PRODUCTS
