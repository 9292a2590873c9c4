"""A VNC client that only says whether it is let in (RFC 6143): its password, and nothing else, is proved by that."""

import socket
from collections.abc import Sequence

_SECURITY_VNC = 2
_SECONDS = 60.0


def let_in(address: str, port: int, password: str) -> bool:
    """Connect, answer the challenge with the password, and hear what the server makes of it."""
    with socket.create_connection((address, port), _SECONDS) as server:
        greeting = _exactly(server, 12)
        assert greeting.startswith(b"RFB 003."), greeting
        server.sendall(b"RFB 003.008\n")
        kinds = _exactly(server, _exactly(server, 1)[0])
        assert kinds == bytes([_SECURITY_VNC]), kinds
        server.sendall(kinds)
        challenge = _exactly(server, 16)
        # Each byte of the key is turned round, as the protocol's first program had it.
        key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode().ljust(8, b"\0")[:8])
        server.sendall(_des(challenge[:8], key) + _des(challenge[8:], key))
        return _exactly(server, 4) == b"\0\0\0\0"


def _exactly(server: socket.socket, count: int) -> bytes:
    heard = b""
    while len(heard) < count:
        piece = server.recv(count - len(heard))
        assert piece, "expected an answer, found the connection closed"
        heard += piece
    return heard


# -- DES of one block (FIPS 46-3): in no library that is at hand ------------------------------------------------

_IP = [58 - 8 * (n % 8) + 2 * (n // 8) if n < 32 else 57 - 8 * (n % 8) + 2 * (n // 8 - 4) for n in range(64)]
_FP = [_IP.index(n + 1) + 1 for n in range(64)]
_E = [(4 * (n // 6) + n % 6 - 1) % 32 + 1 for n in range(48)]
_P = [
    *(16, 7, 20, 21, 29, 12, 28, 17, 1, 15, 23, 26, 5, 18, 31, 10),
    *(2, 8, 24, 14, 32, 27, 3, 9, 19, 13, 30, 6, 22, 11, 4, 25),
]
_PC1 = [
    *(57, 49, 41, 33, 25, 17, 9, 1, 58, 50, 42, 34, 26, 18, 10, 2, 59, 51, 43, 35, 27, 19, 11, 3, 60, 52, 44, 36),
    *(63, 55, 47, 39, 31, 23, 15, 7, 62, 54, 46, 38, 30, 22, 14, 6, 61, 53, 45, 37, 29, 21, 13, 5, 28, 20, 12, 4),
]
_PC2 = [
    *(14, 17, 11, 24, 1, 5, 3, 28, 15, 6, 21, 10, 23, 19, 12, 4, 26, 8, 16, 7, 27, 20, 13, 2),
    *(41, 52, 31, 37, 47, 55, 30, 40, 51, 45, 33, 48, 44, 49, 39, 56, 34, 53, 46, 42, 50, 36, 29, 32),
]
_SHIFTS = [1, 1, 2, 2, 2, 2, 2, 2, 1, 2, 2, 2, 2, 2, 2, 1]
_S = [
    "e4d12fb83a6c5907 0f74e2d1a6cb9538 41e8d62bfc973a50 fc8249175b3ea06d",
    "f18e6b34972dc05a 3d47f28ec01a69b5 0e7ba4d158c6932f d8a13f42b67c05e9",
    "a09e63f51dc7b428 d709346a285ecbf1 d6498f30b12c5ae7 1ad069874fe3b52c",
    "7de3069a1285bc4f d8b56f03472c1ae9 a690cb7df13e5284 3f06a1d8945bc72e",
    "2c417ab6853fd0e9 eb2c47d150fa3986 421bad78f9c5630e b8c71e2d6f09a453",
    "c1af92680d34e75b af427c9561de0b38 9ef528c3704a1db6 432c95fabe17608d",
    "4b2ef08d3c975a61 d0b7491ae35c2f86 14bdc37eaf680592 6bd814a7950fe23c",
    "d2846fb1a93e50c7 1fd8a374c56b0e92 7b419ce206adf358 21e74a8dfc90356b",
]


def _des(block: bytes, key: bytes) -> bytes:
    """Encrypt eight bytes."""
    bits = _chosen(_bits(block), _IP)
    left, right = bits[:32], bits[32:]
    for subkey in _subkeys(key):
        mixed = [one ^ other for one, other in zip(_chosen(right, _E), subkey, strict=True)]
        left, right = right, [one ^ other for one, other in zip(left, _chosen(_substituted(mixed), _P), strict=True)]
    text = "".join(str(bit) for bit in _chosen([*right, *left], _FP))
    return int(text, 2).to_bytes(8, "big")


def _subkeys(key: bytes) -> list[list[int]]:
    halves = _chosen(_bits(key), _PC1)
    first, second, made = halves[:28], halves[28:], []
    for shift in _SHIFTS:
        first, second = first[shift:] + first[:shift], second[shift:] + second[:shift]
        made.append(_chosen([*first, *second], _PC2))
    return made


def _substituted(bits: Sequence[int]) -> list[int]:
    found: list[int] = []
    for box, at in zip(_S, range(0, 48, 6), strict=True):
        six = bits[at : at + 6]
        row, column = six[0] * 2 + six[5], six[1] * 8 + six[2] * 4 + six[3] * 2 + six[4]
        found += [int(bit) for bit in f"{int(box.split()[row][column], 16):04b}"]
    return found


def _bits(data: bytes) -> list[int]:
    return [int(bit) for byte in data for bit in f"{byte:08b}"]


def _chosen(bits: Sequence[int], places: Sequence[int]) -> list[int]:
    return [bits[place - 1] for place in places]
