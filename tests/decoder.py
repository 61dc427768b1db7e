#!/usr/bin/env python3
"""Reads files of this format and prints what is in them as JSON: a second opinion.

    decoder.py PATH...        PATH is a segment, a record log, a checkpoint, or a wal/ directory

Written from the format's rules, not from the library; standard library only. It reports what checks out in
order and where that ends. It does not judge why it ends there: telling a torn tail from damage is the
library's business.

Rules. Integers are little-endian. A file begins with a header of 512 bytes, the last four of which are the
CRC-32 of the rest. Frames follow at multiples of the header's alignment, the first at one alignment. A
frame is a header of 48 bytes and a payload, padded with zeros to the alignment. Both checksums of a frame
are CRC-32 seeded with both halves of the file's salt, xored: the header's covers the frame's offset (8
bytes) and header bytes 8 to 48, the payload's covers payload and padding. A data payload is entries, each
behind its length (4 bytes). Ids are dense. In a segment and a record log the first frame is an opening; a
closing or rotation seal ends a segment or checkpoint. A record log goes on behind a torn place with an
opening that names where the good part ends (a seal there counts or not) and continues its ids; a frame
right before such an opening can be the torn one, whole again because what it had lost were zeros.
"""

import json
import os
import re
import struct
import sys
import zlib

MAGICS = {b"DURAWAL\x1a": "segment", b"DURAREC\x1a": "record log", b"DURACKP\x1a": "checkpoint"}
KINDS = {1: "opening", 2: "data", 3: "seal"}
REASONS = {1: "close", 2: "rotation", 3: "idle"}
HEADER_BYTES, FRAME_HEADER_BYTES = 512, 48
ENTRY_BYTES_MAX, BATCH_BYTES_MAX = 16 << 20, 64 << 20


class Bad(Exception):
    """Bytes that are not what they should be."""


def header_of(data):
    if len(data) < HEADER_BYTES:
        raise Bad("the file is shorter than a header")
    magic, version, header_bytes, alignment, identity, salt, file_id, previous, applied, required, features = (
        struct.unpack_from("<8sHHI16sQQQQQI", data)
    )
    if magic not in MAGICS:
        raise Bad("unknown magic")
    if zlib.crc32(data[:508]) != struct.unpack_from("<I", data, 508)[0]:
        raise Bad("the header's checksum does not match")
    if version != 1 or header_bytes != HEADER_BYTES or features != 0:
        raise Bad("a version or feature that is not known here")
    if alignment not in (512, 1024, 2048, 4096) or salt == 0:
        raise Bad("an alignment or salt that no release writes")
    if max(applied, required) >= 1 << 63:
        raise Bad("an entry that no log can have")
    return {
        "kind": MAGICS[magic],
        "version": version,
        "frame_alignment": alignment,
        "identity": identity[::-1].hex(),
        "salt": salt,
        "file_id": file_id,
        "previous_salt": previous,
        "last_applied_entry_id": applied,
        "required_entry_id": required,
    }


class File:
    """The frames of one file."""

    def __init__(self, data):
        self.data = data
        self.header = header_of(data)
        self.alignment = self.header["frame_alignment"]
        salt = self.header["salt"]
        self.seed = (salt ^ (salt >> 32)) & 0xFFFFFFFF
        self.frames, self.entries = [], []
        self.next_id, self.end, self.content_end, self.why = None, self.alignment, self.alignment, None

    def frame_header(self, at):
        """A frame header that checks out at this offset."""
        raw = self.data[at : at + FRAME_HEADER_BYTES]
        if len(raw) < FRAME_HEADER_BYTES or raw[:4] != b"DFRM":
            raise Bad("no frame header")
        crc, kind, flags, _, count, size, payload_crc, first, durable, _, _ = struct.unpack_from("<IBBHIIIQQII", raw, 4)
        if crc != zlib.crc32(raw[8:], zlib.crc32(struct.pack("<Q", at), self.seed)):
            raise Bad("no frame header")
        if kind not in KINDS or flags != 0:
            raise Bad("a kind or flag that is not known here")
        ids_fit = first > 0 and first + count <= 1 << 63 and durable < first + max(count, 1)
        if size > BATCH_BYTES_MAX or not ids_fit or (kind == 2) != (count > 0) or 4 * count > size:
            raise Bad("a frame header that contradicts itself")
        padded = -(-(FRAME_HEADER_BYTES + size) // self.alignment) * self.alignment
        frame = {"offset": at, "bytes": padded, "kind": KINDS[kind], "entries": count}
        frame.update(first_entry_id=first, durable_entry_id=durable)
        return frame, size, payload_crc

    def frame(self, at):
        """A whole frame that checks out at this offset, and its payload."""
        frame, size, payload_crc = self.frame_header(at)
        if at + frame["bytes"] > len(self.data):
            raise Bad("the frame reaches past the end of the file")
        padded = self.data[at + FRAME_HEADER_BYTES : at + frame["bytes"]]
        if zlib.crc32(padded, self.seed) != payload_crc:
            raise Bad("the payload's checksum does not match")
        payload = padded[:size]
        if frame["kind"] == "opening":
            if size != 32:
                raise Bad("an opening of another size")
            names = ("predecessor_salt", "predecessor_id", "predecessor_end", "predecessor_last_entry_id")
            frame.update(zip(names, struct.unpack("<QQQQ", payload)))
            if frame["predecessor_last_entry_id"] + 1 != frame["first_entry_id"]:
                raise Bad("an opening that contradicts itself")
        if frame["kind"] == "seal":
            if size != 24 or payload[0] not in REASONS:
                raise Bad("a seal that says nothing")
            frame["reason"] = REASONS[payload[0]]
            frame["successor_id"], frame["successor_salt"] = struct.unpack_from("<QQ", payload, 8)
        return frame, payload

    def take(self, at):
        """Takes the frame at this offset as the next one."""
        frame, payload = self.frame(at)
        if self.next_id is not None and frame["first_entry_id"] != self.next_id:
            raise Bad("ids do not continue")
        if self.header["kind"] == "record log" and self.cut_by_next(frame):
            raise Bad("the opening behind it says that the log ended before it")
        kind, record_log = frame["kind"], self.header["kind"] == "record log"
        if not self.frames and kind != "opening" and self.header["kind"] != "checkpoint":
            raise Bad("the first frame is no opening")
        if self.frames and kind == "opening":
            if not record_log or frame["predecessor_end"] not in (self.end, self.content_end):
                raise Bad("an opening that does not continue what is before it")
        entries = split(payload, frame) if kind == "data" else []
        self.frames.append(frame)
        self.entries += entries
        self.next_id = frame["first_entry_id"] + frame["entries"]
        self.end = at + frame["bytes"]
        if kind != "seal":
            self.content_end = self.end
        return kind == "seal" and frame["reason"] != "idle" and not record_log

    def cut_by_next(self, frame):
        """Whether the next frame is an opening that continues the log from before this one: it was torn
        in its padding then, which reads as zeros again since the log went on."""
        try:
            behind, _ = self.frame(frame["offset"] + frame["bytes"])
        except Bad:
            return False
        if behind["kind"] != "opening" or frame["kind"] == "seal":
            return False
        return behind["first_entry_id"] == frame["first_entry_id"] and behind["predecessor_end"] <= frame["offset"]

    def reopened(self):
        """Where a record log goes on behind a torn place; None when it does not."""
        if self.header["kind"] != "record log":
            return None
        next_id = 1 if self.next_id is None else self.next_id
        attested = max((frame["durable_entry_id"] for frame in self.frames), default=0)
        for at in range(self.end, len(self.data), self.alignment):
            try:
                claim, _, _ = self.frame_header(at)
            except Bad:
                continue
            try:
                frame, _ = self.frame(at)
                continues = frame["kind"] == "opening" and at > self.end
                continues &= frame.get("predecessor_end") in (self.end, self.content_end)
                continues &= frame["first_entry_id"] == next_id and frame["durable_entry_id"] < next_id
                if continues and attested < next_id and not self.cut_by_next(frame):
                    return at
            except Bad:
                pass
            attested = max(attested, claim["durable_entry_id"])
        return None

    def read(self):
        at = self.end
        while True:
            try:
                if at >= len(self.data):
                    self.why = "the file ends"
                    break
                if self.take(at):
                    self.why = "sealed"
                    break
                at = self.end
            except Bad as bad:
                at = self.reopened()
                if at is None:
                    rest = self.data[self.end :]
                    self.why = "zeros follow" if rest.count(0) == len(rest) else str(bad)
                    break
        return self

    def report(self):
        entries = [{"id": entry_id, "hex": entry.hex()} for entry_id, entry in self.entries]
        return {
            "header": self.header,
            "frames": self.frames,
            "entries": entries,
            "end": self.end,
            "why": self.why,
            "bytes": len(self.data),
        }


def split(payload, frame):
    """The entries of a data payload, which they fill."""
    entries, at = [], 0
    for entry_id in range(frame["first_entry_id"], frame["first_entry_id"] + frame["entries"]):
        if at + 4 > len(payload):
            raise Bad("entries do not fill the payload")
        length = struct.unpack_from("<I", payload, at)[0]
        if length > ENTRY_BYTES_MAX or at + 4 + length > len(payload):
            raise Bad("entries do not fill the payload")
        entries.append((entry_id, payload[at + 4 : at + 4 + length]))
        at += 4 + length
    if at != len(payload):
        raise Bad("entries do not fill the payload")
    return entries


def decode_file(path):
    with open(path, "rb") as file:
        data = file.read()
    if data.count(0) == len(data):
        return {"error": "nothing was written"}
    try:
        return File(data).read().report()
    except Bad as bad:
        return {"error": str(bad)}


def decode_directory(path):
    """The segments of a log; the chain is followed backwards through the openings' salts."""
    numbers = (re.fullmatch(r"wal_([1-9][0-9]*)\.log", name) for name in os.listdir(path))
    ids = sorted(int(number.group(1)) for number in numbers if number)
    segments = {number: decode_file(os.path.join(path, f"wal_{number}.log")) for number in ids}
    started = [number for number in ids if segments[number].get("frames")]
    chain, cursor = [], started[-1] if started else None
    while cursor is not None:
        chain.insert(0, cursor)
        salt = segments[cursor]["frames"][0]["predecessor_salt"]
        older = [number for number in started if number < cursor and segments[number]["header"]["salt"] == salt]
        cursor = older[0] if older and salt else None
    entries = []
    for position, number in enumerate(chain):
        limit = segments[number]["end"]
        if position + 1 < len(chain):
            opening = segments[chain[position + 1]]["frames"][0]
            if opening["predecessor_end"] > limit:
                break
            last = opening["predecessor_last_entry_id"]
            entries += [entry for entry in segments[number]["entries"] if entry["id"] <= last]
        else:
            entries += segments[number]["entries"]
    return {"segments": {str(number): segments[number] for number in ids}, "chain": chain, "entries": entries}


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    reports = {path: (decode_directory if os.path.isdir(path) else decode_file)(path) for path in sys.argv[1:]}
    json.dump(reports, sys.stdout)
    print()


if __name__ == "__main__":
    main()
