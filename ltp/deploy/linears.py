"""Linear layers for inference, with weights prepacked for a matrix multiplication back end.

On many CPUs PyTorch's default float32 product is much slower than oneDNN's with prepacked weights. The operators used
here are those that ``torch.compile`` emits. They are private to PyTorch, so they are tested on a small example first,
and :class:`PlainLinear` is the fallback.
"""

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]

#: Maps the ``dtype`` of a deployed classifier to the dtype of its hidden states.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}


class PlainLinear:
    """``x Wᵀ + b`` with an optional activation, using :func:`torch.nn.functional.linear`; works on every CPU.

    It is also the base class of the faster back ends, which override the products.

    Args:
        weight: W, (out, in).
        bias: b, (out,).
        dtype: dtype of inputs, outputs and stored weights.
        activation: function applied to the result of a call.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: Activation | None = None) -> None:
        self.weight, self.bias = weight.to(dtype), bias.to(dtype)
        self.activation = activation

    def __call__(self, rows: Tensor) -> Tensor:
        """Compute the layer: (T, in) → (T, out)."""
        result = functional.linear(rows, self.weight, self.bias)
        return self.activation(result) if self.activation is not None else result

    def add(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Compute the layer plus a residual, without the activation: (T, in), (T, out) → (T, out)."""
        return functional.linear(rows, self.weight, self.bias).add_(residual)

    @staticmethod
    def row_count(tokens: int) -> int:
        """Return the preferred number of rows, at least ``tokens``, of an input with so many tokens."""
        return tokens


class OneDNNLinear(PlainLinear):
    """Linear layer with weights in oneDNN's blocked layout; GELU and residual are fused into the product.

    Requires :func:`onednn_works`.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: Activation | None = None) -> None:
        approximation = gelu_approximation(activation)
        fused = approximation is not None
        super().__init__(weight, bias, dtype, None if fused else activation)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())
        self._post_operation: tuple[str, list, str | None] = ("gelu", [], approximation) if fused else ("none", [], "")
        # resolve the operator overloads once: it takes some microseconds per call
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._product_and_sum = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, rows: Tensor) -> Tensor:
        result = self._product(rows, self.weight, self.bias, *self._post_operation)
        return self.activation(result) if self.activation is not None else result

    def add(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self._product_and_sum(rows, residual, self.weight, self.bias, "add")

    @staticmethod
    def row_count(tokens: int) -> int:
        """Round ``tokens`` up, by 3 % at most: to one of 32 values between powers of two.

        oneDNN generates code for every new number of rows. This takes 1 to 2 ms per product, and the code is cached
        for the last 1024 products. Token counts after pruning rarely repeat; rounded ones do.
        """
        step = 1 << max(0, tokens.bit_length() - 6)
        return -(-tokens // step) * step


class Int8Linear(PlainLinear):
    """Dynamic int8 with FBGEMM: weights are quantised once, symmetrically, per output row; activations per call.

    A call quantises all its rows with one range, so the result of a sequence depends slightly on the rest of the
    batch. Inputs and outputs are float32.

    Requires :func:`int8_works`.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: Activation | None = None) -> None:
        if gelu_approximation(activation) == "none":
            activation = torch.ops.aten.gelu_  # in place: a second buffer of this size does not fit the cache
        self.activation = activation
        scales = weight.abs().amax(dim=1).double().clamp(min=1e-12) / 127
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        engine = torch.backends.quantized.engine  # a global setting that selects the packing back end
        try:
            torch.backends.quantized.engine = "fbgemm"
            with warnings.catch_warnings():  # deprecation warning; int8_works detects the removal
                warnings.filterwarnings("ignore", message=".*quantized tensor", category=UserWarning)
                quantised = torch.quantize_per_channel(weight, scales, zeros, axis=0, dtype=torch.qint8)
                self._packed = torch.ops.quantized.linear_prepack(quantised, bias)
        finally:
            torch.backends.quantized.engine = engine
        # without VNNI instructions, sums of two 8-bit products overflow the 16-bit accumulator
        self._reduce_range = not getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
        self._product = torch.ops.quantized.linear_dynamic.default

    def __call__(self, rows: Tensor) -> Tensor:
        result = self._product(rows, self._packed, self._reduce_range)
        return self.activation(result) if self.activation is not None else result

    def add(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self._product(rows, self._packed, self._reduce_range).add_(residual)


def linear_type(dtype: str) -> type[PlainLinear]:
    """Return the class of the fastest linear layer that works on this machine.

    Args:
        dtype: one of :data:`DTYPES`.

    Raises:
        ValueError: an unknown dtype.
        RuntimeError: int8 without FBGEMM.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype is {dtype!r}; deploy offers {', '.join(DTYPES)}")
    if dtype == "int8":
        if not int8_works():
            raise RuntimeError(
                "dtype is 'int8', which needs PyTorch's quantised engine FBGEMM; here there is only "
                f"{', '.join(torch.backends.quantized.supported_engines)}: deploy with float32 or bfloat16"
            )
        return Int8Linear
    return OneDNNLinear if onednn_works(DTYPES[dtype]) else PlainLinear


@cache
def onednn_works(dtype: torch.dtype) -> bool:
    """Whether oneDNN's prepacked linear layers run on this machine and are correct on a small example."""
    return _works(OneDNNLinear, dtype, tolerance=1e-5 if dtype == torch.float32 else 5e-2)


@cache
def int8_works() -> bool:
    """Whether FBGEMM is available (it is on x86) and correct on a small example."""
    return "fbgemm" in torch.backends.quantized.supported_engines and _works(Int8Linear, torch.float32, tolerance=5e-2)


def _works(linear_class: type[PlainLinear], dtype: torch.dtype, tolerance: float) -> bool:
    """Whether two layers with a GELU between them and a residual give the results of :class:`PlainLinear`."""
    numbers = torch.linspace(-1, 1, 512).sin()  # not random: that would advance the caller's generator
    rows, up, down = numbers[:48].view(3, 16), numbers.view(32, 16), numbers.flip(0).view(16, 32)

    def compute(linear: type[PlainLinear]) -> Tensor:
        first = linear(up, numbers[:32], dtype, functional.gelu)
        return linear(down, numbers[:16], dtype).add(first(rows.to(dtype)), rows.to(dtype)).float()

    with torch.inference_mode():
        expected = compute(PlainLinear)
        try:
            result = compute(linear_class)
        except (AttributeError, RuntimeError):  # missing operator, other signature or dtype
            return False
    return bool((result - expected).abs().max() <= tolerance * expected.abs().max())


def gelu_approximation(activation: Activation | None) -> str | None:
    """Detect the GELU variant of an activation: ``none`` (exact), ``tanh``, or None for another function.

    The function is evaluated, because there are many GELU classes and an activation may be any callable.
    """
    if activation is None:
        return None
    points = torch.cat([torch.linspace(-8, 8, 101), torch.tensor([-1e4, 1e4])])
    with torch.no_grad():
        values = activation(points.clone())
    for approximation in ("none", "tanh"):
        # the variants differ by 5e-4; other implementations of the same variant differ by 1e-6
        if torch.allclose(values, functional.gelu(points, approximate=approximation), atol=1e-5):
            return approximation
    return None
