"""The store that Xet uploads to: the parts of it that a client uses to upload.

Files come as chunks in xorbs, and shards say which chunks make up a file. Formats after the Xet
protocol specification (huggingface.co/docs/xet). Compression must be off in the client
(HF_XET_XORB_COMPRESSION_POLICY=none).
"""

import hashlib
import json
import struct

_HEADER = 48  # bytes of a shard's header, and of every entry of its tables
_BOOKEND = b"\xff" * 32
_WITH_VERIFICATION, _WITH_METADATA = 1 << 31, 1 << 30

Answer = tuple[int, bytes, dict[str, str]]


class Xet:
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files  # SHA-256 -> content, of files that are whole
        self.xorbs: dict[str, list[bytes]] = {}  # hash -> chunks

    def answer(self, method: str, parts: list[str], body: bytes) -> Answer:
        if method == "POST" and parts[:2] == ["v1", "xorbs"]:
            is_new = parts[3] not in self.xorbs
            self.xorbs[parts[3]] = _chunks(body)
            return _json({"was_inserted": is_new})
        if method == "POST" and parts == ["v1", "shards"]:
            self._add_files(body)
            return _json({"result": 1})
        return 404, b"{}", {}

    def _add_files(self, shard: bytes) -> None:
        place = _HEADER
        while shard[place : place + 32] != _BOOKEND:
            flags, count = struct.unpack_from("<II", shard, place + 32)
            place += _HEADER
            data = b""
            for _ in range(count):
                xorb = _hash_text(shard[place : place + 32])
                _, _, first, last = struct.unpack_from("<IIII", shard, place + 32)
                data += b"".join(self.xorbs[xorb][first:last])
                place += _HEADER
            if flags & _WITH_VERIFICATION:
                place += count * _HEADER
            if flags & _WITH_METADATA:
                place += _HEADER
            self.files[hashlib.sha256(data).hexdigest()] = data


def _chunks(xorb: bytes) -> list[bytes]:
    """The chunks of a xorb: headers of 8 bytes (version, size, scheme, size), then the data."""
    chunks, place = [], 0
    while place + 8 <= len(xorb) and xorb[place : place + 7] != b"XETBLOB":
        size = int.from_bytes(xorb[place + 1 : place + 4], "little")
        assert xorb[place + 4] == 0, "compressed"
        chunks.append(xorb[place + 8 : place + 8 + size])
        place += 8 + size
    return chunks


def _hash_text(data: bytes) -> str:
    """A hash as it is written in addresses: four little-endian numbers."""
    return "".join(f"{number:016x}" for number in struct.unpack("<4Q", data))


def _json(value: dict) -> Answer:
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}
