"""Hostile image files by name, of fixed seeds: cut, flipped, bombs, claimed sizes, polyglots, every colour type."""

import functools
import gzip
import io
import pickle
import random
import struct
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from tests.hostile.pictures import (
    PNG_DEPTHS,
    PNG_SIGNATURE,
    chunk,
    png,
    png_header,
    run_lengths,
    saved,
    small_files,
    stripes,
    with_sums,
)

SEED = 8


@functools.cache
def images() -> dict[str, bytes]:
    """Return all files; a name says what is wrong with its file."""
    files = small_files()
    parts = (_whole(files), _cut(files), _flipped(files), _claimed(files), _long_and_thin(), _colours(), _bombs())
    named = [pair for part in (*parts, _structures(files), _polyglots(files), _noise()) for pair in part]
    corpus = dict(named)
    assert len(corpus) == len(named), "two files have one name"
    return corpus


Files = Iterator[tuple[str, bytes]]


def _whole(files: dict[str, bytes]) -> Files:
    for name, content in files.items():
        yield f"whole/{name}", content


def _cut(files: dict[str, bytes]) -> Files:
    rng = random.Random(SEED)
    for name, content in files.items():
        for kept in (0.3, 0.9):
            length = min(len(content) - 1, round(kept * len(content)) + rng.randrange(8))
            yield f"cut/{name}-{length}", content[:length]
    for kind in ("png-2-8", "jpeg-rgb", "gif", "webp-lossy", "bmp-rgb"):
        for length in (1, 2, 3, 7, 12, 25):
            yield f"cut/{kind}-{length}", files[kind][:length]


def _flipped(files: dict[str, bytes]) -> Files:
    rng = random.Random(SEED + 1)
    for name, content in files.items():
        for times in (1, 2, 3):
            damaged = bytearray(content)
            places = sorted(rng.sample(range(len(content)), times))
            for place in places:
                damaged[place] ^= 1 << rng.randrange(8)
            made = with_sums(bytes(damaged)) if times == 3 else bytes(damaged)
            yield f"flipped/{name}-at-{'-'.join(map(str, places))}", made


def claiming(kind: str, content: bytes, width: int, height: int) -> bytes:
    """Return the file with another size in its header, as far as the header can hold it."""
    data = bytearray(content)
    if kind == "png":
        data[16:24] = struct.pack(">II", width & 0xFFFFFFFF, height & 0xFFFFFFFF)
        return with_sums(bytes(data))
    if kind == "jpeg":
        at = data.index(b"\xff\xc0")
        data[at + 5 : at + 9] = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
    elif kind == "gif":
        data[6:10] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif kind == "gif-frame":
        at = data.index(0x2C, 13 + 3 * 2 ** ((data[10] & 7) + 1))
        data[at + 5 : at + 9] = struct.pack("<HH", width & 0xFFFF, height & 0xFFFF)
    elif kind == "webp-lossy":
        data[26:30] = struct.pack("<HH", width & 0x3FFF, height & 0x3FFF)
    elif kind == "webp-lossless":
        data[21:25] = struct.pack("<I", ((width - 1) & 0x3FFF) | ((height - 1) & 0x3FFF) << 14)
    elif kind == "webp-canvas":
        data[24:30] = b"".join(((side - 1) & 0xFFFFFF).to_bytes(3, "little") for side in (width, height))
    else:
        data[18:26] = struct.pack("<II", width & 0xFFFFFFFF, height & 0xFFFFFFFF)
    return bytes(data)


SIZES = [
    *((0, 0), (0, 7), (9, 0), (1, 1), (1, 101), (9, 2**16 - 1), (100_000, 1), (1, 100_000), (4000, 2501)),
    *((2**14 - 1, 2**14 - 1), (2**16 - 1, 2**16 - 1), (2**31 - 1, 2**31 - 1), (2**32 - 1, 7), (-9, -7)),
]


def _claimed(files: dict[str, bytes]) -> Files:
    kinds = {
        "png": "png-2-8",
        "jpeg": "jpeg-rgb",
        "gif": "gif",
        "gif-frame": "gif",
        "webp-lossy": "webp-lossy",
        "webp-lossless": "webp-lossless",
        "webp-canvas": "webp-animated",
        "bmp": "bmp-rgb",
    }
    for kind, name in kinds.items():
        for width, height in SIZES:
            yield f"claimed/{kind}-{width}x{height}", claiming(kind, files[name], width, height)


def _long_and_thin() -> Files:
    """Files that are as large as they say: from one pixel to a line of 100,000."""
    for file_format, longest in (("PNG", 100_000), ("BMP", 100_000), ("GIF", 65535), ("JPEG", 65500), ("WEBP", 16383)):
        for size in ((1, 1), (100, 1), (1, 100), (101, 1), (longest, 1), (1, longest)):
            yield f"size/{file_format}-{size[0]}x{size[1]}", saved(Image.new("L", size, 200), file_format)


def _colours() -> Files:
    """PNGs of colour types and depths that there are not."""
    for colour in (0, 1, 2, 3, 4, 5, 6, 7, 255):
        for depth in (0, 1, 3, 8, 16, 32):
            if depth not in PNG_DEPTHS.get(colour, ()):
                yield f"colour/png-{colour}-{depth}", png(9, 7, depth, colour)
    for name, packing in {"compression": (1, 0, 0), "filter": (0, 1, 0), "interlace": (0, 0, 2)}.items():
        header = chunk(b"IHDR", struct.pack(">IIBB", 9, 7, 8, 0) + bytes(packing))
        yield f"colour/png-{name}", PNG_SIGNATURE + header + png(9, 7, 8, 0)[33:]


def packed_zeros(size: int) -> bytes:
    """Return zlib's form of so many zero bytes, a thousandth as long; made in pieces, to need no memory."""
    packer = zlib.compressobj(9)
    piece = bytes(2**20)
    parts = [packer.compress(piece) for _ in range(size >> 20)]
    return b"".join([*parts, packer.compress(bytes(size & (2**20 - 1))), packer.flush()])


def _bombs() -> Files:
    end = chunk(b"IEND", b"")
    pixels = packed_zeros(2**26)
    for name, header in {
        "25000x25000-grey": png_header(25_000, 25_000, 1, 0),
        "3160x3160-rgba-16": png_header(3160, 3160, 16, 6),
        "9x7-of-64-MB": png_header(9, 7, 8, 2),
        "10000x1000-grey": png_header(10_000, 1_000, 8, 0),
        "1000x10-palette": png_header(1_000, 10, 8, 3) + chunk(b"PLTE", b"\xff" * 768),
    }.items():
        yield f"bomb/png-{name}", PNG_SIGNATURE + header + chunk(b"IDAT", pixels) + end
    whole = png(9, 7, 8, 2)
    ballast = packed_zeros(2**25)
    for kind, content in {
        b"zTXt": b"a\0\0" + ballast,
        b"iTXt": b"a\0\1\0\0\0" + ballast,
        b"iCCP": b"a\0\0" + ballast,
        b"tEXt": b"a\0" + bytes(2**20),
        b"eXIf": b"MM\0*\0\0\0\x08" + b"\xff\xff" * 30_000,
    }.items():
        yield f"bomb/png-{kind.decode()}", whole[:33] + chunk(kind, content) + whole[33:]
        yield f"bomb/png-{kind.decode()}-often", whole[:33] + chunk(kind, content[:2000]) * 1000 + whole[33:]
    data = whole[whole.index(b"IDAT") - 4 : -12]
    yield "bomb/png-empty-chunks", whole[:33] + chunk(b"IDAT", b"") * 100_000 + whole[33:]
    yield (
        "bomb/png-pixels-byte-by-byte",
        whole[:33] + b"".join(chunk(b"IDAT", data[8 + i : 9 + i]) for i in range(len(data) - 12)) + end,
    )
    yield "bomb/png-unknown-chunks", whole[:33] + chunk(b"abCd", b"x") * 100_000 + whole[33:]
    yield "bomb/png-many-palettes", whole[:33] + chunk(b"PLTE", bytes(768)) * 1000 + whole[33:]
    frame = chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 9, 7, 0, 0, 1, 1, 0, 0))
    control = chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))
    yield "bomb/png-frames", whole[:33] + control + frame * 10_000 + whole[33:]
    yield "bomb/gif-frames", _gif_of_frames(3000)
    yield "bomb/gif-comments", _gif_of_frames(1, b"!\xfe\x01x\0" * 50_000)
    yield "bomb/gif-control-blocks", _gif_of_frames(1, b"!\xf9\x04\0\0\0\0\0" * 50_000)
    yield "bomb/gif-small-screen", claiming("gif", saved(Image.new("P", (2000, 2000)), "GIF"), 1, 1)
    yield "bomb/gif-2000x2000", saved(Image.new("P", (2000, 2000)), "GIF")
    yield "bomb/gif-endless-codes", _gif_codes(b"\xff" * 100_000)
    jpeg = saved(Image.new("RGB", (48, 32), (10, 200, 90)), "JPEG", progressive=True)
    scan = jpeg.rindex(b"\xff\xda")
    for count in (99, 101, 20_000):
        yield f"bomb/jpeg-{count}-scans", jpeg[:scan] + jpeg[scan:-2] * count + b"\xff\xd9"
    for marker in (0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xDB, 0xC4, 0xDD):
        segment = bytes([0xFF, marker]) + b"\0\x10Exif\0\0MM\0*\0\0\0\x08"
        yield f"bomb/jpeg-segments-{marker:x}", jpeg[:2] + segment * 5000 + jpeg[2:]
        yield (
            f"bomb/jpeg-long-segment-{marker:x}",
            jpeg[:2] + bytes([0xFF, marker]) + b"\xff\xff" + bytes(65533) + jpeg[2:],
        )
    yield "bomb/jpeg-filler", b"\xff\xd8" + b"\xff" * 1_000_000
    yield "bomb/jpeg-restarts", jpeg[:-2] + b"\xff\xd0" * 100_000 + b"\xff\xd9"
    yield "bomb/jpeg-3000x3000", saved(Image.new("RGB", (3000, 3000)), "JPEG", progressive=True)
    yield "bomb/webp-3500x3000", saved(Image.new("RGB", (3500, 3000)), "WEBP", lossless=True, quality=0, method=0)
    yield "bomb/webp-3000x3000", saved(Image.new("RGB", (3000, 3000)), "WEBP", lossless=True, quality=0, method=0)
    turned = [Image.new("RGB", (9, 7), (shade, 0, 0)) for shade in range(200)]
    yield "bomb/webp-frames", saved(turned[0], "WEBP", save_all=True, append_images=turned[1:])
    for name, body in {
        "deltas": b"\0\2\xff\xff" * 50_000,
        "no-lengths": b"\0\0" * 50_000,
        "too-long-runs": b"\xff\7" * 50_000,
        "raw-runs": b"\0\xff" + bytes(255) * 100,
    }.items():
        yield f"bomb/bmp-{name}", run_lengths(9, 7, body)
        yield f"bomb/bmp-large-{name}", run_lengths(4000, 2500, body)
    yield "bomb/bmp-10-megapixels", saved(Image.new("1", (4000, 2500)), "BMP")


def _gif_of_frames(count: int, between: bytes = b"") -> bytes:
    frame = b",\0\0\0\0\x09\0\x07\0\0\x02\x02\x84\x51\0"
    return b"GIF89a\x09\0\x07\0\x80\0\0\0\0\0\xff\xff\xff" + (between + frame) * count + b";"


def _gif_codes(codes: bytes) -> bytes:
    blocks = b"".join(bytes([len(part)]) + part for part in (codes[i : i + 255] for i in range(0, len(codes), 255)))
    return b"GIF89a\xe8\x03\xe8\x03\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xe8\x03\xe8\x03\0\x08" + blocks + b"\0;"


def _structures(files: dict[str, bytes]) -> Files:
    """Headers, chunks and tables that contradict each other."""
    whole = files["png-2-8"]
    ihdr, rest, idat = whole[8:33], whole[33:], whole[33:-12]
    for name, made in {
        "two-headers": PNG_SIGNATURE + ihdr + png_header(1, 1, 8, 0) + rest,
        "no-header": PNG_SIGNATURE + rest,
        "no-pixels": PNG_SIGNATURE + ihdr + whole[-12:],
        "no-end": whole[:-12],
        "pixels-after-the-end": PNG_SIGNATURE + ihdr + whole[-12:] + idat,
        "header-last": PNG_SIGNATURE + rest[:-12] + ihdr + rest[-12:],
        "long-length": PNG_SIGNATURE + ihdr + b"\xff\xff\xff\xff" + rest[4:],
        "wrong-sum": whole[:-13] + bytes([whole[-13] ^ 1]) + whole[-12:],
        "stored-zlib": PNG_SIGNATURE + ihdr + chunk(b"IDAT", b"\x78\x01" + b"\0" * 50) + whole[-12:],
        "preset-dictionary": PNG_SIGNATURE + ihdr + chunk(b"IDAT", b"\x78\xbb" + b"\0" * 50) + whole[-12:],
        "bad-filter": PNG_SIGNATURE + ihdr + chunk(b"IDAT", zlib.compress((b"\7" + bytes(27)) * 7)) + whole[-12:],
        "short-palette": PNG_SIGNATURE + png_header(9, 7, 8, 3) + chunk(b"PLTE", b"abcd") + rest,
        "no-palette": PNG_SIGNATURE + png_header(9, 7, 8, 3) + rest,
        "long-transparency": PNG_SIGNATURE + ihdr + chunk(b"tRNS", bytes(1000)) + rest,
        "empty-transparency": PNG_SIGNATURE + ihdr + chunk(b"tRNS", b"") + rest,
    }.items():
        yield f"structure/png-{name}", made
    deep = png(9, 7, 16, 2)
    bad_rows = chunk(b"IDAT", zlib.compress((b"\7" + bytes(54)) * 7))
    yield "structure/png-16-bad-filter", deep[:33] + bad_rows + deep[-12:]
    yield "structure/png-16-long-transparency", deep[:33] + chunk(b"tRNS", bytes(1000)) + deep[33:]
    bmp = files["bmp-rgb"]
    for size in (0, 12, 16, 39, 52, 56, 64, 108, 124, 2**31):
        yield f"structure/bmp-header-{size}", bmp[:14] + struct.pack("<I", size) + bmp[18:]
    for bits in (0, 1, 2, 3, 4, 8, 16, 32, 64, 65535):
        yield f"structure/bmp-{bits}-bits", bmp[:28] + struct.pack("<H", bits) + bmp[30:]
    for packing in (1, 2, 3, 4, 5, 6, 99):
        yield f"structure/bmp-compression-{packing}", bmp[:30] + struct.pack("<I", packing) + bmp[34:]
    for offset in (0, 13, 53, 249, 250, 2**32 - 1):
        yield f"structure/bmp-pixels-at-{offset}", bmp[:10] + struct.pack("<I", offset) + bmp[14:]
    jpeg = files["jpeg-rgb"]
    frame = jpeg.index(b"\xff\xc0")
    for marker in (0xC1, 0xC2, 0xC3, 0xC5, 0xC9, 0xCB, 0xF7):
        yield f"structure/jpeg-frame-{marker:x}", jpeg[:frame] + bytes([0xFF, marker]) + jpeg[frame + 2 :]
    for components in (0, 1, 2, 4, 255):
        yield f"structure/jpeg-{components}-components", jpeg[: frame + 9] + bytes([components]) + jpeg[frame + 10 :]
    for precision in (0, 1, 12, 16, 255):
        yield f"structure/jpeg-{precision}-bits", jpeg[: frame + 4] + bytes([precision]) + jpeg[frame + 5 :]
    for sampling in (0x00, 0x44, 0x41, 0xFF):
        yield f"structure/jpeg-sampling-{sampling:x}", jpeg[: frame + 11] + bytes([sampling]) + jpeg[frame + 12 :]
    yield "structure/jpeg-no-tables", jpeg[:2] + jpeg[frame:]
    yield "structure/jpeg-only-tables", jpeg[:frame] + b"\xff\xd9"
    yield "structure/jpeg-two-frames", jpeg[:frame] + jpeg[frame : frame + 19] + jpeg[frame:]
    yield "structure/jpeg-ends-at-once", b"\xff\xd8\xff\xd9"
    webp = files["webp-animated"]
    for kind in (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"EXIF", b"XMP "):
        yield f"structure/webp-{kind.decode().strip()}-first", webp[:12] + kind + webp[16:]
    for length in (0, 1, 2**31, 2**32 - 1):
        yield f"structure/webp-riff-{length}", webp[:4] + struct.pack("<I", length) + webp[8:]
        yield f"structure/webp-chunk-{length}", webp[:16] + struct.pack("<I", length) + webp[20:]


def _polyglots(files: dict[str, bytes]) -> Files:
    """Files that are two things at once, and files of other kinds."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(zipfile.ZipInfo("../../evil.py"), "print(1)")  # of the year 1980, whenever it is made
    script, page = b"<?php system($_GET['c']); ?>", b"<html><script>alert(1)</script>"
    for kind in ("png-2-8", "jpeg-rgb", "gif", "webp-lossless", "bmp-rgb"):
        content = files[kind]
        yield f"polyglot/{kind}-and-zip", content + archive.getvalue()
        yield f"polyglot/{kind}-and-php", content + script
        yield f"polyglot/php-and-{kind}", script + content
        yield f"polyglot/html-and-{kind}", page + content
        yield f"polyglot/{kind}-twice", content * 2
        yield f"polyglot/{kind}-gzipped", gzip.compress(content, mtime=0)
        yield f"polyglot/zeros-and-{kind}", bytes(16) + content
        yield f"polyglot/bom-and-{kind}", b"\xef\xbb\xbf" + content
    yield "polyglot/gif-is-javascript", b"GIF89a=1;/*" + files["gif"][11:] + b"*/alert(1)"
    yield "polyglot/bmp-is-javascript", b"BM=1;/*" + files["bmp-rgb"][7:] + b"*/alert(1)"
    yield (
        "polyglot/png-holds-jpeg",
        files["png-2-8"][:33] + chunk(b"tEXt", b"a\0" + files["jpeg-rgb"]) + files["png-2-8"][33:],
    )
    yield (
        "polyglot/jpeg-holds-png",
        files["jpeg-rgb"][:2] + b"\xff\xfe" + struct.pack(">H", 98) + files["png-2-8"] + files["jpeg-rgb"][2:],
    )
    grey = Image.fromarray(stripes("abc"))
    for file_format in ("TIFF", "ICO", "PPM", "TGA", "PCX", "SGI", "DDS", "JPEG2000", "EPS", "PDF", "MSP"):
        picture = grey.convert("1") if file_format == "MSP" else grey.convert("RGB" if file_format == "EPS" else "L")
        yield f"other/{file_format}", _without_dates(picture, file_format)
    entity = b'<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg">&e;</svg>'
    array = io.BytesIO()
    np.save(array, np.arange(9))
    for name, content in {
        "svg": entity,
        "html": page,
        "php": script,
        "zip": archive.getvalue(),
        "pickle": pickle.dumps({"a": (1, 2)}, protocol=4),
        "npy": array.getvalue(),
        "elf": b"\x7fELF\2\1\1" + bytes(57),
        "avif": b"\0\0\0\x1cftypavif" + bytes(40),
        "heic": b"\0\0\0\x18ftypheic" + bytes(40),
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n",
        "magick": b"push graphic-context\nfill 'url(https://127.0.0.1/\"|id\")'\npop graphic-context",
        "empty": b"",
        "one-zero": b"\0",
        "zeros": bytes(100_000),
        "riff-wave": b"RIFF$\0\0\0WAVEfmt " + bytes(28),
    }.items():
        yield f"other/{name}", content


def _without_dates(picture: Image.Image, file_format: str) -> bytes:
    """Return the file; a PDF would hold the time at which it was made."""
    if file_format == "PDF":
        return b"%PDF-1.7\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
    return saved(picture, file_format)


def _noise() -> Files:
    starts = {
        "png": PNG_SIGNATURE + png_header(9, 7, 8, 2),
        "jpeg": b"\xff\xd8\xff\xe0\0\x10JFIF\0",
        "gif": b"GIF89a\x09\0\x07\0\xf7\0\0",
        "webp": b"RIFF\0\1\0\0WEBPVP8 ",
        "bmp": b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0",
    }
    rng = random.Random(SEED + 2)
    for kind, start in starts.items():
        for length in (10, 300, 5000, 100_000):
            yield f"noise/{kind}-{length}", start + rng.randbytes(length)
