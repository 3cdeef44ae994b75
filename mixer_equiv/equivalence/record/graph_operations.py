"""`OPERATIONS`: the operations that a file of a graph may have, a closed table by name.

All of them compute results from their arguments alone: none draws random numbers, and none reads or writes files. The
names are those of aten, torch's library of operations, and of the primitives of `jax.lax`; neither framework is needed
to know them.
"""

from __future__ import annotations

from collections.abc import Mapping

# Names in aten by overload. An underscore at the end is that of an operation that writes into its first argument.
_ATEN: Mapping[str, str] = {
    "default": """
        linear addmm addmv mm bmm baddbmm mv dot addbmm addr _trilinear convolution _convolution cudnn_convolution
        _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d avg_pool1d avg_pool2d avg_pool3d
        max_pool2d_with_indices max_pool3d_with_indices
        native_layer_norm native_group_norm native_batch_norm _native_batch_norm_legit_no_training cudnn_batch_norm
        _native_batch_norm_legit _fused_rms_norm
        _scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_attention_math
        _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention
        scaled_dot_product_attention _softmax _log_softmax _safe_softmax
        relu relu_ gelu gelu_ silu silu_ sigmoid sigmoid_ tanh tanh_ elu elu_ leaky_relu leaky_relu_ hardtanh hardtanh_
        hardswish hardswish_ hardsigmoid hardsigmoid_ softplus mish mish_ glu log_sigmoid_forward _prelu_kernel
        softshrink hardshrink celu celu_
        abs abs_ neg neg_ sign sqrt sqrt_ rsqrt rsqrt_ square exp exp_ exp2 expm1 log log_ log2 log10 log1p sin sin_ cos
        cos_ tan asin acos atan atan2 sinh cosh asinh acosh atanh erf erf_ erfc erfinv reciprocal reciprocal_ floor
        floor_ ceil ceil_ round round_ trunc trunc_ frac sgn logit
        floor_divide maximum minimum fmax fmin hypot logaddexp logaddexp2 addcmul addcmul_ addcdiv addcdiv_ clamp clamp_
        clamp_min clamp_min_ clamp_max clamp_max_ nan_to_num nan_to_num_ isnan isinf isfinite logical_and logical_or
        logical_xor logical_not bitwise_not
        sum mean prod max min amax amin aminmax all any argmax argmin cumsum cumprod cummax cummin logcumsumexp
        logsumexp linalg_vector_norm std var median kthvalue sort argsort topk count_nonzero trace
        view _unsafe_view reshape _reshape_alias expand permute unsqueeze unsqueeze_ squeeze t t_ alias clone contiguous
        detach lift_fresh lift_fresh_copy as_strided as_strided_ as_strided_scatter slice_scatter select_scatter
        diagonal diag_embed unfold im2col col2im narrow_copy tril tril_ triu triu_ cat stack chunk unsafe_chunk
        split_with_sizes repeat roll flip rot90 constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d
        replication_pad1d replication_pad2d replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle
        _to_copy copy_ zero_ zeros_like ones_like full_like empty_like new_zeros new_ones new_full new_empty
        new_empty_strided scalar_tensor zeros ones full arange
        embedding _embedding_bag_forward_only gather index_select index_add index_add_ index_put index_put_
        _index_put_impl_ masked_select masked_scatter masked_scatter_ scatter_add scatter_add_ nonzero take
        upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_linear1d
        upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa
        grid_sampler_2d affine_grid_generator
        view_as_real view_as_complex real imag complex polar conj_physical _conj angle _fft_r2c _fft_c2r _fft_c2c
        _cdist_forward _local_scalar_dense equal
    """,
    "Tensor": """
        add add_ sub sub_ mul mul_ div div_ rsub remainder remainder_ fmod eq ne lt le gt ge clamp clamp_
        clamp_min clamp_min_ clamp_max clamp_max_ bitwise_and bitwise_or bitwise_xor bitwise_and_ bitwise_or_ xlogy
        lerp lerp_ index slice split unsafe_split masked_fill masked_fill_ fill_ bucketize
        searchsorted repeat_interleave
    """,
    "Scalar": """
        add add_ sub sub_ mul mul_ div div_ rsub remainder remainder_ fmod where eq ne lt le gt ge pow lerp lerp_
        bitwise_and bitwise_or masked_fill masked_fill_ fill_
    """,
    "Tensor_mode": "div div_",
    "Scalar_mode": "div",
    "Tensor_Scalar": "pow bitwise_left_shift bitwise_right_shift",
    "Tensor_Tensor": "pow",
    "self": "where",
    "ScalarSelf": "where",
    "ScalarOther": "where",
    "decimals": "round",
    "dim": "mean max min median squeeze squeeze_ all any",
    "dims": "squeeze all any",
    "dim_IntList": "sum",
    "dim_int": "prod",
    "correction": "std var var_mean std_mean",
    "stable": "sort",
    "int": "select transpose unbind",
    "self_int": "repeat_interleave",
    "src": "scatter scatter_",
    "value": "scatter scatter_",
    "two": "scatter_reduce scatter_reduce_",
    "start": "arange",
    "start_step": "arange",
    "vec": "upsample_nearest2d upsample_bilinear2d upsample_bicubic2d upsample_linear1d",
}

# The primitives that `record.torch.lax_rules` runs, whose table this one must equal.
_LAX = """
    abs sqrt rsqrt exp exp2 log log1p expm1 tanh sin cos tan sinh cosh asin acos atan asinh acosh atanh atan2 floor ceil
    sign neg add sub mul square erf erfc real imag complex eq ne lt le gt ge erf_inv logistic cbrt div rem pow max min
    is_finite and or xor not conj clamp select_n stop_gradient copy copy_p device_put reduce_precision
    optimization_barrier integer_pow round convert_element_type reshape broadcast_in_dim transpose squeeze expand_dims
    rev tile concatenate split pad slice dynamic_slice dynamic_update_slice dot_general conv_general_dilated reduce_sum
    reduce_max reduce_min reduce_prod reduce_and reduce_or argmax argmin cumsum cumprod cummax cummin cumlogsumexp
    reduce_window_sum reduce_window_max reduce_window_min sort top_k gather scatter scatter-add scatter-mul scatter-min
    scatter-max index stack
"""

OPERATIONS: frozenset[str] = frozenset(
    {f"aten.{name}.{overload}" for overload, names in _ATEN.items() for name in names.split()}
    | {f"lax.{name}" for name in _LAX.split()}
)
