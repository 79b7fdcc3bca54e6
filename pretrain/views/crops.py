"""Extended-context translation (Zimmermann et al. 2024, arXiv 2408.00738): crops that move over a tile and hardly zoom.

Two steps: a plan on the host, a pure function of (seed, step, place in the global batch), and the pixels on the device:
what each window needs, and two matrix products with the weights of an antialiased bicubic. On a GPU, all crops together
are a gather and two batched products; on a CPU, crop after crop is cheaper.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pretrain.compute.devices import computed_here, send_together
from pretrain.compute.randomness import Places, Purpose
from wsi_prep.errors import BadOption
from wsi_prep.format.magnifications import TILE_PX

_NUMBERS = 7  # of each crop
_SUPPORT = 2.0  # of the bicubic kernel, output px
_A = -0.5  # its parameter (Keys 1981), as Pillow has it
_ROUNDING = 1e-3  # px


_MOST_CROPS = 256


@dataclass(frozen=True)
class CropSettings:
    """Crops of a tile: `global_crops` of `global_px` and `local_crops` of `local_px` pixels a side.

    `scale`: size of a nucleus in the crop relative to the tile, drawn evenly. `aspect`: most that a crop's width over
    height may differ from 1, either way. `flips` in both axes; `right_angles` adds turns by 90 degrees. `continuous`
    also shrinks each crop by a factor, log-uniform from 1 to what the tile has room for at the size of a global crop.
    `resized`: not ECT but the random resized crops of DINOv2, of `area` (global and local: least and most share of the
    tile) and an aspect of 3:4 to 4:3, to compare with.
    """

    global_px: int = 224
    global_crops: int = 2
    local_px: int = 98
    local_crops: int = 8
    scale: tuple[float, float] = (0.9, 1.1)
    aspect: float = 1.05
    flips: bool = True
    right_angles: bool = False
    continuous: bool = False
    resized: bool = False
    area: tuple[float, float, float, float] = (0.32, 1.0, 0.05, 0.32)

    def __post_init__(self) -> None:
        low, high = self.scale
        if not 0 < low <= high < math.inf:
            raise BadOption(f"crop scale {low} to {high} is no range above 0")
        if not 1 <= self.aspect < math.inf:
            raise BadOption(f"crop aspect {self.aspect} is below 1")
        if not all(0 < low <= high <= 1 for low, high in (self.area[:2], self.area[2:])):
            raise BadOption(f"crop areas {self.area} (views.crops.area) are no two ranges of shares of a tile")
        if self.resized and self.continuous:
            raise BadOption("crops are either resized or of continuous magnification; switch one of them off")
        if not 1 <= self.global_crops <= _MOST_CROPS or not 0 <= self.local_crops <= _MOST_CROPS:
            raise BadOption(
                f"{self.global_crops} global_crops, {self.local_crops} local_crops: at least 1 and 0 are needed, and "
                f"at most {_MOST_CROPS} of each"
            )
        if not 1 <= self.local_px <= self.global_px:
            raise BadOption(
                f"views.crops.local_px {self.local_px} is not between 1 and global_px, which is {self.global_px}"
            )
        if (need := self.most_px) > TILE_PX:
            raise BadOption(
                f"crops of {self.global_px} px at scale {low} and aspect {self.aspect} need {need:.4g} px of a tile of "
                f"{TILE_PX}; ask for smaller crops or a larger scale"
            )

    @property
    def most_px(self) -> float:
        """The widest and highest that a global crop is cut, in px of a tile whose um/px is wanted."""
        return self.global_px / self.scale[0] * math.sqrt(self.aspect)


@dataclass(frozen=True)
class TileScales:
    """(B,) float32 um/px of tiles, and at which um/px crops of them are `wanted`, before a crop's own scale."""

    mpp: NDArray[np.float32]
    wanted: NDArray[np.float32]

    def take(self, rows: slice) -> TileScales:
        """These rows alone."""
        return TileScales(self.mpp[rows], self.wanted[rows])

    @property
    def zoom(self) -> NDArray[np.float64]:
        """(B,) how many px of its tile a px of a crop is wide, before the crop's own scale."""
        return self.wanted.astype(np.float64) / self.mpp


@dataclass(frozen=True)
class CropWindows:
    """Where crops are cut: (B, n) for n crops of each of B tiles, in tile px from its upper left corner.

    Resampled to `px` a side, then mirrored by `flip_x` and `flip_y`, then transposed where `transposed`.
    """

    px: int
    x0: NDArray[np.float64]
    y0: NDArray[np.float64]
    width: NDArray[np.float64]
    height: NDArray[np.float64]
    flip_x: NDArray[np.bool_]
    flip_y: NDArray[np.bool_]
    transposed: NDArray[np.bool_]

    def mpp(self, tile_mpp: NDArray[np.float32]) -> NDArray[np.float64]:
        """(B, n) um/px of the crops, the geometric mean of both axes, from the tiles' (B,) um/px."""
        return np.asarray(tile_mpp[:, None] * np.sqrt(self.width * self.height) / self.px, np.float64)


def plan_crops(
    settings: CropSettings, places: Places, scales: TileScales | None = None
) -> tuple[CropWindows, CropWindows]:
    """Windows of the global and the local crops of the tiles at these places; without `scales` at the tiles' own um/px.

    Raises BadOption where a tile is too small for crops at the um/px that is wanted.
    """
    zoom = scales.zoom if scales else None
    return (
        _plan(settings, places, Purpose.GLOBAL_CROPS, zoom),
        _plan(settings, places, Purpose.LOCAL_CROPS, zoom),
    )


def _plan(settings: CropSettings, places: Places, purpose: Purpose, zoom: NDArray[np.float64] | None) -> CropWindows:
    whole = purpose == Purpose.GLOBAL_CROPS
    px = settings.global_px if whole else settings.local_px
    crops = settings.global_crops if whole else settings.local_crops
    numbers = places.uniforms(purpose, max(crops, 1) * _NUMBERS)
    u = numbers.reshape(len(numbers), -1, _NUMBERS)[:, :crops]
    if settings.resized:
        low, high = settings.area[:2] if whole else settings.area[2:]
        side = TILE_PX * np.sqrt(low + u[..., 0] * (high - low))
        stretch = np.sqrt(4 / 3) ** (2 * u[..., 1] - 1)
        width, height = np.minimum(side * stretch, TILE_PX), np.minimum(side / stretch, TILE_PX)
    else:
        width, height = _translated(settings, px, u)
    if zoom is not None:
        width, height = width * zoom[:, None], height * zoom[:, None]
        if (most := max(width.max(initial=0), height.max(initial=0))) > TILE_PX + _ROUNDING:
            raise BadOption(f"crops need {most:.0f} px of a tile of {TILE_PX}; lower sampling.alone")
    flip_x, flip_y = (u[..., 4] < 0.5) & settings.flips, (u[..., 5] < 0.5) & settings.flips
    turns = (np.modf(u[..., 4] * 2)[0] * 4).astype(int) * settings.right_angles
    return CropWindows(
        px,
        u[..., 2] * (TILE_PX - width),
        u[..., 3] * (TILE_PX - height),
        width,
        height,
        flip_x ^ ((turns == 1) | (turns == 2)),  # a turn is a transposition of a mirror image
        flip_y ^ ((turns == 3) | (turns == 2)),
        turns % 2 == 1,
    )


def _translated(
    settings: CropSettings, px: int, u: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Width and height of ECT's windows, in tile px."""
    scale = settings.scale[0] + u[..., 0] * (settings.scale[1] - settings.scale[0])
    stretch = np.sqrt(settings.aspect) ** (2 * u[..., 1] - 1)
    if settings.continuous:
        room = TILE_PX * scale / settings.global_px / np.maximum(stretch, 1 / stretch)
        scale = scale / room ** u[..., 6]
    return px / scale * stretch, px / scale / stretch


def crop(tiles: torch.Tensor, windows: CropWindows, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """(n * B, 3, px, px) crops in [0, 1], crop k of tile b in row k * B + b, on the tiles' device.

    `tiles`: (B, 3, 392, 392) uint8 of any memory layout. Weights and products are of `dtype`. The resampling is that of
    Pillow's `resize(..., BICUBIC, box)`, without its rounding to whole levels between the axes.
    """
    if not windows.x0.shape[1]:
        return torch.empty((0, 3, windows.px, windows.px), dtype=dtype, device=tiles.device)
    cut = one_by_one if computed_here(tiles) else together
    return cut(tiles, windows, dtype)


def together(tiles: torch.Tensor, windows: CropWindows, dtype: torch.dtype) -> torch.Tensor:
    """What `crop` gives, in few large operations without a wait, as a GPU likes it."""
    px = windows.px
    batch, crops = windows.x0.shape
    reach_y, of_y = _axis(windows.y0, windows.height, windows.flip_y, px)
    reach_x, of_x = _axis(windows.x0, windows.width, windows.flip_x, px)
    turned = windows.transposed.T.reshape(-1, 1, 1, 1)
    *sent, transposed = send_together([*of_y, *of_x, turned], tiles.device)
    y, x = _Axis(reach_y, *sent[:3]), _Axis(reach_x, *sent[3:])
    tile = torch.arange(batch, device=tiles.device).repeat(crops)
    rows, columns = y.taps(), x.taps()
    needed = tiles.permute(0, 2, 3, 1)[tile[:, None, None], rows[:, :, None], columns[:, None, :]]  # (N, Ky, Kx, 3)
    needed = needed.flatten(2).to(dtype)
    down = torch.bmm(y.weights(1 / 255).to(dtype), needed)  # (N, px, Kx * 3)
    down = down.view(crops * batch, px, x.reach, 3).transpose(2, 3).reshape(crops * batch, px * 3, x.reach)
    out = torch.bmm(down, x.weights().to(dtype).transpose(1, 2)).view(-1, px, 3, px).transpose(1, 2)
    out = out.clamp(0, 1).contiguous()  # the bicubic overshoots at edges
    return torch.where(transposed, out.transpose(2, 3), out) if turned.any() else out


def one_by_one(tiles: torch.Tensor, windows: CropWindows, dtype: torch.dtype) -> torch.Tensor:
    """What `crop` gives, on a CPU: every crop by itself, from no more of its tile than its own window needs."""
    px = windows.px
    first_y, reach_y, down = _banded(windows.y0, windows.height, windows.flip_y, px)
    first_x, reach_x, across = _banded(windows.x0, windows.width, windows.flip_x, px)
    down, across = (down / 255).to(dtype), across.to(dtype).transpose(1, 2)
    out = torch.empty((len(down), 3, px, px), dtype=dtype)
    for n, (y, x, high, wide) in enumerate(zip(first_y, first_x, reach_y, reach_x, strict=True)):
        seen = tiles[n % len(tiles), :, y : y + high, x : x + wide]
        seen = seen.to(dtype, memory_format=torch.contiguous_format)
        torch.bmm(down[n, :, :high].expand(3, -1, -1), seen @ across[n, :wide], out=out[n])
    out.clamp_(0, 1)
    turned = torch.from_numpy(windows.transposed.T.reshape(-1, 1, 1, 1))
    return torch.where(turned, out.transpose(2, 3), out) if turned.any() else out


def _banded(
    start: NDArray[np.float64], size: NDArray[np.float64], flip: NDArray[np.bool_], px: int
) -> tuple[list[int], list[int], torch.Tensor]:
    """First needed pixel and how many for each of N crops, and the weights (N, px, most) of one axis, float32.

    Only those weights are computed that are not 0: some of each output pixel's.
    """
    start, size, mirrored = start.T.ravel(), size.T.ravel(), flip.T.reshape(-1, 1)
    blur = np.maximum(size / px, 1.0)
    low, high = np.floor(start - _SUPPORT * blur), np.ceil(start + size + _SUPPORT * blur)
    first, end = np.clip(low, 0, TILE_PX).astype(np.int64), np.clip(high, 0, TILE_PX).astype(np.int64)
    place = np.arange(px) + 0.5
    place = np.where(mirrored, px - place, place)
    centre = (start - first)[:, None] + place * (size / px)[:, None]
    reach = end - first
    nearest = np.ceil(centre - _SUPPORT * blur[:, None] - 0.5).astype(np.int64)
    taps = nearest[:, :, None] + np.arange(math.ceil(2 * _SUPPORT * blur.max()) + 1)
    far = np.abs(taps + 0.5 - centre[:, :, None]) / blur[:, None, None]
    there = (taps >= 0) & (taps < reach[:, None, None])
    some = _bicubic(torch.from_numpy(far.astype(np.float32))).mul_(torch.from_numpy(there))
    some /= some.sum(2, keepdim=True)
    most = int(reach.max())
    weights = torch.zeros((len(first), px, most)).scatter_add_(2, torch.from_numpy(taps.clip(0, most - 1)), some)
    return first.tolist(), reach.tolist(), weights


def _bicubic(t: torch.Tensor) -> torch.Tensor:
    """The kernel at these distances, in its own widths."""
    near = ((_A + 2) * t - (_A + 3)) * t * t + 1
    far = _A * (((t - 5) * t + 8) * t - 4)
    return torch.where(t < 1, near, torch.where(t < _SUPPORT, far, 0.0))


def _axis(
    start: NDArray[np.float64], size: NDArray[np.float64], flip: NDArray[np.bool_], px: int
) -> tuple[int, list[NDArray[Any]]]:
    """The numbers of an _Axis, of (B, n) windows."""
    start, size, mirrored = start.T.ravel(), size.T.ravel(), flip.T.reshape(-1, 1)
    step = size / px
    blur = np.maximum(step, 1.0)
    low = np.floor(start - _SUPPORT * blur)
    reach = min(int(np.max(np.ceil(start + size + _SUPPORT * blur) - low)), TILE_PX)
    first = np.clip(low, 0, TILE_PX - reach).astype(np.int64)
    place = np.arange(px) + 0.5
    place = np.where(mirrored, px - place, place)
    centre = (start - first)[:, None] + place * step[:, None]
    return reach, [first, centre.astype(np.float32), blur.astype(np.float32)]


@dataclass(frozen=True)
class _Axis:
    """One axis of N crops (crop-major): `first` needed pixel (N,) int64, `reach` pixels from there, their weights.

    `centre` (N, px): where each output pixel lies, in px of the gathered ones. `blur` (N,): the kernel's width.
    """

    reach: int
    first: torch.Tensor
    centre: torch.Tensor
    blur: torch.Tensor

    def taps(self) -> torch.Tensor:
        """(N, reach) int64: the pixels of the tile that are gathered."""
        return self.first[:, None] + torch.arange(self.reach, device=self.first.device)

    def weights(self, gain: float = 1.0) -> torch.Tensor:
        """(N, px, reach) float32: each output pixel's weights, of sum `gain`."""
        at = torch.arange(self.reach, device=self.first.device) + 0.5
        t = (at - self.centre[:, :, None]).abs() / self.blur[:, None, None]
        weights = _bicubic(t)
        return weights * (gain / weights.sum(2, keepdim=True))
