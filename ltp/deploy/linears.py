"""Linear layers for inference, with weights prepacked for a matrix multiplication back end.

On many CPUs PyTorch's default float32 product is much slower than oneDNN's with prepacked weights. The operators used
here are those that ``torch.compile`` emits. They are private to PyTorch, so they are tested on a small example first,
and :class:`PlainLinear` is the fallback.
"""

import copy
import platform
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Activation = Callable[[Tensor], Tensor]

_INNER_TO_LARGE = 128  # one in so many inner channels of an FFN stays in float32

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


class ObservedLinear(PlainLinear):
    """Linear layer in float32 that notes the range of its inputs, and becomes one in int8.

    Attributes:
        low, high: smallest and largest value of each input so far, (in,).
    """

    def __init__(self, weight: Tensor, bias: Tensor, dtype: torch.dtype, activation: Activation | None = None) -> None:
        super().__init__(weight, bias, dtype, activation)
        self.low = self.high = weight.new_zeros(weight.shape[1])

    def __call__(self, rows: Tensor) -> Tensor:
        self._observe(rows)
        return super().__call__(rows)

    def add(self, rows: Tensor, residual: Tensor) -> Tensor:
        self._observe(rows)
        return super().add(rows, residual)

    def _observe(self, rows: Tensor) -> None:
        self.low, self.high = torch.minimum(self.low, rows.amin(dim=0)), torch.maximum(self.high, rows.amax(dim=0))

    def rows(self, order: Tensor) -> "ObservedLinear":
        """Return the layer with its outputs in another order, (out,) int64."""
        layer = copy.copy(self)
        layer.weight, layer.bias = self.weight[order], self.bias[order]
        return layer

    def smoothed(self, factors: Tensor) -> "ObservedLinear":
        """Return the layer for inputs that are divided by factors, (in,)."""
        layer = copy.copy(self)
        layer.weight, layer.low, layer.high = self.weight * factors, self.low / factors, self.high / factors
        return layer

    def quantised(self) -> "Int8Linear":
        """Return the layer in int8, for inputs of the range that was seen."""
        return int8_type()(self.weight, self.bias, Scale.of(self.low, self.high), self.activation)


@dataclass(frozen=True)
class Scale:
    """How numbers become unsigned bytes: a number is ``step`` times (its byte less ``zero``)."""

    step: float
    zero: int

    @classmethod
    def of(cls, low: Tensor, high: Tensor) -> "Scale":
        """Return the scale of a range; 0 is made a part of it."""
        smallest, largest = min(float(low.min()), 0.0), max(float(high.max()), 0.0)
        step = max(largest - smallest, 1e-6) / 255
        return cls(step, round(-smallest / step))


class Int8Linear:
    """Linear layer in int8 with FBGEMM: weights are quantised symmetrically, per output row, inputs with a fixed scale.

    So a row's result does not depend on other rows. Inputs and outputs are float32; inputs out of range are clipped.

    Args:
        weight: W, (out, in).
        bias: b, (out,).
        inputs: scale of the inputs.
        activation: function applied to the result of a call.

    Requires :func:`int8_works`.
    """

    row_count = staticmethod(PlainLinear.row_count)

    def __init__(self, weight: Tensor, bias: Tensor, inputs: Scale, activation: Activation | None = None) -> None:
        if gelu_approximation(activation) == "none":
            activation = torch.ops.aten.gelu_  # in place: a second buffer of this size does not fit the cache
        self.activation = activation
        scales = _scales_of_rows(weight)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        engine = torch.backends.quantized.engine  # a global setting that selects the packing back end
        try:
            torch.backends.quantized.engine = "fbgemm"
            with warnings.catch_warnings():  # deprecation warning; int8_works detects the removal
                warnings.filterwarnings("ignore", message=".*quantized tensor", category=UserWarning)
                quantised = torch.quantize_per_channel(weight, scales, zeros, axis=0, dtype=torch.qint8)
                packed = torch.ops.quantized.linear_prepack(quantised, bias)
        finally:
            torch.backends.quantized.engine = engine
        self._arguments = (inputs.step, inputs.zero, packed)
        self._operation = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default

    def __call__(self, rows: Tensor) -> Tensor:
        """Compute the layer: (T, in) → (T, out)."""
        result = self._product(rows)
        return self.activation(result) if self.activation is not None else result

    def add(self, rows: Tensor, residual: Tensor, factors: Tensor | None = None) -> Tensor:
        """Compute the layer plus a residual, without the activation: (T, in), (T, out) → (T, out).

        Args:
            rows, residual: as above.
            factors: of the residual's columns, (out,); None for 1.
        """
        result = self._product(rows)
        return result.add_(residual) if factors is None else result.addcmul_(residual, factors)

    def _product(self, rows: Tensor) -> Tensor:
        return self._operation(rows, *self._arguments)


class OneDNNInt8Linear(Int8Linear):
    """The same with oneDNN, whose products use AMX instructions; FBGEMM has none. GELU is fused into the product.

    Requires :func:`onednn_int8_works`.
    """

    row_count = staticmethod(OneDNNLinear.row_count)

    def __init__(self, weight: Tensor, bias: Tensor, inputs: Scale, activation: Activation | None = None) -> None:
        approximation = gelu_approximation(activation)
        self.activation = activation if approximation is None else None
        fused: tuple[str, list, str] = ("none", [], "") if approximation is None else ("gelu", [], approximation)
        scales = _scales_of_rows(weight).float()
        packed = torch.ops.onednn.qlinear_prepack((weight / scales[:, None]).round().to(torch.int8), None)
        zeros = torch.zeros(len(scales), dtype=torch.int64)
        self._inputs = (inputs.step, inputs.zero)
        self._layer = (packed, scales, zeros, bias, 1.0, 0, torch.float32, *fused)
        self._operation = torch.ops.onednn.qlinear_pointwise.default
        with warnings.catch_warnings():  # a deprecation warning, once; onednn_int8_works detects the removal
            warnings.filterwarnings("ignore", message=".*quantized tensor", category=UserWarning)
            self._product(weight[:1])

    def _product(self, rows: Tensor) -> Tensor:
        quantised = torch.quantize_per_tensor(rows, *self._inputs, torch.quint8).int_repr()
        return self._operation(quantised, *self._inputs, *self._layer)


class FeedForward:
    """The two products of a layer after attention, and their residual.

    Args:
        up: the first, with the activation.
        gate: what multiplies its result; None for a plain one.
        down: the second.
    """

    def __init__(self, up: Any, gate: Any, down: Any) -> None:
        self.up, self.gate, self.down = up, gate, down

    def __call__(self, rows: Tensor, residual: Tensor) -> Tensor:
        """Compute both plus a residual: (T, D), (T, D) → (T, D)."""
        return self.down.add(self._inner(rows), residual)

    def _inner(self, rows: Tensor) -> Tensor:
        inner = self.up(rows)
        return inner if self.gate is None else inner.mul_(self.gate(rows))


def smoothing(layers: Sequence[ObservedLinear]) -> Tensor:
    """Return factors by which the inputs of layers are divided, and their weights multiplied, before both are rounded.

    Some inputs are many times as large as the others, and set the range of all. The factors share that between inputs
    and weights (SmoothQuant, arXiv 2211.10438, with its strength of 0.5).

    Args:
        layers: of the same inputs.

    Returns:
        (in,), all positive.
    """
    inputs = torch.stack([torch.maximum(-layer.low, layer.high) for layer in layers]).amax(dim=0)
    weights = torch.cat([layer.weight for layer in layers]).abs().amax(dim=0)
    return (inputs.clamp(min=1e-5) / weights.clamp(min=1e-5)).sqrt()


class Int8FeedForward(FeedForward):
    """The same in int8, but for the few inner channels with the largest values, which are computed in float32.

    These would set the range of all others: in a MiniLM two of 1,536 reach 24, where the median channel reaches 1.

    Args:
        observed: with layers of the class :class:`ObservedLinear`.
        factors: of the residual's columns, (D,); None for 1.
    """

    def __init__(self, observed: FeedForward, factors: Tensor | None = None) -> None:
        self._factors = factors
        up, gate, down = observed.up, observed.gate, observed.down
        peaks = torch.maximum(-down.low, down.high)
        order = peaks.argsort(descending=True)  # the large channels first, as one view
        self._large = max(1, len(peaks) // _INNER_TO_LARGE)
        weight, small = down.weight[:, order], order[self._large :]
        self._large_down = weight[:, : self._large].T.contiguous()
        super().__init__(
            up.rows(order).quantised(),
            None if gate is None else gate.rows(order).quantised(),
            Int8Linear(
                torch.cat([torch.zeros_like(weight[:, : self._large]), weight[:, self._large :]], dim=1),
                down.bias,
                Scale.of(down.low[small], down.high[small]),
            ),
        )

    def __call__(self, rows: Tensor, residual: Tensor) -> Tensor:
        inner = self._inner(rows)
        return self.down.add(inner, residual, self._factors).addmm_(inner[:, : self._large], self._large_down)


def join_linears(linears: Sequence[nn.Linear], scales: Sequence[float] = (1.0,)) -> tuple[Tensor, Tensor]:
    """Join linear layers of the same input to one product.

    Args:
        linears: N layers D → out.
        scales: a factor on the results of each.

    Returns:
        Copies of the weights, (N · out, D), and of the biases, 0 where there is none, (N · out,); float32.
    """
    weights, biases = [], []
    for linear, scale in zip(linears, scales, strict=True):
        weights.append(linear.weight.detach().float() * scale)
        bias = linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias.detach()
        biases.append(bias.float() * scale)
    return torch.cat(weights), torch.cat(biases)


def linear_type(dtype: str) -> type[PlainLinear]:
    """Return the class of the fastest linear layer that works on this machine; for int8 that which becomes one.

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
        return ObservedLinear
    return OneDNNLinear if onednn_works(DTYPES[dtype]) else PlainLinear


@cache
def onednn_works(dtype: torch.dtype) -> bool:
    """Whether oneDNN's prepacked linear layers run on this machine and are correct on a small example."""
    return _works(OneDNNLinear, dtype, tolerance=1e-5 if dtype == torch.float32 else 5e-2)


def largest_weight() -> int:
    """Return the largest weight in int8 with which sums of two products, of 8 bits, do not overflow here.

    Without VNNI instructions they have 16 bits: 2 · 255 · 63 fits. Inputs keep their 8 bits, because their rounding is
    most of the error: a weight's range is that of a row, an input's that of a tensor.
    """
    return 127 if getattr(torch.cpu, "_is_vnni_supported", lambda: False)() else 63


def _scales_of_rows(weight: Tensor) -> Tensor:
    """Return the steps of a weight's rows in int8, (out,) float64."""
    return weight.abs().amax(dim=1).double().clamp(min=1e-12) / largest_weight()


def int8_type() -> type[Int8Linear]:
    """Return the class of the faster layers in int8 on this machine."""
    return OneDNNInt8Linear if onednn_int8_works() else Int8Linear


@cache
def onednn_int8_works() -> bool:
    """Whether the CPU has AMX, and oneDNN's products in int8 run and are FBGEMM's on a small example."""
    if not getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)():
        return False
    numbers = torch.linspace(-1, 1, 512).sin()
    rows, weight, bias = numbers[:48].view(3, 16), numbers.view(32, 16), numbers[:32]
    arguments = (weight, bias, Scale.of(rows.amin(), rows.amax()), functional.gelu)
    with torch.inference_mode():
        try:
            difference = OneDNNInt8Linear(*arguments)(rows) - Int8Linear(*arguments)(rows)
        except (AttributeError, RuntimeError):  # missing operator, or other signature
            return False
    return bool(difference.abs().max() < 1e-2)


@cache
def int8_works() -> bool:
    """Whether FBGEMM is available (it is on x86) and correct on a small example."""
    return "fbgemm" in torch.backends.quantized.supported_engines and _works(
        ObservedLinear, torch.float32, tolerance=5e-2
    )


def has_bfloat16_instructions() -> bool:
    """Whether the CPU multiplies bfloat16 numbers itself; True where PyTorch cannot tell (no x86)."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return True
    known = [getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")]
    return any(function is None or function() for function in known)


def _works(linear_class: type[PlainLinear], dtype: torch.dtype, tolerance: float) -> bool:
    """Whether two layers with a GELU between them and a residual give the results of :class:`PlainLinear`.

    For :class:`ObservedLinear` these are the results of the layers in int8.
    """
    numbers = torch.linspace(-1, 1, 512).sin()  # not random: that would advance the caller's generator
    rows, up, down = numbers[:48].view(3, 16), numbers.view(32, 16), numbers.flip(0).view(16, 32)
    rows = rows.to(dtype)

    def compute(linear: type[PlainLinear]) -> Tensor:
        layers = FeedForward(linear(up, numbers[:32], dtype, functional.gelu), None, linear(down, numbers[:16], dtype))
        if linear is ObservedLinear:
            layers(rows, rows)
            layers = Int8FeedForward(layers)
        return layers(rows, rows).float()

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
