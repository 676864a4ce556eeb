"""What each operation of PyTorch is: the one place that knows operations by name.

An operation goes by one name, however it is met: as a node of the autograd graph (``ThresholdBackward1``), or as it is
dispatched (``threshold_``, ``threshold_backward``). Whatever else has to know an operation asks this table for its
kind or its word; what may be a ReLU by its bounds has a recogniser in ``relus.py`` besides.
"""

import re
from functools import cache
from typing import Final

from torch.autograd.graph import Node

from guided_backprop.backends.operations import Kind, Operation, Table

OPERATIONS: Final = Table(
    {
        Kind.MOVES: """
            alias=copy as_strided=slice as_strided_scatter=slice block_diag=concatenate cat=concatenate
            channel_shuffle=transpose chunk=split clone=copy coalesce=copy col2im=unfold constant_pad_nd=pad copy
            detach=stop_gradient diag_embed=diag diagonal=diag diagonal_scatter=diag expand=broadcast
            fill flip im2col=unfold lazy_clone=copy lift=copy lift_fresh=copy narrow_copy=slice
            pack_padded_sequence=slice permute=transpose pin_memory=copy pixel_shuffle=transpose
            pixel_unshuffle=transpose reflection_pad1d=pad reflection_pad2d=pad reflection_pad3d=pad repeat=broadcast
            replication_pad1d=pad replication_pad2d=pad replication_pad3d=pad reshape_alias=reshape reshape_copy=reshape
            roll rot90=flip select=slice select_scatter=slice slice slice_inverse=slice slice_scatter=slice split
            split_with_sizes=split squeeze=reshape stack sparse_compressed_tensor=copy
            sparse_coo_tensor_with_dims_and_tensors=copy t=transpose to_copy=cast to_dense=copy to_mkldnn=copy
            to_padded_tensor=pad to_sparse=copy to_sparse_bsc=copy to_sparse_bsr=copy to_sparse_csc=copy
            to_sparse_csr=copy transpose tril=diag triu=diag trace=diag unbind=split unfold unsafe_split=split
            unsafe_split_with_sizes=split unsafe_view=reshape unsqueeze=reshape values=copy view=reshape
            view_as_complex=complex view_as_real=complex view_copy=reshape zero=fill
            mkldnn_reshape=reshape resolve_conj=copy resolve_neg=copy

            arange=create empty=create empty_like=create empty_strided=create eye=create full=create full_like=create
            linspace=create new_empty=create new_empty_strided=create new_full=create new_ones=create new_zeros=create
            ones=create ones_like=create scalar_tensor=create zeros=create zeros_like=create empty_permuted=create
        """,
        Kind.LINEAR: """
            adaptive_avg_pool2d=avg_pool adaptive_avg_pool3d=avg_pool add addbmm=matmul addcmul addmm=matmul
            addmv=matmul addr=matmul affine_grid_generator=matmul avg_pool2d=avg_pool avg_pool3d=avg_pool
            baddbmm=matmul bilinear=matmul bmm=matmul complex conj conj_physical=conj conv_depthwise2d=conv
            conv_depthwise3d=conv conv_tbc=conv convolution=conv convolution_backward_overrideable=conv
            convolution_overrideable=conv convolution_pointwise=conv convolution_transpose_pointwise=conv
            linear_pointwise=matmul cudnn_affine_grid_generator=matmul cudnn_convolution=conv
            cudnn_convolution_transpose=conv cumsum deform_conv2d=conv deg2rad=mul div dot=matmul fft_c2c=fft
            fft_c2r=fft fft_r2c=fft grouped_mm=matmul imag int_mm=matmul ldexp=mul lerp linalg_cross=mul linear=matmul
            matmul mean miopen_convolution=conv miopen_convolution_transpose=conv miopen_depthwise_convolution=conv
            mkldnn_adaptive_avg_pool2d=avg_pool mkldnn_convolution=conv mkldnn_linear=matmul mm=matmul
            mps_convolution=conv mps_convolution_transpose=conv mul mv=matmul nansum=sum neg neg_view=neg nll_loss=sum
            nll_loss2d=sum nnpack_spatial_convolution=conv ps_roi_pool=avg_pool psroipool=avg_pool rad2deg=mul real
            rsub slow_conv2d=conv slow_conv3d=conv slow_conv_dilated2d=conv slow_conv_dilated3d=conv
            slow_conv_transpose2d=conv slow_conv_transpose3d=conv sparse_addmm=matmul sparse_mm_reduce_impl=matmul
            sparse_sampled_addmm=matmul sparse_sparse_matmul=matmul sparse_sum=sum sub sum trilinear=matmul
            upsample_bicubic2d=resize upsample_bicubic2daa=resize upsample_bilinear2d=resize
            upsample_bilinear2daa=resize upsample_lanczos2daa=resize upsample_linear1d=resize upsample_nearest1d=resize
            upsample_nearest2d=resize upsample_nearest3d=resize upsample_nearest_exact1d=resize
            upsample_nearest_exact2d=resize upsample_nearest_exact3d=resize upsample_trilinear3d=resize vdot=matmul

            batch_norm_no_update=batch_norm batch_norm_with_update=batch_norm cudnn_batch_norm=batch_norm
            miopen_batch_norm=batch_norm native_batch_norm=batch_norm native_batch_norm_legit=batch_norm
            native_batch_norm_legit_no_training=batch_norm
        """,
        Kind.RELU: "leaky_relu prelu relu rrelu rrelu_with_noise_functional=rrelu threshold=relu",
        Kind.CLIP: """
            clamp clamp_max=minimum clamp_min=maximum fake_quantize_learnable_per_channel_affine=fake_quant
            fake_quantize_learnable_per_tensor_affine=fake_quant fake_quantize_per_channel_affine_cachemask=fake_quant
            fake_quantize_per_tensor_affine_cachemask=fake_quant
            fake_quantize_per_tensor_affine_cachemask_tensor_qparams=fake_quant fmax=maximum fmin=minimum
            fused_moving_avg_obs_fq_helper=fake_quant hardtanh=clamp
            maximum minimum
        """,
        Kind.SMOOTH: """
            acos acosh addcdiv=div angle=atan2 asin asinh atan atan2 atanh binary_cross_entropy=log
            binary_cross_entropy_with_logits=softplus celu cholesky cholesky_inverse=cholesky
            cholesky_solve=inv copysign=abs cos cosh ctc_loss=logsumexp cudnn_ctc_loss=logsumexp cumprod digamma
            elu erf erfc erfinv exp exp2=exp expm1 gelu geqrf=qr glu hardsigmoid
            hardswish hypot i0=bessel igamma igammac=igamma lgamma linalg_cholesky_ex=cholesky linalg_det=det
            linalg_eig=eig linalg_eigh=eig linalg_householder_product=qr linalg_inv_ex=inv linalg_lstsq=inv linalg_lu=lu
            linalg_lu_factor_ex=lu linalg_lu_solve=inv linalg_matrix_exp=exp linalg_pinv=inv linalg_qr=qr
            linalg_slogdet=det linalg_solve_ex=inv linalg_solve_triangular=inv linalg_svd=svd log log10=log log1p
            log2=log logaddexp logaddexp2=logaddexp logcumsumexp=logsumexp logit=log logsumexp lu_unpack=lu
            miopen_ctc_loss=logsumexp mish mse_loss=pow mvlgamma=lgamma ormqr=qr polar=cos polygamma pow prod
            reciprocal=div rsqrt silu sin sinc sinh soft_margin_loss=softplus softplus special_entr=entr
            special_erfcx=erfc special_i0e=bessel special_i1=bessel special_i1e=bessel special_log_ndtr=ndtri
            special_ndtri=ndtri special_xlog1py=log1p special_zeta=zeta sqrt standard_gamma_grad=gamma tan tanh
            triangular_solve=inv var=pow var_mean=pow xlogy
            cudnn_attention=scaled_dot_product_attention efficient_attention=scaled_dot_product_attention
            flash_attention=scaled_dot_product_attention scaled_dot_product_attention
            cudnn_rnn=rnn lstm_mps=lstm miopen_rnn=rnn mkldnn_rnn_layer=lstm thnn_fused_gru_cell=gru
            thnn_fused_lstm_cell=lstm
        """,
        Kind.HEAD: """
            log_sigmoid log_softmax log_softmax_backward_data=log_softmax masked_softmax=softmax safe_softmax=softmax
            sigmoid softmax softmax_backward_data=softmax sparse_log_softmax=log_softmax sparse_softmax=softmax
        """,
        Kind.CHOOSES: """
            abs adaptive_max_pool=max_pool amax=max amin=min aminmax=max cdist=norm cummax=max cummin=min dist=norm
            embedding_renorm=renorm euclidean_dist=norm fmod=modulo frac=modulo
            fractional_max_pool=max_pool hardshrink huber_loss kthvalue=sort linalg_vector_norm=norm max max_pool
            median=sort min mkldnn_max_pool=max_pool mode=sort nan_to_num nanmedian=sort norm pdist=norm
            remainder=modulo renorm roi_pool=max_pool roipool=max_pool segment_reduce=max smooth_l1loss=huber_loss
            softshrink sort std=norm std_mean=norm topk=sort
        """,
        Kind.MASKS: """
            cudnn_grid_sampler=gather embedding=gather embedding_bag=gather gather grid_sampler2d=gather
            grid_sampler2dcpu_fallback=gather grid_sampler3d=gather index=gather index_add=scatter index_copy=scatter
            index_fill=scatter index_put=scatter index_put_impl=scatter index_reduce=scatter index_select=gather
            masked_fill=where masked_scatter=where masked_select=gather max_unpool2d=scatter max_unpool3d=scatter
            ps_roi_align=gather psroialign=gather put=scatter roi_align=gather roialign=gather scatter
            scatter_add=scatter scatter_reduce=scatter sparse_mask=where take=gather unsafe_index=gather
            unsafe_index_put=scatter unsafe_masked_index=gather unsafe_masked_index_put_accumulate=scatter where
        """,
        # They pass no gradient on, or one of zeros.
        Kind.COMPARES: """
            all any argmax argmin argsort bincount bitwise_and=and bitwise_not=not bitwise_or=or bitwise_xor=xor
            bucketize ceil count_nonzero=ne eq equal=eq floor floor_divide=floor ge gt heaviside=sign histc
            is_nonzero=ne isin=eq isinf isnan isneginf=isinf isposinf=isinf le local_scalar_dense=item logical_and=and
            logical_not=not logical_or=or logical_xor=xor lt ne nextafter nonzero=ne round searchsorted=bucketize
            sgn=sign sign signbit=sign trunc unique unique2=unique unique_consecutive=unique unique_dim=unique
            unique_dim_consecutive=unique
        """,
        Kind.NORM: """
            fused_rms_norm=rms_norm native_group_norm=group_norm native_layer_norm=layer_norm
            weight_norm_interface=weight_norm
        """,
        Kind.RANDOM: """
            bernoulli=dropout cauchy=random binomial=random exponential=random fused_dropout=dropout geometric=random
            log_normal=random multinomial=random native_dropout=dropout normal=random poisson=random rand=random
            rand_like=random randint=random randn=random randn_like=random random randperm=random
            standard_gamma=random uniform=random
        """,
        # The margin losses have a hinge inside, which is a ReLU; lists of tensors are changed together.
        Kind.HIDDEN: """
            foreach_div foreach_maximum foreach_minimum foreach_mm foreach_norm foreach_pow multi_margin_loss
            multilabel_margin_loss
        """,
    }
)

#: What can be differentiated and has no row: where it lies between score and image the values are looked at.
#:
#: * nested tensors: what has no rows of one size is no batch;
#: * what PyTorch tests itself with;
#: * the mantissa of a number, of which the derivative is a step function.
UNKNOWN_ON_PURPOSE: Final = frozenset(
    """
    nested_from_padded nested_from_padded_tensor nested_get_values nested_tensor_from_mask
    nested_tensor_from_tensor_list nested_view_from_buffer nested_view_from_jagged
    test_autograd_multiple_dispatch test_autograd_multiple_dispatch_view test_warn_in_autograd
    frexp
    """.split()
)


def operation(node: Node) -> str:
    """Return the operation that a node is the derivative of, by the name that the table knows it by.

    A custom function keeps its own name, for it may be called as an operation of torch is.
    """
    return operation_of(node.name())


def row(node: Node) -> Operation:
    """Return what the operation is that a node is the derivative of."""
    return row_of(node.name())


@cache
def operation_of(name: str) -> str:
    """Return the operation that a node of this name is the derivative of: ``LogSoftmaxBackward0`` log_softmax."""
    if not _has_row(name):
        return name
    name = re.sub(r"^.*(_torchvision_|vision::ops::.*::)|(_default)?Backward\d*$|Function>$", "", name)
    return dispatched(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())


@cache
def row_of(name: str) -> Operation:
    """Return what the operation is that a node of this name is the derivative of."""
    if _has_row(name):
        return OPERATIONS[operation_of(name)]
    return Operation(Kind.MOVES, "copy") if name in KNOWN_FUNCTIONS else Operation(Kind.HIDDEN, name)


@cache
def dispatched(name: str) -> str:
    """Return the operation that is dispatched under a name: ``_softmax`` softmax, ``abs_`` abs."""
    name = re.sub(r"scaled_dot_product_\w*attention\w*", "scaled_dot_product_attention", name.strip("_"))
    name = re.sub(r"max_pool\dd", "max_pool", name)
    # Nodes are named without these: Upsample...2DAa, GridSampler2D, SmoothL1Loss.
    name = re.sub(r"(?<=2d)_(?=aa)|(?<=sampler)_(?=\dd)|(?<=l1)_(?=loss)", "", name)
    return re.sub(r"_?with_?indices$|_kernel$|_with_noise$|_forward$|_for_cpu$", "", name)


def _has_row(name: str) -> bool:
    """Tell a single operation: torch's has a number, which custom functions and regions lack; torchvision's a name."""
    return bool(re.search(r"^GeneratedBackwardFor_torchvision_|<vision::ops::|^[^:]*Backward\d+$", name))


#: Nodes in C++ without a number, that are known: the beginning of a graph, copies; in place on a view is looked into.
KNOWN_FUNCTIONS: Final = frozenset(
    {"torch::autograd::AccumulateGrad", "torch::autograd::CopyBackwards", "torch::autograd::CopySlices"}
)
