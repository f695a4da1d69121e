"""GGUF files down to the bytes of their tensors: read, change, write. Any tensor type, also I2_S, which the `gguf`
package does not know. Ternary tensors are packed and unpacked here too, by the formats' own words.
"""

import struct
from dataclasses import dataclass, field

import gguf
import numpy as np

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
F32, F16, Q8_0, Q6_K, BF16, TQ1_0, TQ2_0, I2_S = 0, 1, 8, 14, 30, 34, 35, 36
TERNARY = {"TQ1_0": TQ1_0, "TQ2_0": TQ2_0, "I2_S": I2_S}
I2_S_END = 32  # After the codes of an I2_S tensor: the scale, f32, and padding.


@dataclass
class Tensor:
    """Shape as numpy has it, rows first; bytes as the file has them."""

    shape: tuple
    kind: int
    data: bytes


@dataclass
class File:
    """Metadata (type id and value; of an array, type id, element's id and values) and tensors, both in order."""

    metadata: dict = field(default_factory=dict)
    tensors: dict = field(default_factory=dict)

    def value(self, key, default=None):
        """A metadata value, or the default."""
        return self.metadata[key][-1] if key in self.metadata else default

    def set(self, key, kind, value):
        """Sets a scalar or a string (kind 8)."""
        self.metadata[key] = (kind, value)


class _Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def scalar(self, form):
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def string(self):
        length = self.scalar("<Q")
        self.at += length
        return self.data[self.at - length : self.at]

    def value(self, kind):
        if kind == _STRING:
            return self.string().decode()
        return self.scalar(_SCALARS[kind])

    def pair(self):
        key, kind = self.string().decode(), self.scalar("<I")
        if kind != _ARRAY:
            return key, (kind, self.value(kind))
        element, count = self.scalar("<I"), self.scalar("<Q")
        return key, (kind, element, [self.value(element) for _ in range(count)])


def data_bytes(shape, kind):
    """What the data of a tensor takes."""
    if kind == I2_S:
        return int(np.prod(shape)) // 4 + I2_S_END
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return int(np.prod(shape)) // block * size


def read(path):
    """A whole file."""
    with open(path, "rb") as opened:
        reader = _Reader(opened.read())
    assert reader.scalar("<I") == 0x46554747 and reader.scalar("<I") == 3, f"{path}: not GGUF v3"
    tensor_count, pair_count = reader.scalar("<Q"), reader.scalar("<Q")
    file = File(dict(reader.pair() for _ in range(pair_count)))
    infos = []
    for _ in range(tensor_count):
        name, dimensions = reader.string().decode(), reader.scalar("<I")
        shape = tuple(reader.scalar("<Q") for _ in range(dimensions))[::-1]
        infos.append((name, shape, reader.scalar("<I"), reader.scalar("<Q")))
    alignment = file.value("general.alignment", 32)
    start = -(-reader.at // alignment) * alignment
    for name, shape, kind, offset in infos:
        at = start + offset
        file.tensors[name] = Tensor(shape, kind, reader.data[at : at + data_bytes(shape, kind)])
    return file


def _string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(kind, value):
    return _string(value) if kind == _STRING else struct.pack(_SCALARS[kind], value)


def write(path, file):
    """The file as GGUF v3, with alignment 32."""
    out = [struct.pack("<IIQQ", 0x46554747, 3, len(file.tensors), len(file.metadata))]
    for key, (kind, *rest) in file.metadata.items():
        out += [_string(key), struct.pack("<I", kind)]
        if kind == _ARRAY:
            element, values = rest
            out += [struct.pack("<IQ", element, len(values)), *(_value(element, value) for value in values)]
        else:
            out.append(_value(kind, rest[0]))
    end, data = 0, []
    for name, tensor in file.tensors.items():
        assert len(tensor.data) == data_bytes(tensor.shape, tensor.kind), name
        shape = tensor.shape[::-1]
        out += [_string(name), struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, tensor.kind, end)]
        data += [tensor.data, bytes(-len(tensor.data) % 32)]
        end += len(data[-2]) + len(data[-1])
    head = b"".join(out)
    with open(path, "wb") as opened:
        opened.writelines([head, bytes(-len(head) % 32), *data])


def unpack(tensor):
    """Ternary codes, (rows, columns) int8, and what each stands for: one scale, or one per 256 of a row, f32."""
    data = np.frombuffer(tensor.data, np.uint8)
    if tensor.kind == I2_S:
        codes = data[:-I2_S_END].reshape(-1, 1, 32) >> np.array([6, 4, 2, 0], np.uint8)[:, None] & 3
        scale = np.frombuffer(tensor.data, "<f4", 1, len(data) - I2_S_END)[0]
        assert codes.max() < 3
        return codes.reshape(tensor.shape).astype(np.int8) - 1, scale
    if tensor.kind == TQ2_0:
        blocks = data.reshape(-1, 66)
        codes = blocks[:, :64].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    else:
        blocks = data.reshape(-1, 54)
        powers = np.array([1, 3, 9, 27, 81], np.uint8)
        parts = [
            (blocks[:, None, a:b] * powers[:n, None]).reshape(len(blocks), -1)  # Modulo 256.
            for a, b, n in ((0, 32, 5), (32, 48, 5), (48, 52, 4))
        ]
        codes = (np.concatenate(parts, axis=1).astype(np.uint16) * 3 >> 8).astype(np.uint8)
    scales = np.ascontiguousarray(blocks[:, -2:]).view("<f2").astype(np.float32)
    assert codes.max() < 3
    return codes.reshape(tensor.shape).astype(np.int8) - 1, scales.reshape(tensor.shape[0], -1)


def pack(codes, scale, kind):
    """A ternary tensor with one scale. TQ1_0 and TQ2_0 keep it as f16, in blocks of zeros too."""
    if kind == I2_S:
        fields = (codes.reshape(-1, 4, 32) + 1).astype(np.uint8) << np.array([6, 4, 2, 0], np.uint8)[:, None]
        data = np.bitwise_or.reduce(fields, axis=1).tobytes() + struct.pack("<f", scale) + bytes(I2_S_END - 4)
    else:
        assert np.float32(np.float16(scale)) == np.float32(scale), "the scale is not an f16"
        name = gguf.GGMLQuantizationType(kind)
        blocks = gguf.quants.quantize(codes.reshape(-1, 256).astype(np.float32), name)
        blocks[:, -2:] = np.array([scale], "<f2").view(np.uint8)
        data = blocks.tobytes()
    return Tensor(codes.shape, kind, data)


def dequantize(tensor):
    """Values of a tensor that is not ternary, f32."""
    kind = gguf.GGMLQuantizationType(tensor.kind)
    rows = np.frombuffer(tensor.data, np.uint8).reshape(int(np.prod(tensor.shape[:-1])), -1)
    return gguf.quants.dequantize(rows, kind).reshape(tensor.shape).astype(np.float32)


def quantize(values, kind):
    """A tensor that is not ternary."""
    packed = gguf.quants.quantize(np.ascontiguousarray(values, np.float32), gguf.GGMLQuantizationType(kind))
    return Tensor(values.shape, kind, packed.tobytes())
