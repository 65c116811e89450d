"""Small image files of every format and colour type, drawn, so that nothing binary lies in the repository."""

import io
import struct
import zlib
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""The depths in bits that each colour type of a PNG may have."""

ADAM_7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""The first column and row, and the steps between columns and rows, of each pass of an interlaced PNG."""


def stripes(text: str, height: int = 16) -> NDArray[np.uint8]:
    """Return a grey image (height, W) that the recogniser of tests/reading/stripes.onnxtxt reads as a text of a, b, c.

    Each column is a frame, its brightness the class: white is the blank, black "a", then "b" and "c".
    """
    shades = {"a": 0, "b": 85, "c": 170}
    row = [shade for character in text for shade in (255, 255, shades[character], shades[character])]
    return np.tile(np.array([*row, 255], np.uint8), (height, 1))


def saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    """Return an image file's content, written by Pillow."""
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a PNG chunk with its length and check sum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png_header(width: int, height: int, depth: int, colour: int, interlaced: int = 0) -> bytes:
    """Return the chunk IHDR."""
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced))


def png(width: int, height: int, depth: int, colour: int, extra: bytes = b"", interlaced: int = 0) -> bytes:
    """Return a PNG of any colour type, whether there is such a one or not; its pixels are a ramp."""
    bits = depth * PNG_CHANNELS.get(colour, 1)
    rows = []  # each begins with the number of its filter
    for left, top, across, down in ADAM_7 if interlaced else ((0, 0, 1, 1),):
        columns, lines = -(-(width - left) // across), -(-(height - top) // down)
        if columns > 0 and lines > 0:
            rows.append((b"\0" + bytes(i % 251 for i in range((columns * bits + 7) // 8))) * lines)
    palette = chunk(b"PLTE", bytes(i % 256 for i in range(3 * min(256, 1 << depth)))) if colour == 3 else b""
    pixels = chunk(b"IDAT", zlib.compress(b"".join(rows), 9))
    header = png_header(width, height, depth, colour, interlaced)
    return PNG_SIGNATURE + header + palette + extra + pixels + chunk(b"IEND", b"")


def with_sums(data: bytes) -> bytes:
    """Return a PNG whose chunks have the check sums that fit their content, as far as the chunks can be told."""
    if not data.startswith(PNG_SIGNATURE):
        return data
    parts, position = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 8 + length
        if end + 4 > len(data):
            break
        body = data[position + 4 : end]
        parts += [data[position : position + 4], body, struct.pack(">I", zlib.crc32(body))]
        position = end + 4
    return b"".join([*parts, data[position:]])


def small_files(width: int = 9, height: int = 7) -> dict[str, bytes]:
    """Return the smallest useful files of every kind by name, a few hundred bytes each."""
    rows, columns = np.mgrid[0:height, 0:width]
    alpha = (columns * 31) % 256
    pixels = np.dstack([rows * 30, columns * 25, 255 - rows * 20, alpha]).astype(np.uint8)
    rgba = Image.fromarray(pixels)
    rgb, grey = rgba.convert("RGB"), rgba.convert("L")
    palette, turned = rgb.quantize(8), rgb.rotate(180)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\x06\0\0\0\0\0\0"
    files = {
        f"png-{colour}-{depth}{'-interlaced' * interlaced}": png(width, height, depth, colour, interlaced=interlaced)
        for colour, depths in PNG_DEPTHS.items()
        for depth in depths
        for interlaced in (0, 1)
        if not interlaced or depth == depths[-1]
    }
    files |= {
        "png-transparent-grey": png(width, height, 2, 0, chunk(b"tRNS", b"\0\1")),
        "png-transparent-rgb": png(width, height, 8, 2, chunk(b"tRNS", b"\0\0\0\1\0\2")),
        "png-transparent-palette": png(width, height, 4, 3, chunk(b"tRNS", b"\0\x80\xff")),
        "png-profile": saved(rgb, "PNG", icc_profile=b"no profile at all"),
        "png-exif": saved(rgb, "PNG", exif=exif),
        "png-animated": saved(rgb, "PNG", save_all=True, append_images=[turned]),
        "jpeg-rgb": saved(rgb, "JPEG", quality=30),
        "jpeg-grey": saved(grey, "JPEG", quality=30),
        "jpeg-cmyk": saved(rgb.convert("CMYK"), "JPEG", quality=30),
        "jpeg-progressive": saved(grey, "JPEG", quality=30, progressive=True),
        "jpeg-restarts": saved(grey, "JPEG", quality=30, restart_marker_blocks=1),
        "jpeg-exif": saved(grey, "JPEG", quality=30, exif=exif),
        "jpeg-several": saved(grey, "MPO", quality=30, save_all=True, append_images=[grey.rotate(180)]),
        "gif": saved(palette, "GIF"),
        "gif-transparent": saved(palette, "GIF", transparency=3),
        "gif-interlaced": saved(palette, "GIF", interlace=1),
        "gif-animated": saved(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
        "webp-lossy": saved(rgb, "WEBP"),
        "webp-lossless": saved(rgb, "WEBP", lossless=True),
        "webp-alpha": saved(rgba, "WEBP", lossless=True, exact=True),
        "webp-exif": saved(rgb, "WEBP", exif=exif),
        "webp-animated": saved(rgb, "WEBP", save_all=True, append_images=[turned]),
        "bmp-rgb": saved(rgb, "BMP"),
        "bmp-grey": saved(grey, "BMP"),
        "bmp-1": saved(grey.convert("1"), "BMP"),
        "bmp-palette": saved(palette, "BMP"),
        "bmp-rgba": saved(rgba, "BMP"),
        "bmp-run-lengths": run_lengths(width, height),
    }
    return files


def run_lengths(width: int, height: int, body: Iterable[int] | None = None) -> bytes:
    """Return a BMP of 8 bits whose rows are packed as runs."""
    packed = bytes(body) if body else bytes(n for row in range(height) for n in (width, row * 7 % 256, 0, 0)) + b"\0\1"
    start = 54 + 1024
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(packed), 0, 0, 256, 0)
    palette = bytes(value for shade in range(256) for value in (shade, shade, shade, 0))
    return b"BM" + struct.pack("<IHHI", start + len(packed), 0, 0, start) + info + palette + packed
