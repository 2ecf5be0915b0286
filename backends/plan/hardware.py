"""The kinds of IPUs, in pods and on cards, with the source of each number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Dict

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True)
class System:
    """One kind of IPU and what connects it.

    Args:
        name: to print.
        tiles: processors with their own memory.
        tile_bytes: memory of one tile, shared by code, data and exchange buffers.
        clock_hertz: cycles per second.
        half_flops_per_cycle: floating point operations of one tile in one cycle on float16 values.
        single_flops_per_cycle: the same on float32.
        sram_bytes_per_second: nominal, all tiles together.
        exchange_bytes_per_second: between the tiles of one IPU.
        link_bytes_per_second: between IPUs, in one direction.
        host_bytes_per_second: from the host, for one IPU.
        streaming_bytes_per_second: streaming memory, for one IPU.
    """

    name: str
    tiles: int
    tile_bytes: int
    clock_hertz: float
    half_flops_per_cycle: int
    single_flops_per_cycle: int
    sram_bytes_per_second: float
    exchange_bytes_per_second: float
    link_bytes_per_second: float
    host_bytes_per_second: float
    streaming_bytes_per_second: float

    @property
    def memory_bytes(self) -> int:
        """In-processor memory of one IPU."""
        return self.tiles * self.tile_bytes

    def memory_without(self, io_tiles: int) -> int:
        """Memory of the tiles that compute."""
        return (self.tiles - io_tiles) * self.tile_bytes


# Four IPUs of an IPU-M2000 or Bow-2000 share 64 GB/s of PCIe in both directions together and about 20 GB/s of streaming
# memory. The latter is a common estimate without a public source: give a measured System where it decides.
_HOST, _STREAMING = 64e9 / 2 / 4, 20e9 / 4
# A card has no memory but the IPU's: what is off chip is the host's, behind PCIe. Eight lanes of generation 4 for the
# one IPU of a C600; sixteen of generation 3, as the hosts of their time had, for the two of a C2 (both nominal).
_C600_HOST, _C2_HOST = 16e9, 16e9 / 2
_C600_SPEED = 1.5 / 1.325  # what runs at the clock, relative to MK2

# Tiles: PopTorch's sources. Memory and peak of MK1: Jia et al. 2019 (arXiv 1912.03413); the clocks of MK1 and MK2 are
# those that their published peaks imply; the tile memory of MK2 is 897 MiB / 1472, third-party notes.
# Peaks: IPU-POD64 datasheet (249.7 and 62.4 TFLOPS for one IPU), Bow Pod256 datasheet (348.6 and 87.1).
# SRAM, exchange and links of MK2 (47.5 TB/s, 8 TB/s, ten links with 320 GB/s in both directions together): third-party
# notes. MK1: 45 TB/s and 7.7 TB/s (Jia et al.); links as MK2, host at PCIe Gen4: no better source.
# Bow: what runs at the clock is MK2's times 1.4 (inferred); of the links the Bow-2000 datasheet says only "512 Gbps",
# so MK2's are taken.
# C600: one IPU21, an MK2 with float8. Clock, tiles and 638,976 bytes a tile: an owner's public programs; at 1.5 GHz the
# peak is 283 TFLOPS, and 280 are published. C2: two MK1. Links between cards are taken as the pods'.
SYSTEMS: Dict[str, System] = {
    "mk1": System("MK1 (GC2)", 1216, 256 * KIB, 1.6e9, 64, 16, 45e12, 7.7e12, 160e9, _HOST, _STREAMING),
    "mk2": System("MK2 (GC200)", 1472, 624 * KIB, 1.325e9, 128, 32, 47.5e12, 8e12, 160e9, _HOST, _STREAMING),
    "bow": System("Bow", 1472, 624 * KIB, 1.85e9, 128, 32, 66.5e12, 11.2e12, 160e9, _HOST, _STREAMING),
    "c600": System(
        "C600 (IPU21)",
        1472,
        624 * KIB,
        1.5e9,
        128,
        32,
        47.5e12 * _C600_SPEED,
        8e12 * _C600_SPEED,
        160e9,
        _C600_HOST,
        _C600_HOST,
    ),
    "c2": System("C2 (two GC2)", 1216, 256 * KIB, 1.6e9, 64, 16, 45e12, 7.7e12, 160e9, _C2_HOST, _C2_HOST),
}


def find_system(name: str) -> System:
    """Return one of SYSTEMS.

    Raises:
        ValueError: an unknown name.
    """
    if name not in SYSTEMS:
        raise ValueError(f"system {name!r} is unknown; use one of {', '.join(SYSTEMS)}")
    return SYSTEMS[name]
