"""Weights as other libraries quantise and dequantise them; `python -m` writes what tests keep.

Needs bitsandbytes and compressed-tensors. What they make is kept in quantised_weights.safetensors,
so that the default tests compare with it without them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

KEPT = Path(__file__).with_suffix(".safetensors")
Case = tuple[str, dict[str, torch.Tensor], torch.Tensor]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bitsandbytes_cases(rows: int = 6, columns: int = 50) -> Iterator[Case]:
    from bitsandbytes import functional

    for kind in ("nf4", "fp4"):
        for nested in (False, True):
            for dtype in (torch.bfloat16, torch.float32):
                weight = normal(rows, columns).to(dtype)
                codes, state = functional.quantize_4bit(
                    weight, quant_type=kind, compress_statistics=nested, blocksize=64
                )
                packed = {f"w.weight.{k}": v for k, v in state.as_dict(packed=True).items()}
                found = functional.dequantize_4bit(codes, state)
                name = f"{kind}{'-nested' if nested else ''}-{dtype}".replace("torch.", "")
                # Its kernels do not agree on the sign of FP4's second zero; the table says plus.
                yield name, {"w.weight": codes, **packed}, found + 0.0
    weight = normal(rows, columns, seed=1)
    largest = weight.abs().amax(1)
    codes = (weight * 127 / largest[:, None]).round().to(torch.int8)
    tensors = {"w.weight": codes, "w.SCB": largest,
               "w.weight_format": torch.tensor(0, dtype=torch.uint8)}  # fmt: skip
    yield "int8-float32", tensors, functional.int8_vectorwise_dequant(codes, largest)


def packed_cases(rows: int = 8, columns: int = 64) -> Iterator[Case]:
    from compressed_tensors.compressors import pack_to_int32
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import dequantize

    generator = torch.Generator().manual_seed(3)
    for bits in (4, 8):
        for group in (None, 16):
            low, high = -(1 << (bits - 1)), 1 << (bits - 1)
            codes = torch.randint(low, high, (rows, columns), generator=generator)
            codes = codes.to(torch.int8)
            groups = columns // group if group else 1
            scale = torch.rand(rows, groups, generator=generator).to(torch.bfloat16)
            zeros = torch.randint(low, high, (rows, groups), generator=generator).to(torch.int8)
            args = QuantizationArgs(
                num_bits=bits, strategy="group" if group else "channel", group_size=group,
                symmetric=False,
            )  # fmt: skip
            tensors = {
                "w.weight_packed": pack_to_int32(codes, bits),
                "w.weight_scale": scale,
                "w.weight_zero_point": pack_to_int32(zeros, bits, packed_dim=0).contiguous(),
                "w.weight_shape": torch.tensor([rows, columns]),
            }
            found = dequantize(codes, scale, zeros, args=args, dtype=torch.bfloat16)
            yield f"packed-{bits}-{group}-bfloat16", tensors, found


def main() -> None:
    kept = {}
    for case, tensors, found in (*bitsandbytes_cases(), *packed_cases(8, 32)):
        kept |= {f"{case}/{name}": tensor.contiguous() for name, tensor in tensors.items()}
        kept[f"{case}/expected"] = found.contiguous()
    save_file(kept, KEPT)


if __name__ == "__main__":
    main()
