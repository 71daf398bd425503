# SPDX-License-Identifier: BSD-3-Clause
"""An NBD server that does what it should not.

lying_server.py SOCKET FILE LIE [COUNT]: serve FILE on SOCKET.  What LIE says
is done on the first COUNT connections (default: on all), after a request was
made on them; a connection without a lie is served as it should be.
"""

import os
import random
import socket
import struct
import sys
import threading

READ, DISC, BLOCK_STATUS = 0, 2, 7
EIO, ENOMEM, ESHUTDOWN = 5, 12, 108
DONE = 1
NONE, OFFSET_DATA, STATUS, ERROR = 0, 1, 5, 0x8001
OPTION_REPLY = 0x3e889045565a9


class Connection:
    def __init__(self, sock, disk, lie):
        self.sock = sock
        self.disk = disk
        self.lie = lie
        self.waiting = []

    def get(self, n):
        buf = b""
        while len(buf) < n:
            part = self.sock.recv(n - len(buf))
            if not part:
                raise EOFError
            buf += part
        return buf

    def put(self, fmt, *values, data=b""):
        self.sock.sendall(struct.pack(">" + fmt, *values) + data)

    # --- Handshake.

    def option_reply(self, option, kind, data=b""):
        self.put("QIII", OPTION_REPLY, option, kind, len(data), data=data)

    def handshake(self):
        self.put("8s8sH", b"NBDMAGIC", b"IHAVEOPT", 3)
        self.get(4)
        while True:
            _, option, length = struct.unpack(">8sII", self.get(16))
            self.get(length)
            if option == 8:                             # structured replies
                self.option_reply(option, 1)
            elif option == 10:                          # meta context
                self.option_reply(option, 4, struct.pack(">I", 1) +
                                  b"base:allocation")
                self.option_reply(option, 1)
            elif option == 7:                           # go
                size = len(self.disk)
                if self.lie == "huge":
                    size = (1 << 63) - 1
                elif self.lie == "too-huge":
                    size = 1 << 63
                self.option_reply(option, 3, struct.pack(">HQH", 0, size, 3))
                self.option_reply(option, 1)
                return
            else:
                self.option_reply(option, 0x80000001)

    # --- Requests.

    def chunk(self, cookie, kind, data=b"", flags=DONE):
        self.put("IHHQI", 0x668e33ef, flags, kind, cookie, len(data),
                 data=data)

    def error(self, cookie, err):
        self.chunk(cookie, ERROR, struct.pack(">IH", err, 0))

    def extents(self, cookie, *pairs):
        self.chunk(cookie, STATUS, struct.pack(">I", 1) + b"".join(
            struct.pack(">II", *pair) for pair in pairs))

    def read(self, cookie, offset, count):
        data = self.disk[offset:offset + count]
        data += bytes(count - len(data))
        self.chunk(cookie, OFFSET_DATA, struct.pack(">Q", offset) + data)

    def status(self, cookie, offset, count):
        lie = self.lie
        if lie == "no-extents":
            self.chunk(cookie, NONE)
        elif lie == "empty-extent":
            self.extents(cookie, (0, 3), (0, 0))
        elif lie == "long-extents":
            self.extents(cookie, (count // 2, 0), (0xfffffe00, 0),
                         (0xfffffe00, 3))
        elif lie == "strange-types":
            self.extents(cookie, (count, 0xfffffffc))
        elif lie == "status-error":
            self.error(cookie, EIO)
        elif lie == "status-memory":
            self.error(cookie, ENOMEM)
        else:
            self.extents(cookie, (count, 0))

    def answer(self, kind, cookie, offset, count):
        lie = self.lie
        if lie == "close":
            raise EOFError
        if lie == "half" and kind == READ:
            self.put("IHHQI", 0x668e33ef, DONE, OFFSET_DATA, cookie,
                     8 + count, data=struct.pack(">Q", offset) +
                     self.disk[offset:offset + count // 2])
            raise EOFError
        if lie == "garbage":
            self.sock.sendall(random.randbytes(100))
        elif lie == "cookie":
            self.read(cookie + 1, offset, count)
        elif lie == "elsewhere" and kind == READ:
            self.chunk(cookie, OFFSET_DATA,
                       struct.pack(">Q", offset + count) + bytes(count))
        elif lie == "shutdown":
            self.error(cookie, ESHUTDOWN)
        elif lie == "left-out" and kind == READ:
            self.chunk(cookie, OFFSET_DATA, struct.pack(">Q", offset) +
                       self.disk[offset:offset + count // 2], flags=0)
            self.chunk(cookie, NONE)
        elif lie == "nothing" and kind == READ:
            self.chunk(cookie, NONE)
        elif kind == READ:
            self.read(cookie, offset, count)
        elif kind == BLOCK_STATUS:
            self.status(cookie, offset, count)
        else:
            self.error(cookie, EIO)

    def serve(self):
        self.handshake()
        while True:
            _, _, kind, cookie, offset, count = struct.unpack(
                ">IHHQQI", self.get(28))
            if kind == DISC:
                return
            self.waiting.append((kind, cookie, offset, count))
            # As many as there are at once, the last one first.
            self.sock.settimeout(0.05 if self.lie == "reverse" else 0)
            try:
                if len(self.waiting) < 8 and self.lie == "reverse" and \
                        self.sock.recv(1, socket.MSG_PEEK):
                    continue
            except (BlockingIOError, TimeoutError):
                pass
            finally:
                self.sock.settimeout(None)
            while self.waiting:
                self.answer(*self.waiting.pop())


def run(*args):
    connection = Connection(*args)
    try:
        connection.serve()
    except (EOFError, OSError):
        pass
    connection.sock.close()


def main():
    path, file, lie = sys.argv[1:4]
    count = int(sys.argv[4]) if len(sys.argv) > 4 else 1 << 30
    with open(file, "rb") as f:
        disk = f.read()
    s = socket.socket(socket.AF_UNIX)
    s.bind(path + ".new")
    s.listen(64)
    os.rename(path + ".new", path)
    for i in range(1 << 30):
        args = s.accept()[0], disk, lie if i < count else ""
        threading.Thread(target=run, args=args, daemon=True).start()


main()
