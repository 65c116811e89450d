"""An image file, array or PIL image → RGB → batch: the same steps for training and for serving."""

import contextlib
import io
import os
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from captcha import CaptchaError
from captcha.reading.limits import MAX_ASPECT, MAX_BYTES, MAX_COLUMNS, MAX_PIXELS, MAX_SCANS, MAX_SEGMENTS

WIDTH_STEP = 16
PIXELS_AT_ONCE = 2**18
"""So many are brought to RGB at a time: copies of a large image are small, and its pixels stay what they were."""

FRAME_STRIDE = 4
"""Columns of a resized image that one frame of the model covers: T = W / FRAME_STRIDE."""

# Pillow would warn on stderr of sizes that are refused here anyway.
warnings.filterwarnings("ignore", category=PIL.Image.DecompressionBombWarning)

Image = NDArray[np.uint8]
ImageSource = str | os.PathLike[str] | bytes | bytearray | memoryview | Image | PIL.Image.Image
"""The forms in which `load_image` takes an image."""


class ImageError(CaptchaError):
    """A source that is no image we read; one line that says why."""


def load_image(source: ImageSource) -> Image:
    """Return an image as (H, W, 3) uint8 RGB, upright, on white where it is transparent.

    Args:
        source: the path of an image file, its content as bytes, an array of uint8 that is (H, W, 3) RGB already,
            (H, W) grey or (H, W, 4) RGBA, or a PIL image of any mode but I and F.

    Raises:
        ImageError: the file cannot be read, the image is damaged or too big, or the source is none of these.
    """
    if isinstance(source, str | os.PathLike):
        return _read(os.fsdecode(source))
    if isinstance(source, bytes | bytearray | memoryview):
        return decode_image(bytes(source))
    if isinstance(source, PIL.Image.Image):
        return _from_pil(source)
    is_array = isinstance(source, np.ndarray)
    if is_array and holds_pixels(source):
        _check_size(source.shape[1], source.shape[0])
        return source if source.shape[2:] == (3,) else _on_white(PIL.Image.fromarray(source))
    given = f"an array {source.shape} of {source.dtype}" if is_array else type(source).__name__
    raise ImageError(
        f"{given} is no image that can be read: give a path, the bytes of an image file, "
        "an array (H, W), (H, W, 3) or (H, W, 4) of uint8, or a PIL image"
    )


def holds_pixels(array: NDArray[Any]) -> bool:
    """Return whether an array is an image: (H, W) grey, (H, W, 3) RGB or (H, W, 4) RGBA, of uint8, not empty."""
    channels = array.shape[2:]
    return array.dtype == np.uint8 and array.ndim > 1 and channels in ((), (3,), (4,)) and array.size > 0


def image_format(data: bytes) -> str:
    """Return PNG, JPEG, WebP, BMP or GIF, told by a file's first bytes, never by its name.

    Raises:
        ImageError: the file is empty, too big, or of another format.
    """
    if not data:
        raise ImageError("the file is empty")
    if len(data) > MAX_BYTES:
        raise ImageError(f"the file has {len(data) / 2**20:.1f} MB, more than the {MAX_BYTES / 2**20:g} MB allowed")
    found = _SIGNATURE.match(data)
    if found is None:
        raise ImageError("not an image: no PNG, JPEG, WebP, BMP or GIF")
    return str(found.lastgroup)


def decode_image(data: bytes) -> Image:
    """Return the picture in an image file as (H, W, 3) RGB, upright, on white where it is transparent.

    Reads PNG, JPEG, WebP, BMP and GIF of any colour type, of an animation the first picture; 16 bits become 8.

    Raises:
        ImageError: the file is empty, truncated, damaged, too big, or of another format.
    """
    name = image_format(data)
    first_picture, reader = _READERS[name]
    try:
        still = first_picture(data)
        with reader(io.BytesIO(still)) as image:  # decodes no pixel
            _check_size(*image.size)
            if name == "PNG" and still[24] == 16 and still[25] > 0:
                return _upright(_deep_colour(still), _orientation(image))
            return _upright(_on_white(image), _orientation(image))
    except ImageError:
        raise
    except PIL.Image.DecompressionBombError:  # of WebP and GIF: Pillow's own limit, higher than ours
        raise ImageError(f"the image has more than the {MAX_PIXELS / 10**6:g} megapixels allowed") from None
    except Exception as error:  # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and others
        if isinstance(error, struct.error) or "truncated" in str(error).lower():
            raise ImageError("the image is truncated") from None
        raise ImageError(f"the {name} image is damaged: it cannot be decoded") from None


def resize_to_height(image: Image, height: int) -> Image:
    """Return the image scaled to a height in pixels, its aspect ratio kept: (height, W', 3)."""
    rows, columns = image.shape[:2]
    if rows == height:
        return image
    width = resized_width(columns, rows, height)
    interpolation = cv2.INTER_AREA if rows > height else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=interpolation).astype(np.uint8, copy=False)


def resized_width(columns: int, rows: int, height: int) -> int:
    """Return the width in pixels of an image of columns x rows, once scaled to a height."""
    if rows == height:
        return columns
    narrowest = -(-height // MAX_ASPECT)  # what is resized can be given again: rounding must not exceed MAX_ASPECT
    return max(narrowest, round(columns * height / rows))


def checked_width(image: Image, height: int) -> int:
    """Return the width in pixels of an image once scaled to a height.

    Raises:
        ImageError: it is more than one row of a request may have.
    """
    rows, columns = image.shape[:2]
    width = resized_width(columns, rows, height)
    if width > MAX_COLUMNS:
        raise ImageError(
            f"the image of {columns} x {rows} pixels has {width} columns once resized to a height of {height}, "
            f"more than the {MAX_COLUMNS} allowed"
        )
    return width


def padded_width(width: int) -> int:
    """Return the width in pixels, rounded up to WIDTH_STEP, that an image is padded to."""
    return -(-width // WIDTH_STEP) * WIDTH_STEP


def frames(width: int) -> int:
    """Return how many frames the model gives for an image of this width in pixels, once resized to its height."""
    return padded_width(width) // FRAME_STRIDE


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


def _read(path: str) -> Image:
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        return decode_image(data)
    except ImageError as error:
        problem = str(error)
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
    except ValueError:  # a path with a null byte
        problem = "cannot be read: no file can have this name"
    raise ImageError(f"{path if path.isprintable() else repr(path)}: {problem}")


def _from_pil(image: PIL.Image.Image) -> Image:
    _check_size(*image.size)
    if image.mode in ("I", "F"):
        raise ImageError(f"a PIL image of mode {image.mode} does not say which value is white: convert it to L or RGB")
    try:
        return _upright(_on_white(image), _orientation(image))
    except Exception as error:  # it may be a file not read so far, or of a mode that Pillow does not convert
        line = " ".join(str(error).split())
        raise ImageError(f"the PIL image of mode {image.mode} cannot be read: {line}") from None


def _check_size(width: int, height: int) -> None:
    size = f"{width} x {height} pixels"
    if width < 1 or height < 1:
        raise ImageError(f"the image has {size}: there is nothing to read")
    if width * height > MAX_PIXELS:
        raise ImageError(f"the image has {size}, more than the {MAX_PIXELS / 10**6:g} megapixels allowed")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f"the image has {size}: one side is more than {MAX_ASPECT} times the other")


def _on_white(image: PIL.Image.Image) -> Image:
    """Return the pixels of a PIL image of any mode as (H, W, 3) RGB."""
    image.load()
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, bottom in _strips(image.height, image.width):
        pixels[top:bottom] = _strip_on_white(image.crop((0, top, image.width, bottom)))
    return pixels


def _strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """Yield the first row of each strip of PIXELS_AT_ONCE, and the row after its last."""
    rows = max(1, PIXELS_AT_ONCE // width)
    return ((top, min(height, top + rows)) for top in range(0, height, rows))


def _strip_on_white(image: PIL.Image.Image) -> Image:
    if image.mode.startswith("I;16"):  # Pillow would cut these values off at 255, and not see what is transparent
        values = np.asarray(image).astype(np.uint32)
        values[values == image.info.get("transparency")] = 65535
        return np.repeat(((values + 128) // 257).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        ground = PIL.Image.new("RGBA", image.size, "white")
        ground.alpha_composite(image.convert("RGBA"))
        image = ground
    return np.asarray(image.convert("RGB"))


def _deep_colour(png: bytes) -> Image:
    """Return a PNG of 16-bit colour in 8 bits, rounded: Pillow would cut the lower 8 bits off."""
    bgr = np.asarray(cv2.imdecode(np.frombuffer(_for_libpng(png), np.uint8), cv2.IMREAD_UNCHANGED))
    pixels = np.empty((*bgr.shape[:2], 3), np.uint8)
    for top, bottom in _strips(*bgr.shape[:2]):
        rgb = bgr[top:bottom, :, [2, 1, 0, 3][: bgr.shape[2]]].astype(np.uint32)
        pixels[top:bottom] = _strip_on_white(PIL.Image.fromarray(((rgb + 128) // 257).astype(np.uint8)))
    return pixels


def _for_libpng(png: bytes) -> bytes:
    """Return a PNG of 16-bit colour without what libpng would complain of on stderr; damaged pixels are refused."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    with _PngReader(io.BytesIO(png)) as image:
        image.load()  # raises where libpng would write, and read on
    kept, position = {b"IHDR": b"", b"tRNS": b"", b"IDAT": b""}, 8
    while position < len(png):
        length, kind = struct.unpack_from(">I4s", png, position)
        chunk = png[position : position + 12 + length]
        if kind == b"IDAT" or (kind == b"IHDR" and not kept[kind]) or (kind == b"tRNS" and (png[25], length) == (2, 6)):
            kept[kind] = kept[kind] + chunk if kind == b"IDAT" else chunk
        position += len(chunk)
    return png[:8] + b"".join(kept.values()) + b"\0\0\0\0IEND\xaeB`\x82"


def _upright(image: Image, orientation: int) -> Image:
    """Return the image turned as EXIF's orientation (1 to 8) asks for."""
    if orientation >= 5:
        image = image.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def _orientation(image: PIL.Image.Image) -> int:
    """Return the orientation (tag 0x0112 of the first directory) in an image's EXIF data, 1 where there is none.

    Not `Image.getexif`, which warns of damaged data on stderr.
    """
    exif = bytes(image.info.get("exif") or b"").removeprefix(b"Exif\0\0")
    order = ">" if exif.startswith(b"MM") else "<"
    with contextlib.suppress(struct.error):  # damaged EXIF data is no reason to refuse
        (start,) = struct.unpack_from(order + "I", exif, 4)
        (entries,) = struct.unpack_from(order + "H", exif, start)
        directory = exif[start + 2 : start + 2 + 12 * entries]
        for tag, value in struct.iter_unpack(order + "H6xH2x", directory):
            if tag == 0x0112 and 1 <= value <= 8:
                return int(value)
    return 1


def _png(data: bytes) -> bytes:
    """Return the chunks that make the first picture, having compared their check sums and counted its pixels.

    Pillow does neither: it would leave missing rows black, and unpack any number of colour profiles, 1 MB each.
    """
    kept, pixels, position, kind = [data[:8]], [], 8, b""
    width, height, depth, colour, interlaced = struct.unpack_from(">IIBB2xB", data, 16)
    _check_size(width, height)
    while kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, position)
        chunk = data[position : position + 12 + length]  # length of the content, type, content, check sum
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IDAT", b"IEND"):
            (check_sum,) = struct.unpack_from(">I", chunk, 8 + length)
            if zlib.crc32(chunk[4:-4]) != check_sum:
                raise ImageError("the PNG image is damaged: a check sum is wrong")
            kept.append(chunk)
        if kind == b"IDAT":
            pixels.append(chunk[8:-4])
        position += len(chunk)
    bits = width * depth * {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    needed = height * (1 + (bits + 7) // 8)  # each row begins with the number of its filter
    if not interlaced and not _unpacks_to(pixels, needed):
        raise ImageError("the image is truncated")
    return b"".join(kept)


def _unpacks_to(packed: Iterable[bytes], needed: int) -> bool:
    """Return whether packed bytes hold at least so many unpacked ones; they are counted and not kept."""
    stream = zlib.decompressobj()
    for chunk in (*packed, b""):  # the last: what the stream holds back
        unpacked = b"more"
        while needed > 0 and (chunk or unpacked):
            unpacked = stream.decompress(chunk, min(needed, PIXELS_AT_ONCE))
            chunk = stream.unconsumed_tail
            needed -= len(unpacked)
    return needed <= 0


class _PngReader(PngImageFile):
    def _open(self) -> None:
        """Scale the grey that stands for "transparent" as Pillow scales 2- and 4-bit pixels, but not this grey."""
        super()._open()
        scale = {"L;2": 85, "L;4": 17}.get(str(self.tile[0].args))
        if scale and "transparency" in self.info:
            self.info["transparency"] *= scale


def _jpeg(data: bytes) -> bytes:
    """Return the first picture up to its end marker; Pillow would accept a file without one."""
    position, segments, scans = 2, 0, 0
    while found := _MARKER.search(data, position):  # segments: 0xFF, marker, length, that many bytes less two
        marker = found.group()[-1]
        if marker == 0xD9:
            return data[: found.end()]
        segments += 1
        scans += marker == 0xDA
        if scans > MAX_SCANS:
            raise ImageError(f"the JPEG image has more than {MAX_SCANS} scans")
        if segments > MAX_SEGMENTS:
            raise ImageError(f"the JPEG image has more than {MAX_SEGMENTS} segments")
        position = found.end() + int.from_bytes(data[found.end() : found.end() + 2])
    raise ImageError("the image is truncated")


# Inside entropy-coded data 0xFF 0x00 is a plain byte, and restart markers stand among it. Not \xff+, which would
# take quadratic time over a long run of 0xFF.
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd8\xff]")


class _JpegReader(JpegImageFile):
    def _read_dpi_from_exif(self) -> None:
        """Do nothing: Pillow would warn of damaged EXIF data on stderr."""


def _webp(data: bytes) -> bytes:
    if len(data) < int.from_bytes(data[4:8], "little") + 8:
        raise ImageError("the image is truncated")
    if data[12:16] == b"VP8X":  # the canvas of an animation, which the reader asks memory for
        _check_size(*(int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27)))
    return data


def _gif(data: bytes) -> bytes:
    _check_size(*struct.unpack_from("<HH", data, 6))  # Pillow makes a screen that is smaller than its frame larger
    return data


_SIGNATURE = re.compile(
    rb"(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<JPEG>\xff\xd8\xff)|(?P<WebP>RIFF....WEBP)|(?P<BMP>BM)|(?P<GIF>GIF8[79]a)",
    re.DOTALL,
)
_READERS: dict[str, tuple[Callable[[bytes], bytes], Callable[[io.BytesIO], ImageFile]]] = {
    "PNG": (_png, _PngReader),
    "JPEG": (_jpeg, _JpegReader),
    "WebP": (_webp, WebPImageFile),
    "BMP": (bytes, BmpImageFile),
    "GIF": (_gif, GifImageFile),
}
