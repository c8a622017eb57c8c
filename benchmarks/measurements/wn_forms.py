"""Times one WN in several forms on this device, to find the best form for its backend.

    python benchmarks/measurements/wn_forms.py [--channels 256] [--layers 8] [--scale full|tiny]

Weights are random, and operands are bfloat16. Each form runs forwards over 8 utterances of 10 s
and, with its gradients, over 24 training clips. `wn` is the package's own form for that backend;
the others are defined below, with gradients by autodiff. FLOPs are those of the published form.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import jax
import jax.numpy as jnp

from waveglow_jax.flow.wn import WN
from waveglow_jax.flow.wn_kernels import wn_on

N_HALF, N_CONDITIONING = 4, 640
SIZES = {"full": ((8, 27648), (24, 2000)), "tiny": ((1, 64), (1, 32))}
"""Batch and steps of the forward run and of the run with gradients."""
Form = Callable[[Any, jax.Array, jax.Array], jax.Array]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, default=256)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--scale", choices=SIZES, default="full")
    arguments = parser.parse_args()
    channels, layers = arguments.channels, arguments.layers
    key = jax.random.key(0)
    network = WN(2 * N_HALF, layers, channels, channels, 3, jnp.bfloat16)
    params = jax.jit(lambda: network.init(key, N_HALF, N_CONDITIONING, method="layers"))()["params"]
    print(f"| form, on {jax.devices()[0].device_kind} | forwards | TFLOP/s | with gradients | |")
    print("| --- | --- | --- | --- | --- |")
    for name, form in forms(layers).items():
        cells = [name]
        for (batch, steps), gradients in zip(SIZES[arguments.scale], (False, True), strict=True):
            x = jax.random.normal(key, (batch, steps, N_HALF))
            conditioning = jax.random.normal(key, (batch, steps, N_CONDITIONING))
            seconds = median_seconds(form, (params, x, conditioning), gradients)
            a_layer = 2 * channels * (3 * channels + N_CONDITIONING) + channels**2
            flops = 2 * batch * steps * layers * a_layer * (3 if gradients else 1)
            cells += [f"{1e3 * seconds:.2f} ms", f"{flops / seconds / 1e12:.0f}"]
        print("|", " | ".join(cells), "|", flush=True)


def median_seconds(form: Form, inputs: tuple[Any, ...], gradients: bool) -> float:
    function: Callable[..., Any] = form
    if gradients:
        function = jax.grad(lambda *given: jnp.sum(form(*given) ** 2), argnums=(0, 1, 2))
    program, seconds = jax.jit(function).lower(*inputs).compile(), []
    for _ in range(11):
        began = time.perf_counter()
        jax.block_until_ready(program(*inputs))
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])[5]


def forms(layers: int) -> dict[str, Form]:
    """Every form, by a name that describes it."""

    def own(backend: str) -> Form:
        return lambda params, x, c: wn_on(params, x, c, None, jnp.bfloat16, backend)

    def written_out(taps: str, between: Any, together: bool = False) -> Form:
        return lambda params, x, c: plain_wn(params, x, c, layers, taps, between, together)

    bfloat16, float32 = jnp.bfloat16, jnp.float32
    return {
        **{f"`wn`, as on a {backend.upper()}": own(backend) for backend in ("gpu", "tpu", "cpu")},
        "shifted taps side by side, one product": written_out("beside", bfloat16),
        "the same, float32 between products": written_out("beside", float32),
        "the conditioning in that product too": written_out("beside", bfloat16, together=True),
        "a product each tap, summed": written_out("summed", bfloat16),
        "a convolution": written_out("convolution", bfloat16),
        "a convolution, float32 between": written_out("convolution", float32),
    }


def plain_wn(
    params: Any,
    x: jax.Array,
    conditioning: jax.Array,
    layers: int,
    taps: str,
    between: Any,
    together: bool,
) -> jax.Array:
    """WN without biases.

    taps: how a dilated convolution is computed. between: the dtype of the matmuls' results.
    together: whether one matmul computes the taps and the conditioning.
    """

    def product(a: jax.Array, kernel: jax.Array, result: Any = between) -> jax.Array:
        a, kernel = a.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
        return jnp.matmul(a, kernel, preferred_element_type=result)

    h, out = product(x, params["start"]["kernel"][0]).astype(jnp.bfloat16), jnp.zeros(())
    for i in range(layers):
        kernel, cond = params[f"in_layer_{i}"]["kernel"], params[f"cond_layer_{i}"]["kernel"][0]
        dilation, steps = 2**i, h.shape[1]
        padded = jnp.pad(h, ((0, 0), (dilation, dilation), (0, 0)))
        shifted = [padded[:, k * dilation : k * dilation + steps] for k in range(3)]
        flat = kernel.reshape(-1, kernel.shape[-1])
        if together:
            seen = jnp.concatenate([*shifted, conditioning.astype(h.dtype)], axis=-1)
            sums = product(seen, jnp.concatenate([flat, cond])).astype(jnp.float32)
        else:
            if taps == "beside":
                filtered = product(jnp.concatenate(shifted, axis=-1), flat)
            elif taps == "summed":
                filtered = sum(product(part, kernel[k]) for k, part in enumerate(shifted))
            else:
                filtered = jax.lax.conv_general_dilated(
                    h,
                    kernel.astype(h.dtype),
                    window_strides=(1,),
                    padding=((dilation, dilation),),
                    rhs_dilation=(dilation,),
                    dimension_numbers=("NWC", "WIO", "NWC"),
                    preferred_element_type=between,
                )
            sums = filtered.astype(jnp.float32) + product(conditioning, cond)
        tanh, sigmoid = jnp.split(sums, 2, axis=-1)
        activated = (jnp.tanh(tanh) * jax.nn.sigmoid(sigmoid)).astype(jnp.bfloat16)
        both, channels = params[f"res_skip_layer_{i}"]["kernel"][0], h.shape[-1]
        if i < layers - 1:
            h = (h + product(activated, both[:, :channels]).astype(jnp.float32)).astype(h.dtype)
        skip = both[:, -channels:] @ params["end"]["kernel"][0]
        out = out + product(activated, skip, jnp.float32)
    return out


if __name__ == "__main__":
    main()
