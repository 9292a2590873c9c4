"""What a libvirt says of its host, read."""

import pytest

from hostagent.errors import Refused
from hostagent.hypervisor.host_capabilities import read_capabilities, read_processor_models, same_processor

CAPABILITIES = """
<capabilities>
  <host><uuid>0b0b</uuid><cpu><arch>x86_64</arch><model>EPYC</model><vendor>AMD</vendor><microcode version='7'/>
    <feature name='b'/><feature name='a'/></cpu></host>
  <guest><os_type>hvm</os_type>
    <arch name='i686'><emulator>/usr/bin/qemu-system-i386</emulator><machine>isapc</machine><domain type='qemu'/></arch>
  </guest>
  <guest><os_type>hvm</os_type>
    <arch name='x86_64'><emulator>/usr/bin/qemu-system-x86_64</emulator>
      <machine maxCpus='255'>pc-i440fx-7.2</machine>
      <machine canonical='pc-q35-7.2' maxCpus='288'>q35</machine>
      <domain type='qemu'/>
      <domain type='kvm'><machine>pc-q35-7.2</machine></domain>
    </arch>
  </guest>
</capabilities>
"""


def test_a_host_s_capabilities() -> None:
    found = read_capabilities(CAPABILITIES)
    assert (found.uuid, found.emulator) == ("0b0b", "/usr/bin/qemu-system-x86_64")
    assert found.machines == {
        ("qemu", "pc-i440fx-7.2"),
        ("qemu", "pc-q35-7.2"),
        ("qemu", "q35"),
        ("kvm", "pc-q35-7.2"),
    }
    assert "EPYC" in found.processor


def test_of_a_host_without_guests_nothing_is_made_up() -> None:
    found = read_capabilities("<capabilities><host/></capabilities>")
    assert (found.uuid, found.emulator, found.processor, found.machines) == ("", "", "", frozenset())


@pytest.mark.parametrize("text", ["", "<domain/>", "<capabilities>", "<!DOCTYPE x><capabilities/>"])
def test_what_is_no_such_thing_is_refused(text: str) -> None:
    with pytest.raises(Refused):
        read_capabilities(text)


def test_processors_are_the_same_by_model_and_features() -> None:
    one = "<cpu><model>EPYC</model><vendor>AMD</vendor><microcode version='7'/><feature name='a'/></cpu>"
    assert same_processor(one, one.replace("'7'", "'8'"))
    assert not same_processor(one, one.replace("name='a'", "name='b'"))
    assert not same_processor(one, one.replace("EPYC", "Opteron"))
    assert not same_processor(one, "")
    assert not same_processor("", "")


def test_processor_models_that_can_be_had() -> None:
    text = """<domainCapabilities><cpu><mode name='host-model'><model>X</model></mode><mode name='custom'>
      <model usable='yes'>qemu64</model><model usable='no'>EPYC</model><model usable='unknown'>n</model>
      </mode></cpu></domainCapabilities>"""
    assert read_processor_models(text) == {"qemu64", "n"}
