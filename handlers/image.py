"""Images: raw pixels, or PNG and JPEG files, which become pixels of the size that the program takes."""

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from handlers.answer import Call
from handlers.base import Array, Item
from handlers.errors import InvalidRequest, Words, shown
from handlers.inputs import by_name, joined
from handlers.kinds import ImageSchema
from handlers.named import NamedOutputs
from handlers.protocol import rows
from handlers.protocol.oip_json import parse
from handlers.tensors import InferRequest, Tensor

SMALL = 16
"""Pixels of a side of the grey pictures whose distribution is watched."""
MAX_PIXELS = 50_000_000
"""Of an image as it comes: a few bytes of PNG may unpack to gigabytes."""

FORMATS = ("PNG", "JPEG")
IMAGE_TYPES = ("image/png", "image/jpeg")
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")
"""What files of these formats begin with; no JSON does."""
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr")
"""Pillow's names for at most 8 bits a channel; it cuts off what others hold beyond them."""


class ImageHandler(NamedOutputs):
    """Serves a classifier of images by its `schema.json`.

    Files of another size are stretched to the program's; colours become grey, or grey colours, as the program wants.
    """

    schema: ImageSchema
    max_rows = 32
    numbers = ("brightness",)

    def load(self) -> None:
        self.schema = ImageSchema.from_json((self.directory / "schema.json").read_bytes())
        self.output_names = self.schema.output_names
        self.classes = self.schema.classes
        self._pick = rows.picker((self.schema.input,))
        self._shrink_rows, self._shrink_columns = averaging(self.schema.height), averaging(self.schema.width).T

    def read(self, request: InferRequest) -> tuple[Array, int]:
        (tensor,), count = by_name(request, (self.schema.input,))
        return self._read_files(tensor) if tensor.datatype == "BYTES" else self._read_pixels(tensor), count

    def _read_pixels(self, tensor: Tensor) -> Array:
        field, shape = f"input {shown(tensor.name)}", self.schema.shape
        if tensor.datatype != "UINT8":
            allowed = "UINT8, or BYTES of PNG or JPEG files"
            raise InvalidRequest(field, "wrong datatype", found=tensor.datatype, allowed=allowed)
        if tensor.shape[1:] != shape:
            found = Words(str(list(tensor.shape)))
            raise InvalidRequest(field, "wrong shape", found=found, allowed=f"[rows, {', '.join(map(str, shape))}]")
        return np.asarray(tensor.values).reshape(tensor.shape)

    def _read_files(self, tensor: Tensor) -> Array:
        if tensor.shape[1:] not in ((), (1,)):
            found = Words(str(list(tensor.shape)))
            raise InvalidRequest(f"input {shown(tensor.name)}", "wrong shape", found=found, allowed="[rows]")
        return self._decoded([(value,) for value in tensor.values])

    def read_plain(self, call: Call) -> tuple[Array, int, bool]:
        """One image file as it is, or JSON of files in base64."""
        call.check_content_type((*rows.CONTENT_TYPES, *IMAGE_TYPES))
        if call.content_type.startswith(IMAGE_TYPES) or bytes(call.body[:8]).startswith(_SIGNATURES):
            pixels = decode(call.body, "body", self.schema)
            return pixels[np.newaxis], 1, True
        found, single = self._pick(parse(call.body))
        return self._decoded(found), len(found), single

    def plain_tensors(self, data: Array) -> list[Tensor]:
        """The pixels, also of files: those are larger unpacked, and answered alike."""
        return [Tensor(self.schema.input, "UINT8", data.shape, data.reshape(-1))]

    def _decoded(self, files: Sequence[tuple[Any]]) -> Array:
        """Pixels of files, which are bytes, or text in base64; [n, channels, height, width]."""
        field = f"input {shown(self.schema.input)}"
        return np.stack(rows.each(files, lambda row: decode(from_base64(row[0], field), field, self.schema)))

    def check(self, items: list[Item]) -> list[Array]:
        # All was checked as it was read: no value depends on another request.
        return [joined([item.data for item in items])]

    def described(self, inputs: list[Array]) -> tuple[Array, Array]:
        """The mean of all pixels, and small grey pictures."""
        (images,) = inputs
        grey = np.add.reduce(images, axis=1, dtype=np.float32) / images.shape[1]
        small = (self._shrink_rows @ grey @ self._shrink_columns).reshape(len(images), -1)
        return small.mean(axis=1, keepdims=True), small


def averaging(pixels: int) -> npt.NDArray[np.float32]:
    """Means of as many neighbours as leave at most SMALL of a row of pixels: what to multiply it by, [left, pixels].

    A pixel that lies on both sides of a border counts on each by its part.
    """
    left = min(pixels, SMALL)
    borders = np.linspace(0, pixels, left + 1)[:, np.newaxis]
    ends = np.minimum(np.arange(1, pixels + 1), borders[1:])
    starts = np.maximum(np.arange(pixels), borders[:-1])
    return np.asarray(np.maximum(ends - starts, 0) * left / pixels, dtype=np.float32)


def from_base64(value: object, field: str) -> bytes:
    """The bytes of a file: as they came raw, or as JSON has to write them. Raises InvalidRequest."""
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise InvalidRequest(field, "wrong type", found=value, allowed="a string: a PNG or JPEG file in base64")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidRequest(
            field, f"not base64: {error}", found=value, allowed="a PNG or JPEG file in base64"
        ) from None


def decode(file: bytes | memoryview, field: str, schema: ImageSchema) -> Array:
    """The pixels of a PNG or JPEG file as the program takes them, uint8 [channels, height, width].

    Raises InvalidRequest for a file that is none, is damaged, or has too many pixels or bits.
    """
    found = Words(f"{len(file)} bytes")
    try:
        with Image.open(io.BytesIO(file), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(field, f"{image.width} x {image.height} pixels")
            if image.mode not in _MODES:
                raise InvalidRequest(field, "wrong mode", found=image.mode, allowed=", ".join(_MODES))
            return _fitted(image, schema)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(field, "more still") from None
    except UnidentifiedImageError:
        raise InvalidRequest(field, "not a PNG or JPEG file", found=found, allowed="a PNG or JPEG file") from None
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for a file that is damaged
        raise InvalidRequest(field, f"a damaged image: {error}", found=found, allowed="a whole file") from None


def _fitted(image: Image.Image, schema: ImageSchema) -> Array:
    coloured = image.convert("L" if schema.channels == 1 else "RGB")
    size = (schema.width, schema.height)
    if coloured.size != size:
        coloured = coloured.resize(size, Image.Resampling.BILINEAR)
    pixels = np.asarray(coloured)  # [height, width], with colours [height, width, 3]
    return pixels[np.newaxis] if schema.channels == 1 else pixels.transpose(2, 0, 1)


def _too_large(field: str, found: str) -> InvalidRequest:
    return InvalidRequest(field, "an image too large", found=Words(found), allowed=f"at most {MAX_PIXELS:,} pixels")
