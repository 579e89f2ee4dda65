"""GGUF files, read by transformers in a fraction of its time: of 13 s for SmolLM2-135M 2 are left.

transformers reads a file's header for the config, for the tokenizer and for the weights. It has the package gguf do
that, which makes several views of a memory map for each word of the vocabulary. A table of all names of weights is
built anew for each module of the model. Inside `read_quickly` both are done in a plain way. What transformers makes of
a file is the same. The package's own `ReaderField.contents` does not work on what is read there.
"""

import functools
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock
from typing import Any

from .gguf_header import numbers, strings

_READER, _NAMES = "GGUFReader", "get_tensor_name_map"
"""Names in the package gguf that transformers uses."""
_KIND_AND_COUNT = struct.Struct("<IQ")
_ALONE = RLock()


@contextmanager
def read_quickly() -> Iterator[None]:
    """Meanwhile the package gguf reads files quickly; it is then as before. One thread at a time."""
    import gguf

    with _ALONE:
        package: Any = gguf
        plain = {name: getattr(package, name) for name in (_READER, _NAMES) if hasattr(package, name)}
        for name, quick in ((_READER, _quick_reader), (_NAMES, functools.cache)):
            if name in plain:
                setattr(package, name, quick(plain[name]))
        try:
            yield
        finally:
            for name, value in plain.items():
                setattr(package, name, value)


@functools.cache
def _quick_reader(plain: Any) -> Any:
    """The class of reader that takes an array of a header in one go; all else is done by the `plain` one."""
    from gguf import GGUFValueType

    class QuickReader(plain):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            """Bytes of the file, as a plain array: a view of a memory map takes ten times as long to make."""
            return self._data

        @data.setter
        def data(self, mapped: Any) -> None:
            self._data = mapped.view(type(mapped).__base__)

        def _get_field_parts(self, orig_offs: int, raw_type: Any) -> Any:
            if raw_type != GGUFValueType.ARRAY or self.byte_order != "I" or sys.byteorder != "little":
                return super()._get_field_parts(orig_offs, raw_type)
            file = memoryview(self.data)
            kind, count = _KIND_AND_COUNT.unpack_from(file, orig_offs)
            start = orig_offs + _KIND_AND_COUNT.size
            values: list[Any]
            if kind == GGUFValueType.STRING:
                values, end = strings(file, start, count)
            elif kind in self.gguf_scalar_to_np:
                values, end = numbers(self.data, start, count, self.gguf_scalar_to_np[kind])
            else:
                return super()._get_field_parts(orig_offs, raw_type)
            types = [GGUFValueType.ARRAY, GGUFValueType(kind)][: 1 + bool(count)]
            return end - orig_offs, [[kind], [count], *values], list(range(2, 2 + count)), types

    return QuickReader
