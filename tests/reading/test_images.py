import contextlib
import io
import os
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps

from captcha.reading import images, limits
from captcha.reading.images import ImageError, decode_image, image_format, load_image, resize_to_height, stack

# The oracle: Pillow writes and reads the same pictures.


def _picture() -> Image.Image:
    """Smooth colours, with a band that is transparent, one that is opaque and one in between."""
    rows, columns = np.mgrid[0:30, 0:41]
    alpha = np.where(rows < 10, 0, np.where(rows < 20, 255, columns * 6))
    return Image.fromarray(np.dstack([rows * 8, columns * 6, 255 - rows * 4, alpha]).astype(np.uint8))


RGBA = _picture()
RGB = RGBA.convert("RGB")
GREY = RGB.convert("L")
PALETTE = RGB.quantize(16)
GREY_16 = Image.fromarray(np.asarray(GREY).astype(np.uint16) * 257)


def _saved(image: Image.Image, file_format: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def _png(width: int, height: int, depth: int, colour_type: int, rows: bytes, transparent: bytes = b"") -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0))
    transparency = chunk(b"tRNS", transparent) if transparent else b""
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + header + transparency + pixels + chunk(b"IEND", b"")


def _bmp(bits: int, compression: int, body: bytes, palette: bytes = b"", height: int = 30, width: int = 41) -> bytes:
    start = 54 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, len(palette) // 4, 0)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + info + palette + body


def _small_frame_gif() -> bytes:
    """A GIF whose frame covers a part of its screen only."""
    data = bytearray(_saved(PALETTE.crop((0, 0, 20, 10)), "GIF", transparency=3))
    frame = data.index(0x2C, 13 + 3 * 2 ** ((data[10] & 7) + 1))
    data[6:10] = struct.pack("<HH", 41, 30)
    data[frame + 1 : frame + 5] = struct.pack("<HH", 5, 7)
    return bytes(data)


def _ycck_jpeg() -> bytes:
    data = bytearray(_saved(RGB.convert("CMYK"), "JPEG"))
    data[data.index(b"Adobe") + 11] = 2  # the transform: YCCK
    return bytes(data)


FILES = {
    "png_rgb": _saved(RGB, "PNG"),
    "png_rgba": _saved(RGBA, "PNG"),
    "png_grey": _saved(GREY, "PNG"),
    "png_grey_alpha": _saved(Image.merge("LA", [GREY, RGBA.getchannel("A")]), "PNG"),
    "png_black_and_white": _saved(GREY.convert("1"), "PNG"),
    "png_palette": _saved(PALETTE, "PNG"),
    "png_palette_two_bits": _saved(RGB.quantize(4), "PNG", bits=2),
    "png_palette_transparent": _saved(PALETTE, "PNG", transparency=3),
    "png_palette_translucent": _saved(PALETTE, "PNG", transparency=bytes([0, 50, 100, 255] * 4)),
    "png_grey_transparent": _saved(GREY, "PNG", transparency=GREY.getpixel((20, 15))),
    "png_rgb_transparent": _saved(RGB, "PNG", transparency=RGB.getpixel((20, 15))),
    "png_animated": _saved(RGBA, "PNG", save_all=True, append_images=[RGBA.rotate(180)]),
    "png_with_profile": _saved(RGB, "PNG", icc_profile=b"no profile at all"),
    "jpeg_rgb": _saved(RGB, "JPEG"),
    "jpeg_grey": _saved(GREY, "JPEG"),
    "jpeg_progressive": _saved(RGB, "JPEG", progressive=True),
    "jpeg_full_chroma": _saved(RGB, "JPEG", subsampling=0),
    "jpeg_restarts": _saved(RGB, "JPEG", restart_marker_blocks=1),
    "jpeg_several": _saved(RGB, "MPO", save_all=True, append_images=[RGB.rotate(180)]),
    "jpeg_cmyk": _saved(RGB.convert("CMYK"), "JPEG"),
    "jpeg_ycck": _ycck_jpeg(),
    "gif_palette": _saved(PALETTE, "GIF"),
    "gif_transparent": _saved(PALETTE, "GIF", transparency=3),
    "gif_interlaced": _saved(PALETTE, "GIF", interlace=1),
    "gif_animated": _saved(PALETTE, "GIF", save_all=True, append_images=[PALETTE.rotate(180)]),
    "gif_small_frame": _small_frame_gif(),
    "webp_lossy": _saved(RGB, "WEBP"),
    "webp_lossless": _saved(RGB, "WEBP", lossless=True),
    "webp_lossy_alpha": _saved(RGBA, "WEBP"),
    "webp_lossless_alpha": _saved(RGBA, "WEBP", lossless=True, exact=True),
    "webp_animated": _saved(RGB, "WEBP", lossless=True, save_all=True, append_images=[RGB.rotate(180)]),
    "bmp_rgb": _saved(RGB, "BMP"),
    "bmp_grey": _saved(GREY, "BMP"),
    "bmp_black_and_white": _saved(GREY.convert("1"), "BMP"),
    "bmp_palette": _saved(PALETTE, "BMP"),
    "bmp_32_bits": _saved(RGBA, "BMP"),
    "bmp_top_down": _bmp(24, 0, b"".join(bytes(row) + b"\0" for row in np.asarray(RGB)), height=-30),
    "bmp_run_lengths": _bmp(8, 1, b"".join(bytes([20, i, 21, i * 7, 0, 0]) for i in range(30)) + b"\0\1", bytes(1024)),
}


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    ground = Image.new("RGBA", image.size, "white")
    ground.alpha_composite(image.convert("RGBA"))
    return np.asarray(ground.convert("RGB"))


def _difference(got: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> int:
    assert got.shape == wanted.shape
    assert got.dtype == np.uint8
    return int(np.abs(got.astype(int) - wanted).max())


@pytest.mark.parametrize("name", FILES)
def test_decodes_to_the_pixels_that_pillow_reads(name: str) -> None:
    wanted = _on_white(Image.open(io.BytesIO(FILES[name])))
    assert _difference(decode_image(FILES[name]), wanted) <= (1 if "cmyk" in name or "ycck" in name else 0)


DEEP = {
    f"png_16_bits_{colour_type}": _png(
        41,
        30,
        16,
        colour_type,
        b"".join(b"\0" + bytes(range(row, row + 82 * samples)[:82]) * samples for row in range(30)),
    )
    for colour_type, samples in ((0, 1), (2, 3), (4, 2), (6, 4))
}


@pytest.mark.parametrize("name", [*FILES, *DEEP])
def test_an_image_in_many_strips_is_the_image_in_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (FILES | DEEP)[name]
    whole = decode_image(data)
    for pixels in (1, 100, 1200):
        monkeypatch.setattr(images, "PIXELS_AT_ONCE", pixels)
        assert np.array_equal(decode_image(data), whole)
        assert np.array_equal(load_image(Image.open(io.BytesIO(data))), load_image(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("name", FILES)
def test_the_content_tells_the_format(name: str) -> None:
    assert image_format(FILES[name]).lower() == name.split("_")[0]
    assert decode_image(FILES[name]).shape == (30, 41, 3)


def test_sixteen_bits_become_eight() -> None:
    grey = np.asarray(GREY)
    assert _difference(decode_image(_saved(GREY_16, "PNG")), np.dstack([grey] * 3)) == 0


def test_sixteen_bits_are_rounded() -> None:
    values = np.linspace(0, 65535, 97).astype(">u2")
    got = decode_image(_png(97, 1, 16, 0, b"\0" + values.tobytes()))
    assert np.array_equal(got[0, :, 0], np.rint(values / 257))


# Samples for each pixel by colour type: grey and alpha, RGB, RGB and alpha.
@pytest.mark.parametrize(("colour_type", "channels"), [(4, [0, 0, 0, 1]), (2, [0, 1, 2]), (6, [0, 1, 2, 3])])
def test_sixteen_bits_of_a_colour_are_rounded_too(colour_type: int, channels: list[int]) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (97, 1 + max(channels)), dtype=np.uint16)
    got = decode_image(_png(97, 1, 16, colour_type, b"\0" + samples.astype(">u2").tobytes()))
    rounded = np.rint(samples[:, channels] / 257).astype(np.uint8)[None]
    wanted = rounded if len(channels) == 3 else _on_white(Image.fromarray(rounded))
    assert np.array_equal(got, wanted)


def test_the_transparent_colour_of_sixteen_bits_turns_white() -> None:
    samples = np.array([[1, 2, 3], [1, 2, 4]], ">u2")
    got = decode_image(_png(2, 1, 16, 2, b"\0" + samples.tobytes(), transparent=samples[0].tobytes()))
    assert got.tolist() == [[[255, 255, 255], [0, 0, 0]]]


@pytest.mark.parametrize(("depth", "value"), [(1, 1), (2, 2), (4, 9), (8, 200), (16, 51400)])
def test_the_transparent_value_of_a_grey_png_turns_white(depth: int, value: int) -> None:
    columns = 16
    samples = [value if column % 3 == 0 else 0 for column in range(columns)]
    bits = "".join(f"{sample:0{depth}b}" for sample in samples)
    row = b"\0" + int(bits, 2).to_bytes(columns * depth // 8, "big")
    got = decode_image(_png(columns, 1, depth, 0, row, transparent=struct.pack(">H", value)))
    assert got[0, :, 0].tolist() == [255 if column % 3 == 0 else 0 for column in range(columns)]


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_exif_orientation_is_applied(file_format: str, orientation: int, order: str) -> None:
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    exif = mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    data = _saved(RGB, file_format, exif=(b"Exif\0\0" if file_format == "JPEG" else b"") + exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert _difference(decode_image(data), np.asarray(upright.convert("RGB"))) == 0


@pytest.mark.parametrize("exif", [b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff", b"nothing"])
def test_damaged_exif_is_no_reason_to_refuse(exif: bytes) -> None:
    assert _difference(decode_image(_saved(RGB, "JPEG", exif=b"Exif\0\0" + exif)), decode_image(FILES["jpeg_rgb"])) == 0


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_refused_wherever_it_is_cut(name: str) -> None:
    data = FILES[name]
    whole = decode_image(data)
    for length in range(len(data)):
        try:
            got = decode_image(data[:length])
        except ImageError:
            continue
        # The first picture was all there: what a BMP lacks is the padding of its last row, or the mark of its end.
        assert "gif" in name or "several" in name or "bmp" in name, f"read from {length} of {len(data)} bytes"
        assert np.array_equal(got, whole)


@pytest.mark.parametrize("name", ["png_rgb", "jpeg_rgb", "gif_palette", "webp_lossy", "webp_lossless", "bmp_rgb"])
def test_half_a_file_is_called_truncated(name: str) -> None:
    with pytest.raises(ImageError, match="the image is truncated"):
        decode_image(FILES[name][: len(FILES[name]) // 2])


def test_later_frames_of_a_gif_are_not_looked_at() -> None:
    whole = FILES["gif_animated"]
    assert np.array_equal(decode_image(whole[:-20] + b"no frame"), decode_image(whole))


@pytest.mark.parametrize("data", [b"", b"\0", b"hello", b"<svg/>", b"%PDF-1.7", b"\0\0\0\x18ftypavif"])
def test_what_is_no_image_is_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"\A(the file is empty|not an image: .*)\Z"):
        decode_image(data)


def test_other_formats_are_refused_though_opencv_reads_them() -> None:
    with pytest.raises(ImageError, match="not an image: no PNG, JPEG, WebP, BMP or GIF"):
        decode_image(_saved(RGB, "TIFF"))


def test_a_bmp_of_os_2_is_read_though_opencv_reads_it_wrongly() -> None:
    rows = np.asarray(RGB)[::-1, :, ::-1]
    body = b"".join(row.tobytes() + b"\0" for row in rows)
    data = b"BM" + struct.pack("<IHHIIHHHH", 26 + len(body), 0, 0, 26, 12, 41, 30, 1, 24) + body
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(RGB))
    assert np.array_equal(decode_image(data), np.asarray(RGB))


def _claiming(name: str, width: int, height: int) -> bytes:
    """A file whose header says another size than it has."""
    data = bytearray(FILES[name])
    if name.startswith("png"):
        data[16:24] = struct.pack(">II", width, height)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    elif name.startswith("jpeg"):
        frame = data.index(b"\xff\xc0")
        data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    elif name.startswith("gif"):
        data[6:10] = struct.pack("<HH", width, height)
    elif name == "webp_lossy":
        data[26:30] = struct.pack("<HH", width, height)
    elif name == "webp_lossless":
        data[21:25] = struct.pack("<I", (width - 1) | (height - 1) << 14)
    elif name == "webp_animated":
        data[24:30] = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    else:
        data[18:26] = struct.pack("<ii", width, height)
    return bytes(data)


def _forbid_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    for reader in ("ImageFile.ImageFile", "WebPImagePlugin.WebPImageFile"):
        monkeypatch.setattr(f"PIL.{reader}.load", lambda *_: pytest.fail("it was decoded"))
    monkeypatch.setattr("cv2.imdecode", lambda *_: pytest.fail("it was decoded"))


KINDS = ["png_rgb", "jpeg_rgb", "gif_palette", "webp_lossy", "webp_lossless", "webp_animated", "bmp_run_lengths"]


@pytest.mark.parametrize("name", KINDS)
def test_too_many_pixels_are_refused_before_decoding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _forbid_decoding(monkeypatch)
    with pytest.raises(ImageError, match=r"the image has 5000 x 2001 pixels, more than the 10 megapixels allowed"):
        decode_image(_claiming(name, 5000, 2001))


@pytest.mark.parametrize("name", KINDS)
def test_a_line_of_pixels_is_refused_before_decoding(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _forbid_decoding(monkeypatch)
    with pytest.raises(ImageError, match="one side is more than 100 times the other"):
        decode_image(_claiming(name, 10, 1001))


@pytest.mark.parametrize("name", ["png_rgb", "jpeg_rgb", "gif_palette", "bmp_rgb"])
def test_no_pixels_are_refused(name: str) -> None:
    with pytest.raises(ImageError):
        decode_image(_claiming(name, 0, 30))


def test_ten_megabytes_are_read_and_one_byte_more_is_not() -> None:
    data = FILES["png_rgb"] + bytes(limits.MAX_BYTES - len(FILES["png_rgb"]))
    assert decode_image(data).shape == (30, 41, 3)
    with pytest.raises(ImageError, match=r"more than the 10 MB allowed"):
        decode_image(data + b"\0")


def test_ten_megapixels_are_read() -> None:
    assert decode_image(_saved(Image.new("L", (5000, 2000)), "PNG")).shape == (2000, 5000, 3)


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = FILES["jpeg_progressive"]
    scan = data.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="more than 100 scans"):
        decode_image(data[:scan] + data[scan:-2] * 101 + b"\xff\xd9")


def test_a_jpeg_of_endless_segments_is_refused() -> None:
    data = FILES["jpeg_rgb"]
    segment = b"\xff\xe1\x00\x09Exif\0\0x"
    assert np.array_equal(decode_image(data[:2] + segment * 900 + data[2:]), decode_image(data))
    with pytest.raises(ImageError, match="more than 1000 segments"):  # with Pillow, 10 MB of them take 15 s
        decode_image(data[:2] + segment * 1001 + data[2:])


def test_colour_profiles_of_a_png_are_not_unpacked() -> None:
    profile = b"a\0\0" + zlib.compress(bytes(2**21))  # Pillow refuses one of 2 MB, and would unpack smaller ones
    chunk = struct.pack(">I", len(profile)) + b"iCCP" + profile + struct.pack(">I", zlib.crc32(b"iCCP" + profile))
    data = FILES["png_rgb"]
    assert np.array_equal(decode_image(data[:33] + chunk * 100 + data[33:]), decode_image(data))


def test_a_long_run_of_filler_bytes_is_no_trap() -> None:
    with pytest.raises(ImageError, match="truncated"):  # with a quadratic parser this takes hours
        decode_image(b"\xff\xd8" + b"\xff" * 2_000_000 + b"\0")


def test_a_wrong_check_sum_is_damage() -> None:
    data = bytearray(FILES["png_rgb"])
    data[60] ^= 1
    with pytest.raises(ImageError, match="damaged"):
        decode_image(bytes(data))


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 99),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    mode=st.sampled_from(["1", "L", "P", "RGB", "RGBA"]),
    file_format=st.sampled_from(["PNG", "JPEG", "WEBP", "BMP", "GIF"]),
    kept=st.floats(0, 1, exclude_max=True),
)
def test_no_part_of_a_file_gives_other_pixels_than_the_whole(
    seed: int, size: tuple[int, int], mode: str, file_format: str, kept: float
) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 4), dtype=np.uint8)
    picture = Image.fromarray(noise)
    picture = picture.convert("RGB" if file_format == "JPEG" else mode)
    data = _saved(picture, file_format)
    with contextlib.suppress(ImageError):
        assert np.array_equal(decode_image(data[: int(kept * len(data))]), decode_image(data))


@settings(max_examples=150, deadline=None)
@given(start=st.sampled_from([b"", *sorted({data[:30] for data in FILES.values()})]), rest=st.binary(max_size=300))
def test_arbitrary_bytes_give_an_image_or_an_image_error(start: bytes, rest: bytes) -> None:
    _image_or_error(start + rest)


@settings(max_examples=250, deadline=None)
@given(
    data=st.sampled_from(sorted(FILES.values())),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4),
    near_the_start=st.booleans(),
)
def test_damaged_files_give_an_image_or_an_image_error(
    data: bytes, changes: list[tuple[float, int]], near_the_start: bool
) -> None:
    damaged = bytearray(data)
    for share, value in changes:
        damaged[int(share * min(len(data), 64 if near_the_start else len(data)))] = value
    _image_or_error(bytes(damaged))


def _image_or_error(data: bytes) -> None:
    try:
        image = decode_image(data)
    except ImageError as error:
        lines = str(error).splitlines()
    else:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3
        return
    assert len(lines) == 1


@pytest.mark.parametrize("name", ["png_rgb", "png_with_profile", "jpeg_rgb", "gif_palette", "webp_lossy", "bmp_rgb"])
def test_bad_files_leave_no_native_chatter_on_stderr(name: str, tmp_path: Path) -> None:
    (tmp_path / "image").write_bytes(FILES[name])
    script = """
        import sys
        from captcha.reading.images import ImageError, decode_image
        data = open("image", "rb").read()
        decode_image(data)
        bad_files = [data[:-1], data[: len(data) // 2], data[:30]]
        if data[1:4] == b"PNG":
            bad_files.append(data[:-20] + bytes([data[-20] ^ 1]) + data[-19:])
        if data[:3] == b"GIF":
            bad_files.append(data[:6] + bytes([9, 0]) + data[8:])  # a screen narrower than its frame
        for bad in bad_files:
            try:
                decode_image(bad)
            except ImageError:
                pass
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(images.__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_path_bytes_an_array_and_a_pil_image_give_the_same_image(tmp_path: Path) -> None:
    data = FILES["png_rgba"]
    path = tmp_path / "not what its name says.jpg"
    path.write_bytes(data)
    wanted = _on_white(RGBA)
    for source in (path, str(path), data, wanted, RGBA):
        assert np.array_equal(load_image(source), wanted)
    with Image.open(path) as opened:
        assert np.array_equal(load_image(opened), wanted)


def test_a_grey_array_and_one_with_alpha_are_read_as_their_pil_images() -> None:
    for picture in (GREY, RGBA):
        assert np.array_equal(load_image(np.asarray(picture)), _on_white(picture))
        assert np.array_equal(load_image(np.asarray(picture)[:, ::-1]), _on_white(picture)[:, ::-1])


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"])
def test_a_pil_image_of_any_mode_is_read_on_white(mode: str) -> None:
    picture = (
        RGBA.convert("P").convert("PA") if mode == "PA" else RGB.convert(mode) if mode == "HSV" else RGBA.convert(mode)
    )
    assert _difference(load_image(picture), _on_white(picture)) == 0


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B"])
def test_a_pil_image_of_sixteen_bits_is_scaled(mode: str) -> None:
    values = np.linspace(0, 65535, 97).astype(">u2" if mode == "I;16B" else "<u2")[None]
    picture = Image.frombytes(mode, (97, 1), values.tobytes())
    assert np.array_equal(load_image(picture)[0, :, 0], np.rint(values[0] / 257))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_pil_image_is_made_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = Image.open(io.BytesIO(_saved(RGB, "PNG", exif=exif)))
    assert np.array_equal(load_image(opened), np.asarray(ImageOps.exif_transpose(opened)))


def test_the_file_of_a_bad_image_is_named(tmp_path: Path) -> None:
    missing, text, folder = tmp_path / "missing.png", tmp_path / "text.png", tmp_path / "a\nb"
    text.write_text("hello")
    folder.mkdir()
    for path, problem in (
        (missing, f"{missing}: cannot be read: No such file or directory"),
        (str(text), f"{text}: not an image: no PNG, JPEG, WebP, BMP or GIF"),
        (folder, f"{str(folder)!r}: cannot be read: Is a directory"),
        ("a\0b", r"'a\x00b': cannot be read: no file can have this name"),
    ):
        with pytest.raises(ImageError) as caught:
            load_image(path)
        assert str(caught.value) == problem


@pytest.mark.parametrize(
    ("source", "given"),
    [
        (np.zeros(30, np.uint8), "an array (30,) of uint8"),
        (np.zeros((2, 30, 41, 3), np.uint8), "an array (2, 30, 41, 3) of uint8"),
        (np.zeros((30, 41, 2), np.uint8), "an array (30, 41, 2) of uint8"),
        (np.zeros((0, 41, 3), np.uint8), "an array (0, 41, 3) of uint8"),
        (np.zeros((30, 41, 3)), "an array (30, 41, 3) of float64"),
        (np.zeros((30, 41), bool), "an array (30, 41) of bool"),
        (None, "NoneType"),
        (5, "int"),
        ([b""], "list"),
    ],
)
def test_what_is_no_image_source_is_refused_with_what_is_taken(source: Any, given: str) -> None:
    taken = "give a path, the bytes of an image file, an array (H, W), (H, W, 3) or (H, W, 4) of uint8, or a PIL image"
    with pytest.raises(ImageError) as caught:
        load_image(source)
    assert str(caught.value) == f"{given} is no image that can be read: {taken}"


def test_the_limits_hold_for_arrays_and_pil_images() -> None:
    for pixels, limit in (
        (Image.new("RGB", (5000, 2001)), "10 megapixels"),
        (Image.new("RGB", (1001, 10)), "100 times"),
    ):
        for source in (pixels, np.asarray(pixels)):
            with pytest.raises(ImageError, match=limit):
                load_image(source)


def test_a_pil_image_whose_file_is_damaged_is_refused_in_one_line() -> None:
    with pytest.raises(ImageError, match=r"\Athe PIL image of mode RGB cannot be read: .*\Z"):
        load_image(Image.open(io.BytesIO(FILES["bmp_rgb"][:1000])))
    with pytest.raises(ImageError, match=r"\Athe PIL image of mode La cannot be read: .*\Z"):
        load_image(Image.new("La", (4, 4)))


Draw = Callable[..., NDArray[np.uint8]]


def test_resizing_keeps_the_aspect_ratio(draw: Draw) -> None:
    assert resize_to_height(draw("abc", width=200, height=50), 64).shape == (64, 256, 3)
    assert resize_to_height(draw("abc", width=300, height=128), 64).shape == (64, 150, 3)


def test_resizing_leaves_at_least_one_column() -> None:
    assert resize_to_height(np.zeros((500, 1, 3), np.uint8), 32).shape == (32, 1, 3)


@pytest.mark.parametrize("height", [16, 64, 128, 160, 250])
def test_what_is_resized_may_be_given_again(height: int) -> None:
    for shape in ((500, 5, 3), (100, 1, 3), (1, 100, 3), (7, 700, 3)):
        load_image(resize_to_height(np.zeros(shape, np.uint8), height))


def test_resizing_to_the_same_height_changes_nothing(draw: Draw) -> None:
    image = draw("abc", width=70, height=48)
    assert np.array_equal(resize_to_height(image, 48), image)


def test_shrinking_takes_the_mean_of_the_pixels() -> None:
    stripes = np.zeros((64, 40, 3), np.uint8)
    stripes[::2] = 200
    assert (resize_to_height(stripes, 32) == 100).all()


@pytest.mark.parametrize("width", [1, 15, 16, 17, 200])
def test_a_frame_covers_four_columns_of_the_padded_image(width: int) -> None:
    assert images.frames(width) == stack([np.zeros((8, width, 3), np.uint8)]).shape[3] / 4


@settings(max_examples=30, deadline=None)
@given(widths=st.lists(st.integers(1, 70), min_size=1, max_size=5), height=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_batch_holds_each_image_and_then_its_last_column(widths: list[int], height: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    singles = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width in widths]
    batch = stack(singles)
    count, channels, rows, columns = batch.shape
    assert (count, channels, rows) == (len(widths), 3, height)
    assert max(widths) <= columns < max(widths) + images.WIDTH_STEP
    assert columns % images.WIDTH_STEP == 0
    for picture, single in zip(batch.transpose(0, 2, 3, 1), singles, strict=True):
        assert np.array_equal(picture[:, : single.shape[1]], single)
        assert (picture[:, single.shape[1] :] == single[:, -1:]).all()


def test_the_modules_of_the_served_model_need_neither_torch_nor_pydantic() -> None:
    script = (
        "import sys, captcha.reading.images; print(sorted({'torch', 'pydantic', 'pandas', 'tqdm'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(images.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_png_with_too_few_rows_or_two_headers_is_refused() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 8, 2, 0, 0, 0))
    row = b"\0" + bytes(range(30))

    def png(rows: int) -> bytes:
        pixels = chunk(b"IDAT", zlib.compress(row * rows))
        return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")

    assert decode_image(png(10)).shape == (10, 10, 3)
    for rows in (0, 5, 9):
        with pytest.raises(ImageError, match="the image is truncated"):
            decode_image(png(rows))


def test_bytes_of_any_kind_are_a_file_and_a_pil_image_without_pixels_or_a_known_white_is_refused() -> None:
    data = _saved(RGB, "PNG")
    for form in (bytearray(data), memoryview(data)):
        assert np.array_equal(load_image(form), np.asarray(RGB))
    for wrong, line in ((Image.new("RGB", (0, 0)), "nothing to read"), (Image.new("I", (8, 8)), "of mode I does not")):
        with pytest.raises(ImageError, match=line):
            load_image(wrong)


def test_a_damaged_png_of_sixteen_bits_says_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    row = bytes(6 * 9)
    with pytest.raises(ImageError, match="damaged"):
        decode_image(_png(9, 3, 16, 2, (b"\7" + row) * 3))  # there is no filter 7
    assert (decode_image(_png(9, 3, 16, 6, (b"\0" + bytes(8 * 9)) * 3, bytes(1000))) == 255).all()
    assert (decode_image(_png(9, 3, 16, 2, (b"\0" + row) * 3, bytes(6))) == 255).all()
    assert capfd.readouterr() == ("", "")
