"""Linear layers for serving: weights frozen in the form that a matrix product back end likes.

On many CPUs PyTorch's default float32 product is much slower than oneDNN's with prepacked weights. The operators
that do it are those which ``torch.compile`` emits; they are private to PyTorch, so a check on a small example
guards them, and :class:`PlainLinear` stands in where they are missing.
"""

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]

#: What a classifier can be deployed in -> the type of its hidden states.
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}


class PlainLinear:
    """``x Wᵀ + b`` with an optional activation, by :func:`torch.nn.functional.linear`; works everywhere.

    It is also what the faster forms below share: they override how a product is computed.

    Args:
        weight: W, (out, in).
        bias: b, (out,).
        dtype: of inputs, outputs and stored weights.
        activation: applied to the result of a call.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: Activation | None = None) -> None:
        self.weight, self.bias = weight.to(dtype), bias.to(dtype)
        self.activation = activation

    def __call__(self, rows: Tensor) -> Tensor:
        """(T, in) → (T, out)."""
        result = functional.linear(rows, self.weight, self.bias)
        return self.activation(result) if self.activation is not None else result

    def add(self, rows: Tensor, residual: Tensor) -> Tensor:
        """The product plus a residual: (T, in), (T, out) → (T, out), without the activation."""
        return functional.linear(rows, self.weight, self.bias).add_(residual)

    @staticmethod
    def row_count(tokens: int) -> int:
        """The number of rows, at least ``tokens``, that serves so many tokens best."""
        return tokens


class OneDNNLinear(PlainLinear):
    """The same with weights in oneDNN's blocked layout, GELU and the residual fused into the product.

    Only where :func:`onednn_works`.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: Activation | None = None) -> None:
        approximation = gelu_approximation(activation)
        fused = approximation is not None
        super().__init__(weight, bias, dtype, None if fused else activation)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())
        self._post_operation: tuple[str, list, str | None] = ("gelu", [], approximation) if fused else ("none", [], "")
        # the overloads themselves: finding them anew would cost each call some microseconds
        self._product = torch.ops.mkldnn._linear_pointwise.default
        self._product_and_sum = torch.ops.mkldnn._linear_pointwise.binary

    def __call__(self, rows: Tensor) -> Tensor:
        result = self._product(rows, self.weight, self.bias, *self._post_operation)
        return self.activation(result) if self.activation is not None else result

    def add(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self._product_and_sum(rows, residual, self.weight, self.bias, "add")

    @staticmethod
    def row_count(tokens: int) -> int:
        """Up to 3 % more than ``tokens``: 32 values from each power of two to the next.

        oneDNN generates code for every new number of rows, which takes 1 to 2 ms a product and is kept for the last
        1024 products. Token counts after pruning are hardly ever the same twice; rounded ones are.
        """
        step = 1 << max(0, tokens.bit_length() - 6)
        return -(-tokens // step) * step


class Int8Linear(PlainLinear):
    """Dynamic int8 by FBGEMM: weights quantised once, symmetrically, by output row; activations by call.

    A call quantises all its rows with one range. So a sequence's result depends a little on what else is in the
    batch. Inputs and outputs are float32.

    Only where :func:`int8_works`.
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: Activation | None = None) -> None:
        if gelu_approximation(activation) == "none":
            activation = torch.ops.aten.gelu_  # in place: a result of this size leaves the cache otherwise
        self.activation = activation
        scales = weight.abs().amax(dim=1).double().clamp(min=1e-12) / 127
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        engine = torch.backends.quantized.engine  # a global setting, which decides who packs
        try:
            torch.backends.quantized.engine = "fbgemm"
            with warnings.catch_warnings():  # a PyTorch without quantised tensors is to come: int8_works will notice
                warnings.filterwarnings("ignore", message=".*quantized tensor", category=UserWarning)
                quantised = torch.quantize_per_channel(weight, scales, zeros, axis=0, dtype=torch.qint8)
                self._packed = torch.ops.quantized.linear_prepack(quantised, bias)
        finally:
            torch.backends.quantized.engine = engine
        # without VNNI instructions, sums of two products of 8 bits overflow the 16 bits that they are kept in
        self._reduce_range = not getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
        self._product = torch.ops.quantized.linear_dynamic.default

    def __call__(self, rows: Tensor) -> Tensor:
        result = self._product(rows, self._packed, self._reduce_range)
        return self.activation(result) if self.activation is not None else result

    def add(self, rows: Tensor, residual: Tensor) -> Tensor:
        return self._product(rows, self._packed, self._reduce_range).add_(residual)


def linear_type(dtype: str) -> type[PlainLinear]:
    """The fastest linear layer that works here.

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
    """Whether oneDNN's prepacked linear layers run here and are right, tried on a small example."""
    return _agrees(OneDNNLinear, dtype, tolerance=1e-5 if dtype == torch.float32 else 5e-2)


@cache
def int8_works() -> bool:
    """Whether FBGEMM is there (it is on x86) and right, tried on a small example."""
    return "fbgemm" in torch.backends.quantized.supported_engines and _agrees(Int8Linear, torch.float32, tolerance=5e-2)


def _agrees(form: type[PlainLinear], dtype: torch.dtype, tolerance: float) -> bool:
    """Whether a back end's two layers around a GELU, with a residual, compute what the plain one's do."""
    numbers = torch.linspace(-1, 1, 512).sin()  # no random ones: they would move the caller's generator
    rows, up, down = numbers[:48].view(3, 16), numbers.view(32, 16), numbers.flip(0).view(16, 32)

    def compute(linear: type[PlainLinear]) -> Tensor:
        first = linear(up, numbers[:32], dtype, functional.gelu)
        return linear(down, numbers[:16], dtype).add(first(rows.to(dtype)), rows.to(dtype)).float()

    with torch.inference_mode():
        expected = compute(PlainLinear)
        try:
            result = compute(form)
        except (AttributeError, RuntimeError):  # an operator is gone, has another signature, or not for this type
            return False
    return bool((result - expected).abs().max() <= tolerance * expected.abs().max())


def gelu_approximation(activation: Activation | None) -> str | None:
    """Which GELU an activation is: ``none`` (the exact one), ``tanh``, or None for something else.

    The function itself is asked, since classes of GELU are many and a configuration may hold any callable.
    """
    if activation is None:
        return None
    points = torch.cat([torch.linspace(-8, 8, 101), torch.tensor([-1e4, 1e4])])
    with torch.no_grad():
        values = activation(points.clone())
    for approximation in ("none", "tanh"):
        # they differ by 5e-4, and rounding of a formula written out by 1e-6
        if torch.allclose(values, functional.gelu(points, approximate=approximation), atol=1e-5):
            return approximation
    return None
