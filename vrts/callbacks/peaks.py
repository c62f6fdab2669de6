"""How fast GPUs can multiply matrices, by their data sheets: what MFU is a share of."""

from __future__ import annotations

PEAK_TFLOPS = {
    "B200": 2250,
    "H200": 989,
    "H200 NVL": 835,
    "GH200 480GB": 990,
    "H100 80GB HBM3": 989,  # SXM
    "H100 NVL": 835,
    "H100 PCIe": 756,
    "A100-SXM4-80GB": 312,
    "A100-SXM4-40GB": 312,
    "A100 80GB PCIe": 312,
    "A100-PCIE-40GB": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "A40": 149.7,
    "A10": 125,
    "RTX A6000": 154.8,
    "RTX 6000 Ada Generation": 364.2,
    "GeForce RTX 5090": 209.5,
    "GeForce RTX 4090": 165.2,
    "GeForce RTX 3090": 71.2,
}
"""10^12 operations a second in bfloat16 with float32 sums, dense: data sheets often print twice as
much, which is with half of the weights zero. The names are the driver's, without the maker's."""


def peak_flops(name: str, precision: str) -> float | None:
    """Operations a second that a GPU can do at most, or None where that is not known.

    Args:
        name: of the device, as torch gives it. A part of a card (MIG) or a laptop's has another.
        precision: the Trainer's. What is not computed in 16 bits is in no table.
    """
    if not precision.startswith(("bf16", "16")):
        return None
    tflops = PEAK_TFLOPS.get(name.removeprefix("NVIDIA "))
    return None if tflops is None else tflops * 1e12
