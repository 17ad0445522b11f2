"""Malicious pickles that take far more memory than they have bytes."""

import io
import zipfile


def archive(program, *records):
    """Return an archive as ``torch.save`` writes it, with this pickle and these storages."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        file.writestr("archive/data.pkl", program)
        file.writestr("archive/byteorder", "little")
        for i, record in enumerate(records):
            file.writestr(f"archive/data/{i}", record)
    return buffer.getvalue()


class Program:
    """A pickle, written opcode by opcode; the value on top of the stack becomes that of ``"a"``."""

    def __init__(self):
        self.code, self.memos = b"\x80\x02", 0
        self._put(b"}")
        self.text("a")

    def _put(self, code):
        """Add an opcode whose result is memoized."""
        index = self.memos
        self.memos += 1
        self.code += code + (b"q" + bytes([index]) if index < 256 else b"r" + index.to_bytes(4, "little"))
        return index

    def text(self, text):
        return self._put(b"X" + len(text.encode()).to_bytes(4, "little") + text.encode())

    def name(self, name):
        return self._put(b"c" + name.replace(" ", "\n").encode() + b"\n")

    def get(self, index):
        self.code += b"h" + bytes([index]) if index < 256 else b"j" + index.to_bytes(4, "little")

    def number(self, number):
        self.code += b"\x8a\x09" + number.to_bytes(9, "little")

    def tuple(self, count):
        return self._put({1: b"\x85", 2: b"\x86", 3: b"\x87"}[count])

    def call(self):
        return self._put(b"R")

    def done(self):
        return self.code + b"s."


def size_of_bytearray(count):
    """Return the pickle of ``torch.Size(bytearray(count))``, which has a Python int for every byte."""
    program = Program()
    program.name("torch Size")
    program.name("builtins bytearray")
    program.number(count)
    program.tuple(1)
    program.call()
    program.tuple(1)
    program.call()
    return program.done()


def zeros(kind, count):
    """Return the pickle of a call that makes ``count`` zero bytes."""
    program = Program()
    program.name(kind)
    program.number(count)
    program.tuple(1)
    program.call()
    return program.done()


def repeated(call, count):
    """Return the pickle of many results of one call on one long value."""
    program, known = Program(), {}

    def first_or_again(key, make):
        if key in known:
            program.get(known[key])
        else:
            known[key] = make()

    def long():
        if call == "_codecs encode":
            return program.text("x" * 10_000)
        program.code += b"(" + b"K\x01" * 10_000
        return program._put(b"t")

    program._put(b"]")
    program.code += b"("
    for _ in range(count):
        first_or_again("name", lambda: program.name(call))
        first_or_again("long", long)
        if call == "_codecs encode":
            first_or_again("latin1", lambda: program.text("latin1"))
        program.tuple(2 if call == "_codecs encode" else 1)
        program.call()
    program.code += b"e"
    return program.done()


def many(code, count):
    """Return the pickle of a list of many small values."""
    program = Program()
    program._put(b"]")
    program.code += b"("
    for _ in range(count):
        program._put(code)
    program.code += b"e"
    return program.done()


def many_made(kind, count):
    """Return the pickle of a list of many empty dicts of a kind that is called."""
    program = Program()
    program._put(b"]")
    program.code += b"("
    name = None
    for _ in range(count):
        if name is None:
            name = program.name(kind)
        else:
            program.get(name)
        if kind == "collections Counter":
            program._put(b"}")
            program.tuple(1)
        else:
            program.code += b")"
        program.call()
    program.code += b"e"
    return program.done()


def many_without_memos(count):
    program = Program()
    program._put(b"]")
    program.code += b"(" + b"]" * count + b"e"
    return program.done()


def many_marks(count):
    return Program().code + b"(" * count


def tensor(numbers=4, size=(4,), stride=(1,), offset=0, key="0", kind="torch FloatStorage"):
    """Return the pickle of one tensor with these claims."""
    program = Program()
    program.name("torch._utils _rebuild_tensor_v2")
    program.code += b"(("
    program.text("storage")
    program.name(kind)
    program.text(key)
    program.text("cpu")
    program.number(numbers)
    program._put(b"t")
    program.code += b"Q"
    program.number(offset)
    for shape in (size, stride):
        program.code += b"("
        for n in shape:
            program.number(n)
        program._put(b"t")
    program.code += b"\x89"
    program.name("collections OrderedDict")
    program.code += b")"
    program.call()
    program._put(b"t")
    program.call()
    return program.done()


def nested_key(depth):
    """Return the pickle of a dict whose key is a tuple of one tuple twice, and so on: its hash takes 2^depth steps."""
    program = Program()
    program._put(b"}")
    program.code += b"N"
    inner = program.tuple(1)
    for _ in range(depth):
        program.get(inner)
        inner = program.tuple(2)
    program.code += b"Ns"
    return program.done()


def called_again(between, memos=0):
    """Return the pickle of two calls with one tuple of arguments, and opcodes in between with so many memos."""
    program = Program()
    program._put(b"]")
    name = program.name("torch Size")
    program.code += b"K\x01"
    program.tuple(1)
    arguments = program.tuple(1)
    program.call()
    program.code += b"a"
    program.get(name)
    program.get(arguments)
    program.code += between
    program.memos += memos
    program.call()
    program.code += b"a"
    return program.done()
