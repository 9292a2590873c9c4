"""Descriptors of another process: duplicated with pidfd_getfd(2), and the settings of a tap behind one."""

from __future__ import annotations

import array
import ctypes
import fcntl
import os
import socket
import struct

_SYS_PIDFD_GETFD = 438  # the same number on every architecture, Linux 5.6
_libc = ctypes.CDLL(None, use_errno=True)

# linux/if_tun.h, linux/if.h
_TUNGETIFF = 0x800454D2
_TUNGETVNETHDRSZ = 0x800454D7
_TUNSETVNETHDRSZ = 0x400454D8
_TUNSETOFFLOAD = 0x400454D0

# linux/sockios.h, linux/ethtool.h. There is no TUNGETOFFLOAD; what TUNSETOFFLOAD set shows as the device's features.
_SIOCETHTOOL = 0x8946
_ETHTOOL_GSTRINGS, _ETHTOOL_GSSET_INFO, _ETHTOOL_GFEATURES = 0x1B, 0x37, 0x3A
_ETH_SS_FEATURES = 4
_STRING_LENGTH = 32
_OFFLOADS = {  # feature's name -> TUN_F_* bits (linux/if_tun.h; drivers/net/tun.c, set_offload)
    "tx-checksum-ip-generic": 0x01,
    "tx-tcp-segmentation": 0x02,
    "tx-tcp6-segmentation": 0x04,
    "tx-tcp-ecn-segmentation": 0x08,
    "tx-udp-segmentation": 0x20 | 0x40,
}


def copy_descriptor(pid: int, fd: int) -> int:
    """A duplicate, close-on-exec, of a descriptor in another process; OSError when there is none."""
    process = os.pidfd_open(pid)
    try:
        found: int = _libc.syscall(_SYS_PIDFD_GETFD, process, fd, 0)
        if found < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)}: descriptor {fd} of process {pid}")
        return found
    finally:
        os.close(process)


def tap_header_length(tap: int) -> int:
    """Length of the virtio-net header in front of each packet, bytes."""
    buffer = array.array("i", [0])
    fcntl.ioctl(tap, _TUNGETVNETHDRSZ, buffer)
    return buffer[0]


def set_tap_header_length(tap: int, length: int) -> None:
    """See tap_header_length."""
    fcntl.ioctl(tap, _TUNSETVNETHDRSZ, array.array("i", [length]))


def tap_name(tap: int) -> str:
    """The network device of a tap, as this network namespace names it."""
    raw = fcntl.ioctl(tap, _TUNGETIFF, bytes(40))
    name: str = raw[:16].split(b"\0", 1)[0].decode()
    return name


def tap_offloads(tap: int) -> int:
    """TUN_F_* bits that are on."""
    device = tap_name(tap)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as channel:
        answer = _ethtool(channel, device, [_ETHTOOL_GSSET_INFO, 0, 1 << _ETH_SS_FEATURES, 0, 0])
        count = answer[4]
        names = _ethtool(
            channel,
            device,
            [_ETHTOOL_GSTRINGS, _ETH_SS_FEATURES, count] + [0] * (count * _STRING_LENGTH // 4),
        )
        blocks = (count + 31) // 32
        features = _ethtool(channel, device, [_ETHTOOL_GFEATURES, blocks] + [0] * (blocks * 4))
    text = names[3:].tobytes()
    bits = 0
    for index in range(count):
        name = text[index * _STRING_LENGTH : (index + 1) * _STRING_LENGTH].split(b"\0", 1)[0].decode()
        active = features[2 + 4 * (index // 32) + 2]  # of each block: available, requested, active, never changed
        if active >> (index % 32) & 1:
            bits |= _OFFLOADS.get(name, 0)
    return bits


def set_tap_offloads(tap: int, offloads: int) -> None:
    """See tap_offloads."""
    fcntl.ioctl(tap, _TUNSETOFFLOAD, offloads)


def _ethtool(channel: socket.socket, device: str, words: list[int]) -> array.array[int]:
    buffer = array.array("I", words)
    address, _ = buffer.buffer_info()
    request = struct.pack("16sP", device.encode(), address)
    fcntl.ioctl(channel, _SIOCETHTOOL, request + bytes(40 - len(request)))
    return buffer
