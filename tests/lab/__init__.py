"""The lab: whole hosts with systemd, AppArmor and real KVM, as virtual machines of their own."""
