"""TensorFlow's operations: what each is, in the vocabulary that all frameworks share.

A row is TensorFlow's name, and behind "=" the word for it where that is another. Whatever else has to know an
operation by name reads this table: another operation, or another name of one, is one row here.
"""

from guided_backprop.backends.operations import Kind, Table

OPERATIONS = Table(
    {
        Kind.MOVES: """
            AllToAll=move BatchToSpace=move BatchToSpaceND=move BroadcastTo=broadcast CSRSparseMatrixToDense=move
            CSRSparseMatrixToSparseTensor=move Cast=cast CheckNumerics=identity CheckNumericsV2=identity
            CollectivePermute=move Complex=complex CompositeTensorVariantFromComponents=move
            CompositeTensorVariantToComponents=move Concat=concatenate ConcatV2=concatenate Conj=conj
            ConjugateTranspose=transpose CopyToMesh=move CopyToMeshGrad=move DebugGradientIdentity=identity
            DebugGradientRefIdentity=identity DebugIdentityV2=identity DeepCopy=identity DenseToCSRSparseMatrix=move
            DepthToSpace=move Diag=diag DiagPart=diag EnsureShape=identity ExpandDims=reshape ExtractImagePatches=move
            ExtractVolumePatches=move Fill=broadcast Identity=identity IdentityN=identity_n Imag=imag
            MatrixBandPart=diag MatrixDiag=diag MatrixDiagPart=diag MatrixDiagPartV2=diag MatrixDiagPartV3=diag
            MatrixDiagV2=diag MatrixDiagV3=diag MatrixSetDiag=diag MatrixSetDiagV2=diag MatrixSetDiagV3=diag
            MirrorPad=pad MirrorPadGrad=pad NcclBroadcast=broadcast NextAfter=next_after OptionalFromValue=move
            OptionalGetValue=move Pack=stack Pad=pad PadV2=pad PlaceholderWithDefault=identity PreventGradient=identity
            Print=identity RaggedFillEmptyRows=move RaggedTensorFromVariant=move RaggedTensorToSparse=move
            RaggedTensorToTensor=move RaggedTensorToVariant=move ReadVariableOp=identity Real=real RefIdentity=identity
            Relayout=identity RelayoutLike=identity Reshape=reshape Reverse=flip ReverseSequence=flip ReverseV2=flip
            Roll=roll Slice=slice Snapshot=identity SpaceToBatch=move SpaceToBatchND=move SpaceToDepth=move
            SparseReorder=move SparseSlice=slice SparseTensorToCSRSparseMatrix=move Split=split SplitV=split
            Squeeze=reshape StopGradient=stop_gradient StridedSlice=slice StridedSliceGrad=pad
            TPUEmbeddingActivations=identity TensorArrayConcat=concatenate TensorArrayConcatV2=concatenate
            TensorArrayConcatV3=concatenate TensorArrayGather=stack TensorArrayGatherV2=stack TensorArrayGatherV3=stack
            TensorArrayRead=slice TensorArrayReadV2=slice TensorArrayReadV3=slice TensorArrayScatter=split
            TensorArrayScatterV2=split TensorArrayScatterV3=split TensorArraySplit=split TensorArraySplitV2=split
            TensorArraySplitV3=split TensorArrayWrite=stack TensorArrayWriteV2=stack TensorArrayWriteV3=stack
            TensorListConcat=concatenate TensorListConcatV2=concatenate TensorListFromTensor=split
            TensorListGather=stack TensorListGetItem=slice TensorListPopBack=slice TensorListPushBack=stack
            TensorListResize=move TensorListScatter=split TensorListScatterIntoExistingList=split
            TensorListScatterV2=split TensorListSetItem=stack TensorListSplit=split TensorListStack=stack
            TensorStridedSliceUpdate=stack Tile=broadcast Transpose=transpose Unpack=split XlaClusterOutput=identity
            XlaSharding=identity XlaSpmdFullToShardShape=identity XlaSpmdShardToFullShape=identity _EagerConst=identity
        """,
        Kind.LINEAR: """
            AccumulateNV2=add Add=add AddN=add AddV2=add AvgPool=avg_pool AvgPool3D=avg_pool AvgPool3DGrad=avg_pool
            AvgPoolGrad=avg_pool BatchMatMul=matmul BatchMatMulV2=matmul BatchMatMulV3=matmul
            BatchNormWithGlobalNormalization=batch_norm BiasAdd=add BiasAddGrad=sum BiasAddV1=add Conv2D=conv
            Conv2DBackpropFilter=conv Conv2DBackpropInput=conv Conv3D=conv Conv3DBackpropFilterV2=conv
            Conv3DBackpropInputV2=conv CropAndResize=resize Cross=cross CrossReplicaSum=sum Cumsum=cumsum
            DepthwiseConv2dNative=conv DepthwiseConv2dNativeBackpropFilter=conv DepthwiseConv2dNativeBackpropInput=conv
            Div=div DivNoNan=div Einsum=einsum FFT=fft FFT2D=fft FFT3D=fft FractionalAvgPool=avg_pool
            FusedBatchNorm=batch_norm FusedBatchNormV2=batch_norm FusedBatchNormV3=batch_norm IFFT=fft IFFT2D=fft
            IFFT3D=fft IRFFT=fft IRFFT2D=fft ImageProjectiveTransformV2=resize ImageProjectiveTransformV3=resize
            MatMul=matmul Mean=mean Mul=mul MulNoNan=mul NcclAllReduce=sum NcclReduce=sum Neg=neg RFFT=fft RFFT2D=fft
            RealDiv=div ResizeBicubic=resize ResizeBilinear=resize ResizeNearestNeighbor=resize ScaleAndTranslate=resize
            SparseAdd=add SparseDenseCwiseAdd=add SparseDenseCwiseDiv=div SparseDenseCwiseMul=mul SparseMatMul=matmul
            SparseMatrixAdd=add SparseMatrixMatMul=matmul SparseMatrixMul=mul SparseMatrixSparseMatMul=matmul
            SparseMatrixTranspose=transpose SparseReduceSum=sum SparseTensorDenseAdd=add SparseTensorDenseMatMul=matmul
            Sub=sub Sum=sum TridiagonalMatMul=matmul Xdivy=div XlaEinsum=einsum
        """,
        Kind.RELU: "LeakyRelu=leaky_relu Relu=relu Relu6=relu6",
        Kind.CLIP: """
            ClipByValue=clamp FakeQuantWithMinMaxArgs=fake_quant FakeQuantWithMinMaxVars=fake_quant
            FakeQuantWithMinMaxVarsPerChannel=fake_quant Maximum=maximum Minimum=minimum
            QuantizeAndDequantize=fake_quant QuantizeAndDequantizeV2=fake_quant QuantizeAndDequantizeV3=fake_quant
            QuantizeAndDequantizeV4=fake_quant SparseSparseMaximum=maximum SparseSparseMinimum=minimum
        """,
        Kind.SMOOTH: """
            Acos=acos Acosh=acosh Angle=atan2 Asin=asin Asinh=asinh Atan=atan Atan2=atan2 Atanh=atanh
            BandedTriangularSolve=inv BesselI0=bessel BesselI0e=bessel BesselI1=bessel BesselI1e=bessel BesselJ0=bessel
            BesselJ1=bessel BesselK0=bessel BesselK0e=bessel BesselK1=bessel BesselK1e=bessel BesselY0=bessel
            BesselY1=bessel Betainc=betainc BlockLSTM=lstm BlockLSTMV2=lstm Cholesky=cholesky Cos=cos Cosh=cosh
            Cumprod=cumprod CumulativeLogsumexp=logsumexp Dawsn=dawson Digamma=digamma Eig=eig Elu=elu Erf=erf Erfc=erfc
            Erfinv=erfinv Exp=exp Expint=expint Expm1=expm1 FresnelCos=fresnel FresnelSin=fresnel Igamma=igamma
            Igammac=igamma Inv=div L2Loss=pow Lgamma=lgamma Log=log Log1p=log1p LogMatrixDeterminant=det
            MatrixDeterminant=det MatrixInverse=inv MatrixSolve=inv MatrixSolveLs=inv MatrixSquareRoot=sqrt
            MatrixTriangularSolve=inv Ndtri=ndtri Polygamma=polygamma Pow=pow Prod=prod Qr=qr Reciprocal=div Rsqrt=rsqrt
            SegmentProd=prod SelfAdjointEigV2=eig Selu=selu Sin=sin Sinh=sinh SoftmaxCrossEntropyWithLogits=log_softmax
            Softplus=softplus Softsign=softsign SparseSoftmaxCrossEntropyWithLogits=log_softmax
            SparseMatrixSoftmax=softmax SparseSoftmax=softmax Spence=spence Sqrt=sqrt Square=pow SquaredDifference=pow
            Svd=svd Tan=tan Tanh=tanh TridiagonalSolve=inv UnsortedSegmentProd=prod Xlog1py=log1p Xlogy=xlogy Zeta=zeta
        """,
        Kind.HEAD: """
            LogSoftmax=log_softmax Sigmoid=sigmoid Softmax=softmax
        """,
        Kind.CHOOSES: """
            Abs=abs ApproxTopK=sort ComplexAbs=abs Dilation2D=dilation EuclideanNorm=norm FloorMod=modulo
            FractionalMaxPool=max_pool IsotonicRegression=isotonic Max=max MaxPool=max_pool MaxPool3D=max_pool
            MaxPoolV2=max_pool MaxPoolWithArgmax=max_pool Min=min NthElement=sort SegmentMax=max SegmentMin=min
            TensorScatterMax=maximum TensorScatterMin=minimum TopK=sort TopKV2=sort UnsortedSegmentMax=max
            UnsortedSegmentMin=min
        """,
        Kind.MASKS: """
            DynamicPartition=gather DynamicStitch=scatter EluGrad=gate Gather=gather GatherNd=gather GatherV2=gather
            LeakyReluGrad=gate MaxPool3DGrad=scatter MaxPool3DGradGrad=gather MaxPoolGrad=scatter MaxPoolGradGrad=gather
            MaxPoolGradV2=scatter ParallelDynamicStitch=scatter QuantizeAndDequantizeV4Grad=gate RaggedGather=gather
            Relu6Grad=gate ReluGrad=gate ResourceGather=gather ResourceGatherNd=gather ScatterNd=scatter
            ScatterNdNonAliasingAdd=scatter_add SegmentMean=scatter_add SegmentSum=scatter_add Select=where
            SelectV2=where SeluGrad=gate SparseFillEmptyRows=scatter SparseSegmentMean=scatter_add
            SparseSegmentMeanWithNumSegments=scatter_add SparseSegmentSqrtN=scatter_add
            SparseSegmentSqrtNWithNumSegments=scatter_add SparseSegmentSum=scatter_add
            SparseSegmentSumWithNumSegments=scatter_add SparseToDense=scatter TensorScatterAdd=scatter_add
            TensorScatterSub=scatter_add TensorScatterUpdate=scatter UnsortedSegmentSum=scatter_add
        """,
        Kind.COMPARES: """
            ApproximateEqual=equal ArgMax=argmax ArgMin=argmin Bitcast=bitcast Bucketize=digitize Ceil=ceil Equal=equal
            Floor=floor FloorDiv=floor_divide Greater=greater GreaterEqual=greater_equal IsFinite=isfinite IsInf=isinf
            IsNan=isnan Less=less LessEqual=less_equal LogicalAnd=logical_and LogicalNot=logical_not
            LogicalOr=logical_or LowerBound=searchsorted Mod=modulo NotEqual=not_equal OneHot=one_hot Rint=rint
            Round=round Sign=sign TruncateDiv=floor_divide TruncateMod=modulo Unique=unique UniqueV2=unique
            UpperBound=searchsorted Where=nonzero
        """,
        Kind.NORM: "LRN=local_response_norm",
        Kind.RANDOM: """
            AllCandidateSampler=candidates FixedUnigramCandidateSampler=candidates
            LearnedUnigramCandidateSampler=candidates LogUniformCandidateSampler=candidates Multinomial=multinomial
            ParameterizedTruncatedNormal=random_normal RandomCrop=random_crop RandomGamma=random_gamma
            RandomIndexShuffle=shuffle
            RandomPoisson=random_poisson RandomPoissonV2=random_poisson RandomShuffle=shuffle
            RandomStandardNormal=random_normal SampleDistortedBoundingBox=random_crop
            SampleDistortedBoundingBoxV2=random_crop StatelessRandomBinomial=random_binomial
            StatelessRandomPoisson=random_poisson StatelessRandomUniformFullInt=random_uniform
            StatelessRandomUniformFullIntV2=random_uniform StatelessRandomUniformInt=random_uniform
            StatelessSampleDistortedBoundingBox=random_crop ThreadUnsafeUnigramCandidateSampler=candidates
            StatelessRandomUniformIntV2=random_uniform StatelessShuffle=shuffle
            RandomUniform=random_uniform RandomUniformInt=random_uniform StatefulRandomBinomial=random_binomial
            StatefulStandardNormalV2=random_normal StatefulTruncatedNormal=random_normal StatefulUniform=random_uniform
            StatefulUniformFullInt=random_uniform StatefulUniformInt=random_uniform StatelessMultinomial=multinomial
            StatelessParameterizedTruncatedNormal=random_normal StatelessRandomGammaV2=random_gamma
            StatelessRandomGammaV3=random_gamma StatelessRandomNormal=random_normal
            StatelessRandomNormalV2=random_normal StatelessRandomUniform=random_uniform
            StatelessRandomUniformV2=random_uniform StatelessTruncatedNormal=random_normal
            StatelessTruncatedNormalV2=random_normal TruncatedNormal=random_normal UniformCandidateSampler=candidates
        """,
        Kind.HOLDS: """
            Case=switch Enter=loop Exit=loop If=cond LoopCond=loop Merge=cond NextIteration=loop PartitionedCall=call
            RefEnter=loop RefExit=loop RefMerge=cond RefNextIteration=loop RefSwitch=cond StatefulPartitionedCall=call
            StatelessCase=switch StatelessIf=cond StatelessWhile=loop Switch=cond While=loop
        """,
        Kind.HIDDEN: """
            BatchFunction=batch_function CudnnRNN=cudnn_rnn CudnnRNNV2=cudnn_rnn CudnnRNNV3=cudnn_rnn
            EagerPyFunc=eager_py_func RemoteCall=remote_call SymbolicGradient=symbolic_gradient
            TPUPartitionedCall=tpupartitioned_call XlaCallModule=xla_call_module XlaLaunch=xla_launch
        """,
    }
)

#: What has a gradient and no row, and is looked at like what nobody has heard of:
#:
#: * losses that no word names, and a change of colours that chooses among channels;
#: * derivatives of curves and of normalisation, which are in a model that differentiates itself.
UNKNOWN_ON_PURPOSE = frozenset(
    """
    CTCLoss CTCLossV2 RGBToHSV
    FusedBatchNormGrad FusedBatchNormGradV2 FusedBatchNormGradV3 InvGrad ReciprocalGrad RsqrtGrad SigmoidGrad
    SoftplusGrad SqrtGrad TanhGrad
    """.split()
)

#: What tells of shapes alone: no value of the images is in it.
SHAPES = frozenset("Rank Shape ShapeN Size".split())

#: What gives out one value as it came.
COPIES = OPERATIONS.called("cast", "identity")
#: What gives out the same values, be it in another shape.
REARRANGES = OPERATIONS.called("cast", "identity", "identity_n", "reshape", "transpose")
#: What compares the size of two values.
COMPARISONS = OPERATIONS.called("greater", "greater_equal", "less", "less_equal")
