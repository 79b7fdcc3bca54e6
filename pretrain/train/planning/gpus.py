"""GPUs, as their vendor describes them."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from wsi_prep.errors import BadOption


@dataclass(frozen=True)
class Gpu:
    """One kind of GPU. Memory in GB (read as 1e9 bytes, the least that a data sheet can mean), the peak of dense
    bfloat16 products in TFLOP/s, and bandwidths in GB/s: of its memory, within a machine, and between machines, the
    latter two one way.
    """

    name: str
    memory_gb: float
    bf16_tflops: float
    memory_gb_s: float
    machine_gb_s: float
    network_gb_s: float


# NVIDIA's data sheets give products with sparsity, of which dense ones are half, and links both ways, of which one way
# is half. `network_gb_s` is of the machines that NVIDIA builds or describes with these GPUs, see each line.
_TABLE = (
    # "A100 80GB Tensor Core GPU" data sheet, SXM: 312 TFLOP/s dense, 1,555 GB/s, NVLink 600 GB/s. DGX A100: 200 Gbit/s.
    Gpu("a100-40", 40, 312, 1555, 300, 25),
    # The same sheet: 2,039 GB/s.
    Gpu("a100-80", 80, 312, 2039, 300, 25),
    # "H100 Tensor Core GPU" data sheet, SXM: 1,979 with sparsity, 3.35 TB/s, NVLink 900 GB/s. DGX H100: 400 Gbit/s.
    Gpu("h100", 80, 989.5, 3350, 450, 50),
    # The same sheet, H100 PCIe of 2022: 1,513 with sparsity, 2 TB/s, PCIe Gen5 128 GB/s. 200 Gbit/s is our guess.
    Gpu("h100-pcie", 80, 756.5, 2000, 64, 25),
    # "H200 Tensor Core GPU" data sheet, SXM: 1,979 with sparsity, 4.8 TB/s, NVLink 900 GB/s. DGX H200: 400 Gbit/s.
    Gpu("h200", 141, 989.5, 4800, 450, 50),
    # "HGX B200" data sheet, an eighth: 4.5 PFLOP/s with sparsity, 7.7 TB/s, NVLink 1.8 TB/s. DGX B200: 400 Gbit/s.
    Gpu("b200", 180, 2250, 7700, 900, 50),
    # "L40S" data sheet: 48 GB, 362.05 dense, 864 GB/s, PCIe Gen4 64 GB/s. 100 Gbit/s for two GPUs is our guess.
    Gpu("l40s", 48, 362, 864, 32, 6.25),
    # "L4" data sheet: 24 GB, 242 with sparsity, 300 GB/s, PCIe Gen4 64 GB/s. 100 Gbit/s for eight GPUs is our guess.
    Gpu("l4", 24, 121, 300, 32, 1.5),
    # "Ada GPU Architecture" white paper, appendix A: 165.2 dense with float32 sums, 1,008 GB/s, PCIe Gen4; our guess.
    Gpu("rtx4090", 24, 165.2, 1008, 32, 1.5),
)
GPUS = {each.name: each for each in _TABLE}
"""By name."""


def gpu_named(name: str) -> Gpu:
    """The GPU of this name. Raises BadOption with the nearest, or all that there are.

    >>> gpu_named("h100").memory_gb
    80
    """
    if name in GPUS:
        return GPUS[name]
    near = difflib.get_close_matches(name.lower(), GPUS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"choose from {', '.join(GPUS)}"
    raise BadOption(f"GPU {name!r} is not in the table; {hint}")
