"""The unitary convolutions of sequences, images and volumes, and their transposes."""

from projunn.nn.convolution.layers import UnitaryConvolution


class UnitaryConv1d(UnitaryConvolution):
    """A norm-preserving circular convolution of sequences (batch, channels, length).

    Arguments, attributes, methods and errors are those of `UnitaryConv2d`, with sizes of one integer.
    """

    axes = 1


class UnitaryConv2d(UnitaryConvolution):
    """``y = K * x + b``, a norm-preserving circular convolution with a filter as large as the image.

    The discrete Fourier transform makes it one product with a matrix W_k at each frequency k, and K * x
    preserves the norm exactly if all W_k are unitary (arXiv 2203.05483, section 3.4).  The layer stores
    these matrices.  For real images W_-k = conj(W_k), so only half of them are free, and those with k =
    -k are real.  Only free matrices are parameters, so that the layer stays orthogonal through any
    number of steps of `projunn.optim`, for every size, even or odd, square or not.

    With ``out_channels >= in_channels prod(stride)`` the W_k have orthonormal columns, and the norm is
    preserved (an isometry).  With fewer output channels they have orthonormal rows, and the layer
    projects.  A stride gathers the pixels of each cell into channels first, so that no pixel is dropped;
    where it does not divide the image, zeros fill the last cells, which leaves the norm as it is.  With
    a dilation d each sub-image of every d-th pixel goes through the same smaller layer.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        spatial_size: height and width of the input, or one integer for both.  It stands where
            ``nn.Conv2d`` has its kernel; `LocalUnitaryConv2d` is the layer with a small kernel.
        stride: downsampling, one or two integers.
        bias: whether to learn an additive bias for each channel.
        dilation: the distance of the filter's taps, one or two integers that divide ``spatial_size``.
            Together with a stride it is refused: such a layer would drop pixels.
        groups: as in ``torch.nn.Conv2d``; a divisor of both numbers of channels.  With
            ``groups=in_channels`` each channel has its own filter ("depthwise").
        device: as in ``torch.nn.Conv2d``.
        dtype: float32, float64, complex64 or complex128; default: PyTorch's default dtype.
        sketch_rank: rank of sketched gradients, as in `projunn.nn.UnitaryLinear`, at every frequency.
        padding: must be None, because the filter is circular.

    Shape:
        input (batch, in_channels, *spatial_size), output (batch, out_channels, *output_size); both also
        without the batch axis.  A complex layer takes real input too.  Under ``torch.autocast`` input of
        half precision is computed with in float32, and the output is float32: the norm is that of the
        input as it was rounded, to float32's accuracy.  A real layer that was converted to half
        precision computes in float32 too, and returns half precision.  ``channels_last`` input is read
        as it is by the GPU kernels, and copied elsewhere; the output is contiguous.

    Attributes:
        weight: the free complex matrices of P frequencies, a `projunn.UnitaryParameter` (P groups, m,
            n, 2) with m = out_channels / groups and n = in_channels / groups prod(stride), and real and
            imaginary parts on the last axis.  The matrices of a frequency lie side by side.
        own_weight: the real matrices of the R self-conjugate frequencies k = -k, the zero frequency
            first, a `projunn.UnitaryParameter` (R groups, m, n).  None for a complex layer, all of whose
            frequencies have a free complex matrix.
        bias: (out_channels), with a trailing axis (re, im) if complex, or None.  It starts at zero.
        output_size: spatial_size / stride, rounded up.
        grid_size: output_size / dilation, the size of the filter in cells.
        keep_spectrum: True, the default, keeps the spectrum of the input for the backward: as many
            numbers as the input has, in float32 or float64.  False keeps the input
            instead, which costs no memory if the layer before keeps it too (as a ReLU does), and
            transforms it once more in the backward.

    Raises:
        ValueError: a size that is not positive, a dilation that does not divide ``spatial_size`` or
            comes with a stride, groups that do not divide the channels, or input of another size
            (`resized` makes a layer for that).
        TypeError: another dtype, of the layer or of its input.
    """

    axes = 2


class UnitaryConv3d(UnitaryConvolution):
    """A norm-preserving circular convolution of volumes (batch, channels, depth, height, width).

    Arguments, attributes, methods and errors are those of `UnitaryConv2d`, with sizes of three integers.
    """

    axes = 3


class UnitaryConvTranspose1d(UnitaryConvolution):
    """The adjoint of a norm-preserving convolution of sequences.

    Arguments, attributes, methods and errors are those of `UnitaryConvTranspose2d`, with sizes of
    one integer.
    """

    axes = 1
    transposed = True


class UnitaryConvTranspose2d(UnitaryConvolution):
    """The adjoint of a `UnitaryConv2d`, as ``nn.ConvTranspose2d`` is that of ``nn.Conv2d``.

        y = K^H * x + b        spreads each pixel of x over the image, and a stride makes y larger than x

    In Fourier space it is a product with a matrix of out_channels prod(stride) rows and in_channels
    columns, whose entries are then the pixels of a cell.  With ``in_channels <= out_channels
    prod(stride)`` it preserves the norm; otherwise it projects.  `adjoint` makes one of a convolution.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        spatial_size: height and width of the input, or one integer for both.
        stride: upsampling, one or two integers.
        bias, dilation, groups, device, dtype, sketch_rank, padding: as in `UnitaryConv2d`.

    Shape:
        input (batch, in_channels, *spatial_size), output (batch, out_channels, *output_size); both also
        without the batch axis.  Dtypes are those of `UnitaryConv2d`.

    Attributes:
        weight, own_weight: as in `UnitaryConv2d`, with m = out_channels / groups prod(stride) and n =
            in_channels / groups.
        bias, keep_spectrum: as in `UnitaryConv2d`.
        output_size: spatial_size stride.
        grid_size: spatial_size / dilation, the size of the filter in cells.

    Raises:
        ValueError, TypeError: as in `UnitaryConv2d`.
    """

    axes = 2
    transposed = True


class UnitaryConvTranspose3d(UnitaryConvolution):
    """The adjoint of a norm-preserving convolution of volumes.

    Arguments, attributes, methods and errors are those of `UnitaryConvTranspose2d`, with sizes of
    three integers.
    """

    axes = 3
    transposed = True


for _one, _other in (
    (UnitaryConv1d, UnitaryConvTranspose1d),
    (UnitaryConv2d, UnitaryConvTranspose2d),
    (UnitaryConv3d, UnitaryConvTranspose3d),
):
    _one.other, _other.other = _other, _one
