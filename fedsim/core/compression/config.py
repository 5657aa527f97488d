"""Schema of the section ``compression``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from fedsim.core.compression.codec import CODECS, Codec
from fedsim.core.compression.message import zstd_is_there
from fedsim.core.registry import known_name
from fedsim.core.schema import Schema
from fedsim.core.uses import Use, Uses


class CodecConfig(Schema):
    """How vectors travel one way."""

    kind: Annotated[str, known_name("fedsim.core.compression.codec:CODECS")] = "none"
    """none (as they are), float16 or bfloat16 (rounded to 16 bits), int8 or int4 (integers with one scale a ``block``, rounded
    up or down at random, so that they are right in the mean), top_k (the largest entries), random_k (entries drawn at random),
    sign (signs, with one magnitude a ``block``), or one of a plug-in. What travels are changes: of the prompt in local
    training, or since the last broadcast."""
    share: float = Field(default=0.1, gt=0.0, le=1.0)
    """top_k, random_k: share of the entries that are sent, rounded up to a whole number of them."""
    block: PositiveInt | Literal["layer"] = 256
    """int8, int4, sign: entries that have one scale of 4 bytes; layer: each array of a layer, and of the head."""

    uses: ClassVar[Uses] = {
        "share": (Use("kind", ("top_k", "random_k")),),
        "block": (Use("kind", ("int8", "int4", "sign")),),
    }

    def codec(self, params: object = None) -> Codec:
        """Return the codec."""
        return CODECS[self.kind].of(self, params)


class CompressionConfig(Schema):
    """What devices and server send each other is compressed; see docs/compression.md."""

    up: CodecConfig = CodecConfig()
    """From devices to the server: changes P_i - P_t, and what corrections send besides."""
    down: CodecConfig = CodecConfig()
    """From the server to devices: changes since the last broadcast. What it loses it adds to the next one."""
    error_feedback: bool | None = None
    """Devices keep what ``up`` loses and add it to their next change. If not given, they do so with top_k, random_k and sign,
    which send less than there is, and not with the others, whose errors are zero in the mean or nearly so."""
    lossless: Literal["none", "zstd"] = "none"
    """zstd: shorten the messages of both ways, where that makes them shorter."""

    uses: ClassVar[Uses] = {
        "error_feedback": (
            Use("up.kind", test=lambda kind: kind != "none", words="it is for kinds that lose something on the way up"),
        )
    }

    @field_validator("lossless")
    @classmethod
    def _can_shorten(cls, name: str) -> str:
        if name == "zstd" and not zstd_is_there():
            raise ValueError("this build of pyarrow has no zstd; install pyarrow from its wheels, or use lossless=none")
        return name

    @property
    def zstd(self) -> bool:
        """Whether messages are shortened."""
        return self.lossless == "zstd"
