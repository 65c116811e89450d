"""Bytes → image → batch: the same steps for training and for serving."""

import contextlib
import re
import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from captcha import CaptchaError

MAX_BYTES = 10 * 2**20
MAX_PIXELS = 10_000_000
MAX_ASPECT = 100  # a line of 10,000,000 pixels would not fit into memory once resized to a model's height
MAX_SCANS = 100  # a progressive JPEG of a few bytes a scan could keep the decoder busy for hours
WIDTH_STEP = 16

FRAME_STRIDE = 4
"""Columns of a resized image that one frame of the model covers: T = W / FRAME_STRIDE."""

Image = NDArray[np.uint8]


class ImageError(CaptchaError):
    """Bytes that are not an image we read; one line that says why."""


class Header(NamedTuple):
    """What a file says about itself before anything is decoded. The size is that before EXIF turns it."""

    format: str
    width: int
    height: int
    still: bytes  # what is to be decoded: the first picture, in PNG and GIF without all that it does not need
    transparent_grey: int | None = None  # PNG: this 8- or 16-bit grey stands for "transparent"


def read_header(data: bytes) -> Header:
    """Return format and size of an image, having checked that its file is whole.

    The format is told by content, never by name.

    Raises:
        ImageError: empty, truncated, too big, or no PNG, JPEG, WebP, BMP or GIF.
    """
    if not data:
        raise ImageError("the file is empty")
    if len(data) > MAX_BYTES:
        raise ImageError(f"the file has {len(data) / 2**20:.1f} MB, more than the {MAX_BYTES // 2**20} MB allowed")
    parse = next((parse for signature, parse in _PARSERS if re.match(signature, data, re.DOTALL)), None)
    if parse is None:
        raise ImageError("not an image: no PNG, JPEG, WebP, BMP or GIF")
    try:
        header = parse(data)
    except (struct.error, IndexError):  # the parser ran past the end
        raise ImageError("the image is truncated") from None
    if header.width <= 0 or header.height <= 0:
        raise ImageError(f"the {header.format} header gives no size: {header.width} x {header.height} pixels")
    size = f"{header.width} x {header.height} pixels"
    if header.width * header.height > MAX_PIXELS:
        raise ImageError(f"the image has {size}, more than the {MAX_PIXELS // 10**6} megapixels allowed")
    if max(header[1:3]) > MAX_ASPECT * min(header[1:3]):
        raise ImageError(f"the image has {size}: one side is more than {MAX_ASPECT} times the other")
    return header


def decode_image(data: bytes) -> Image:
    """Return the picture in an image file as (H, W, 3) RGB, upright, on white where it is transparent.

    Reads PNG, JPEG, WebP, BMP and GIF (first frame) of any colour type; 16 bits become 8.

    Raises:
        ImageError: empty, truncated, damaged, too big, or none of these formats.
    """
    header = read_header(data)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it would comment bad files on stderr
    decoded = None
    with contextlib.suppress(cv2.error):
        decoded, kinds, metadata = cv2.imdecodeWithMetadata(np.frombuffer(header.still, np.uint8), cv2.IMREAD_UNCHANGED)
    if decoded is None or decoded.size == 0 or decoded.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"the {header.format} image is damaged: it cannot be decoded")
    parts = zip(kinds, metadata, strict=True)
    exif = next((bytes(part) for kind, part in parts if kind == cv2.IMAGE_METADATA_EXIF), b"")
    return np.ascontiguousarray(_upright(_on_white(decoded, header.transparent_grey), _orientation(exif)))


def resize_to_height(image: Image, height: int) -> Image:
    """Return the image scaled to a height in pixels, its aspect ratio kept: (height, W', 3)."""
    rows, columns = image.shape[:2]
    if rows == height:
        return image
    width = max(1, round(columns * height / rows))
    interpolation = cv2.INTER_AREA if rows > height else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation).astype(np.uint8, copy=False)


def padded_width(width: int) -> int:
    """Return the width in pixels, rounded up to WIDTH_STEP, that an image is padded to."""
    return -(-width // WIDTH_STEP) * WIDTH_STEP


def stack(images: Sequence[Image]) -> Image:
    """Return one batch (N, 3, height, W) of images (height, W_i, 3).

    W is the widest, rounded up to WIDTH_STEP; the last column of a narrower image is repeated.
    """
    width = padded_width(max(image.shape[1] for image in images))
    batch = np.empty((len(images), 3, images[0].shape[0], width), np.uint8)
    for row, image in zip(batch, images, strict=True):
        row[:, :, : image.shape[1]] = image.transpose(2, 0, 1)
        row[:, :, image.shape[1] :] = image[:, -1].T[:, :, None]
    return batch


def _on_white(decoded: NDArray[Any], transparent_grey: int | None) -> Image:
    """Return RGB of what OpenCV decoded unchanged: grey, BGR or BGRA of 8 or 16 bits."""
    if decoded.ndim == 2 and transparent_grey is not None:  # OpenCV drops a grey PNG's transparent value
        decoded = np.where(decoded == transparent_grey, np.iinfo(decoded.dtype).max, decoded)
    if decoded.dtype == np.uint16:
        decoded = ((decoded.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if decoded.ndim == 2:
        return np.repeat(decoded[:, :, None], 3, axis=2)
    colour = decoded[:, :, 2::-1]
    if decoded.shape[2] == 4:
        alpha = decoded[:, :, 3:].astype(np.uint16)
        colour = ((colour * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)  # below 2**16
    return colour


def _upright(image: Image, orientation: int) -> Image:
    """Return the image turned as EXIF's orientation (1 to 8) asks for."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return image


def _orientation(exif: bytes) -> int:
    """Return the orientation (tag 0x0112 of the first directory) of EXIF data, 1 where there is none."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 1
    try:
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, start)
        for entry in range(entries):
            tag, _, _, value = struct.unpack_from(order + "HHIH", exif, start + 2 + 12 * entry)
            if tag == 0x0112:
                return value if 1 <= value <= 8 else 1
    except struct.error:
        pass
    return 1


def _png(data: bytes) -> Header:
    width, height, depth, colour_type = struct.unpack_from(">IIBB", data, 16)
    still = [data[:8]]
    transparent_grey = None
    position = 8
    while True:  # chunks: length of the content, type, content, check sum
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        (check_sum,) = struct.unpack_from(">I", data, end - 4)
        if kind in _PNG_CHUNKS:
            if zlib.crc32(data[position + 4 : end - 4]) != check_sum:
                raise ImageError("the PNG image is damaged: a check sum is wrong")
            still.append(data[position:end])
        if kind == b"tRNS" and colour_type == 0 and length >= 2:
            (value,) = struct.unpack_from(">H", data, position + 8)
            transparent_grey = value * 255 // (2**depth - 1) if depth < 8 else value
        if kind == b"IEND":
            return Header("PNG", width, height, b"".join(still), transparent_grey)
        position = end


# Others (profiles, texts, an animation's frames) change no pixel here and only make libpng talk on stderr.
_PNG_CHUNKS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"})


def _jpeg(data: bytes) -> Header:
    width = height = scans = 0
    position = 2
    while True:  # segments: 0xFF, marker, length, that many bytes less the two of the length
        found = _MARKER.search(data, position)
        if found is None:
            raise ImageError("the image is truncated")
        marker = found.group()[-1]
        if marker == 0xD9:
            return Header("JPEG", width, height, data)
        (length,) = struct.unpack_from(">H", data, found.end())
        if marker == 0xDA:
            scans += 1
            if scans > MAX_SCANS:
                raise ImageError(f"the JPEG image has more than {MAX_SCANS} scans")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and not width:
            height, width = struct.unpack_from(">HH", data, found.end() + 3)
        position = found.end() + length


# Inside entropy-coded data 0xFF 0x00 is a plain byte, and restart markers stand among it. Not \xff+, which would
# take quadratic time over a long run of 0xFF.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


def _webp(data: bytes) -> Header:
    size, kind = struct.unpack_from("<I4x4s", data, 4)
    if len(data) < size + 8:
        raise ImageError("the image is truncated")
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", data, 26))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        width, height = (int.from_bytes(_slice(data, at, 3), "little") + 1 for at in (24, 27))
    else:
        raise ImageError("the WebP image is damaged: it cannot be decoded")
    return Header("WebP", width, height, data)


def _bmp(data: bytes) -> Header:
    start, header_bytes = struct.unpack_from("<II", data, 10)
    if header_bytes == 12:
        raise ImageError("a BMP of OS/2 1.x is not read")  # OpenCV 5.0 decodes it to a wrong picture
    width, height, _, bits, compression, pixel_bytes = struct.unpack_from("<iiHHII", data, 18)
    height = abs(height)  # negative: the rows stand from the top down
    if compression in (0, 3):  # not run-length encoded
        pixel_bytes = (width * bits + 31) // 32 * 4 * height
    if len(data) < start + pixel_bytes:
        raise ImageError("the image is truncated")
    return Header("BMP", width, height, data)


def _gif(data: bytes) -> Header:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + _palette_bytes(flags)
    while data[position] == 0x21:  # extensions before the first frame
        position = _after_blocks(data, position + 2)
    if data[position] != 0x2C:
        raise ImageError("the GIF image is damaged: it has no frame")
    end = _after_blocks(data, position + 11 + _palette_bytes(data[position + 9]))
    return Header("GIF", width, height, data[:end] + b";")


def _palette_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: bytes, position: int) -> int:
    """Return where a GIF's data blocks end: each a length and that many bytes, until a length of 0."""
    while data[position]:
        position += 1 + data[position]
    return position + 1


def _slice(data: bytes, start: int, length: int) -> bytes:
    part = data[start : start + length]
    if len(part) < length:
        raise ImageError("the image is truncated")
    return part


_PARSERS: tuple[tuple[bytes, Callable[[bytes], Header]], ...] = (
    (rb"\x89PNG\r\n\x1a\n", _png),
    (rb"\xff\xd8\xff", _jpeg),
    (rb"RIFF....WEBP", _webp),
    (rb"BM", _bmp),
    (rb"GIF8[79]a", _gif),
)
