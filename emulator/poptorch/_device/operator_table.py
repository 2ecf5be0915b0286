"""Which of torch's operators PopTorch 3.4 compiles.

HANDLED are the operators that its sources register a handler for: registerHandler() in
poptorch/source/popart_canonicalization of release 3.4.0. What is left of any other at the end of compilation is
refused. Names are torch's, without overload, and without the underscore of the form that works in place.

Before that, torch 2.0.1 takes many operators apart on the IPU. Those that have no kernel for single devices never get
here at all; TAKEN_APART have kernels on the CPU, and a form for all other devices that comes down to HANDLED ones.
STANDS_FOR are kernels that only CPUs have, or that torch got later, for something that the IPU computes otherwise.
"""

from __future__ import annotations

HANDLED = frozenset(
    """
__and__ __or__ __xor__ _cdist_forward _convolution _embedding_bag _log_softmax _prelu_kernel _reshape_alias _softmax
_unsafe_view _weight_norm abs acos acosh adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d add addcdiv
addcmul addmm addmv all amax amin any arange argmax argmin argsort as_strided asin asinh atan atan2 atanh avg_pool1d
avg_pool2d avg_pool3d baddbmm batch_norm bernoulli bilinear binary_cross_entropy binary_cross_entropy_with_logits
bincount bitwise_and bitwise_not bitwise_or bitwise_xor bmm broadcast_to bucketize cartesian_prod cat cdist ceil
celu chunk clamp clamp_max clamp_min clone col2im constant_pad_nd contiguous conv2d convolution
convolution_overrideable copy_ cos cosh cosine_embedding_loss cosine_similarity count_nonzero cross
cross_entropy_loss ctc_loss cumprod cumsum detach div dot dropout einsum elu embedding embedding_bag eq erf erfc exp
expand expand_as expm1 exponential_ feature_dropout flatten flip floor floor_divide fmod frac frobenius_norm full
full_like gather ge gelu glu group_norm gru gt hardshrink hardsigmoid hardswish hardtanh hinge_embedding_loss im2col
index index_fill index_put index_reduce index_select instance_norm is_complex isnan kl_div l1_loss layer_norm le
leaky_relu linalg_cross linalg_vector_norm linear log log10 log1p log2 log_sigmoid log_sigmoid_forward log_softmax
logical_and logical_not logical_or logsumexp lstm lt margin_ranking_loss masked_fill matmul max max_pool1d
max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d max_pool3d_with_indices maximum mean median
meshgrid min minimum mish mkldnn_convolution mm mse_loss mul multilabel_soft_margin_loss mv nansum narrow
native_batch_norm native_group_norm native_layer_norm ne neg new_full new_ones new_zeros nll_loss2d
nll_loss2d_forward nll_loss_forward nll_loss_nd norm normal normal_ numpy_T one_hot ones ones_like pairwise_distance
permute pixel_shuffle poisson_nll_loss pow prelu prod rand randint randn random_ randperm reciprocal
reflection_pad1d reflection_pad2d relu remainder repeat replication_pad1d replication_pad2d replication_pad3d
reshape rnn_relu rnn_tanh roll round rrelu rrelu_with_noise rsqrt rsub scatter scatter_add scatter_reduce select
selu sigmoid sign silu sin sinh size slice smooth_l1_loss soft_margin_loss softmax softplus softshrink sort split
split_with_sizes sqrt square squeeze stack std std_mean sub sum t take_along_dim tan tanh tensordot threshold to
topk transpose transpose_ triplet_margin_loss triu true_divide trunc type_as unbind unfold uniform_ unsafe_chunk
unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_nearest1d upsample_nearest2d upsample_nearest3d var
var_mean view where zeros zeros_like
""".split()
)
TAKEN_APART = frozenset(
    """
_conj _conj_physical _euclidean_dist _has_same_storage_numel _is_all_true _is_any_true _local_scalar_dense _neg_view
_reshape_copy _stack _to_copy addr alias alias_copy as_strided_copy as_strided_scatter block_diag conj_physical copy
deg2rad detach_copy diag_embed diagonal diagonal_copy diagonal_scatter dist empty empty_like empty_strided expand_copy
exponential fill is_same_size isinf lift lift_fresh lift_fresh_copy narrow_copy new_empty new_empty_strided
normal_functional permute_copy pixel_unshuffle rad2deg rand_like randint_like randn_like random rot90 scalar_tensor
select_backward select_copy slice_backward slice_copy slice_scatter split_copy split_with_sizes_copy squeeze_copy
t_copy transpose_copy unbind_copy unfold_copy uniform unsafe_split unsafe_split_with_sizes unsqueeze_copy view_copy
zero
""".split()
)
STANDS_FOR = frozenset(
    """
_adaptive_avg_pool2d _adaptive_avg_pool3d _assert_async _assert_tensor_metadata _batch_norm_no_update
_batch_norm_with_update _embedding_bag_forward_only _masked_softmax _mkldnn_transpose _native_batch_norm_legit
_native_batch_norm_legit_functional _native_batch_norm_legit_no_training _native_multi_head_attention _safe_softmax
_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu _transformer_encoder_layer_fwd
_trilinear _unsafe_index _unsafe_index_put _weight_norm_interface empty_permuted mkldnn_rnn_layer native_dropout
""".split()
)


def plain_name(name: str) -> str:
    """aten::add_ -> add; aten::__and__ and aten::normal_ keep theirs."""
    name = name.rpartition(":")[2]
    is_in_place = name.endswith("_") and not name.endswith("__")
    return name[:-1] if is_in_place and name not in HANDLED else name


def is_supported(name: str) -> bool:
    """Whether the device's compiler takes an operator of this plain name."""
    return name in HANDLED or name in TAKEN_APART or name in STANDS_FOR
