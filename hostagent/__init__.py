"""Updates the host under running libvirt guests, with their memory kept."""

__version__ = "0.1.0"
