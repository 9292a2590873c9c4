"""The files that libvirt writes for itself, read and changed byte for byte: runtime records, capability caches."""
