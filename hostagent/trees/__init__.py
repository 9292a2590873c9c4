"""QEMU versions side by side, each in a tree of its own."""
