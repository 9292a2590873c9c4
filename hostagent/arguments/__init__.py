"""QEMU's argument list: read, judged against what was tried, and written for the new QEMU."""
