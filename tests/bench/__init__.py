"""A host with libvirt and two QEMU versions in namespaces of its own, for the tests and the demo."""
