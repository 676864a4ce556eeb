"""What each operation of JAX is: the one place that knows primitives by name, and the jitted activations of jax.nn.

Whatever else has to know an operation asks this table for its kind or its word.
"""

from guided_backprop.backends.operations import Kind, Table

#: By the primitive's name; what is jitted in ``jax.nn`` or ``jax.numpy`` goes by its path, see :data:`JITTED`.
OPERATIONS = Table(
    {
        # A mark is what tells a value as one of each device, inside of a shard_map. One copy is Equinox's.
        Kind.MOVES: """
            all_gather all_gather_invariant=all_gather all_gather_reduced=all_gather all_to_all
            broadcast_in_dim=broadcast concatenate convert_element_type=cast copy copy_p=copy device_put=copy
            expand_dims=reshape layout_constraint=copy name=copy nondifferentiable_backward=copy
            optimization_barrier=copy pad pbroadcast=mark pcast=mark ppermute preduced=mark pvary=mark
            ragged_all_to_all=all_to_all reduce_precision=cast reduced_vary_cast_p=mark reshape reshard=copy
            rev=flip sharding_constraint=copy slice split squeeze stack tie=copy tile=broadcast transpose unstack
            vary_unreduced_cast_p=mark
        """,
        Kind.LINEAR: """
            add add_any=add bcoo_dot_general=matmul bcoo_dot_general_sampled=matmul bcoo_spdot_general=matmul
            bcsr_dot_general=matmul complex conj conv_general_dilated=conv coo_matmat=matmul coo_matvec=matmul
            csr_matmat=matmul csr_matvec=matmul cumsum div dot_general=matmul fft imag mul neg psum2=sum psum=sum
            psum_invariant=sum ragged_dot_general=matmul real reduce_scatter=sum reduce_sum=sum
            reduce_window_sum=avg_pool sub symmetric_product=matmul unreduced_psum=sum unreduced_reduce_scatter=sum
        """,
        Kind.CLIP: "clamp jax.nn.hard_tanh=clamp jax.numpy.fmax=maximum max=maximum min=minimum",
        Kind.SMOOTH: """
            acos acosh asin asinh atan atan2 atanh bessel_i0e=bessel bessel_i1e=bessel cbrt cholesky cos cosh
            cumlogsumexp=logsumexp cumprod digamma eig eigh=eig erf erf_inv=erfinv erfc exp exp2=exp expm1 igamma
            igamma_grad_a=igamma igammac=igamma integer_pow=pow lgamma log log1p lu polygamma pow qr
            reduce_prod=prod regularized_incomplete_beta=betainc rsqrt sin sinh spsolve=inv sqrt square=pow svd tan
            tanh triangular_solve=inv tridiagonal_solve=inv zeta jax.nn.celu=celu jax.nn.elu=elu jax.nn.gelu=gelu
            jax.nn.glu=glu jax.nn.hard_sigmoid=hardsigmoid jax.nn.hard_silu=hardswish jax.nn.hard_swish=hardswish
            jax.nn.leaky_relu=leaky_relu jax.nn.mish=mish jax.nn.selu=selu jax.nn.silu=silu
            jax.nn.soft_sign=softsign jax.nn.softplus=softplus jax.nn.sparse_plus=sparse_plus
            jax.nn.sparse_sigmoid=sparse_sigmoid jax.nn.squareplus=squareplus jax.numpy.logaddexp=logaddexp
        """,
        Kind.HEAD: "logistic=sigmoid jax.nn.log_sigmoid=log_sigmoid",
        Kind.CHOOSES: """
            abs approx_top_k=sort cummax=max cummin=min pmax=max pmin=min reduce_max=max reduce_min=min
            reduce_window_max=max_pool reduce_window_min=max_pool rem=modulo scatter-max=max scatter-min=min
            scatter_max=max scatter_min=min select_and_gather_add=max_pool select_and_scatter_add=max_pool sort
            top_k=sort
        """,
        Kind.MASKS: """
            bcoo_extract=gather bcoo_fromdense=gather bcoo_sort_indices=gather bcoo_sum_duplicates=scatter
            bcoo_todense=scatter bcoo_transpose=gather bcsr_extract=gather bcsr_fromdense=gather
            bcsr_todense=scatter coo_fromdense=gather coo_todense=scatter csr_fromdense=gather csr_todense=scatter
            dynamic_slice=gather dynamic_update_slice=scatter gather scatter scatter-add=scatter scatter-mul=scatter
            scatter-sub=scatter scatter_add=scatter scatter_mul=scatter scatter_sub=scatter select_n=where
            todense=scatter
        """,
        # They pass no gradient on, also those that return floating-point numbers.
        Kind.COMPARES: """
            and=logical_and argmax argmin bitcast_convert_type=bitcast ceil clz eq=equal eq_to=equal floor
            ge=greater_equal gt=greater is_finite=isfinite le=less_equal le_to=less_equal lt=less lt_to=less mulhi
            ne=not_equal nextafter not=logical_not or=logical_or population_count reduce_and=logical_and
            reduce_or=logical_or reduce_xor=logical_xor round shift_left=shift shift_right_arithmetic=shift
            shift_right_logical=shift sign stop_gradient xor=logical_xor
        """,
        Kind.RANDOM: """
            random_bits random_clone random_fold_in random_gamma random_seed random_split random_unwrap random_wrap
            rng_bit_generator rng_uniform threefry2x32
        """,
        Kind.HOLDS: """
            checkpoint closed_call=call cond core_call=call core_closed_call=call jit=call pjit=call
            remat2=checkpoint remat=checkpoint scan shard_map while
        """,
        # Custom functions bring a derivative of their own, and show at least what they compute.
        Kind.HIDDEN: """
            custom_jvp_call=custom_function custom_linear_solve=inv custom_vjp_call=custom_function
            custom_vjp_call_jaxpr=custom_function custom_vmap_call=custom_function linear_call=custom_function
            addupdate=reference get=reference swap=reference
            call_exported ffi_call io_callback pallas_call pure_callback
        """,
    }
)

#: What has no row though it can be differentiated: where it lies between score and image it is refused by name.
#:
#: * arrays and lists that are changed in place: what is in them later no trace says;
#: * what gives nothing out, and so never lies there;
#: * parts of JAX that are being built, and calls that JAX itself does not differentiate;
#: * reductions by a function of the user's own: sums, products and maxima have primitives of their own.
UNKNOWN_ON_PURPOSE = frozenset(
    """
    accum_grad_in_ref box_get box_set empty_ref free_ref freeze log_extend log_read masked_load masked_swap
    new_box new_log new_ref run_state
    check dce_sink debug_callback debug_print inspect_sharding
    call_hi_primitive composite eval_jaxpr from_edtype mpmd_map remat_opt stage to_edtype
    reduce reduce_window
    """.split()
)

#: The jitted functions of ``jax.nn`` and ``jax.numpy`` that have a row as a whole, by their name there.
JITTED = {path.rpartition(".")[2]: path for path in OPERATIONS if path.startswith("jax.")}
