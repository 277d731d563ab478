"""What of asyncssh's internals was read, and the hashes of its code then; see test_transport_pinned.py."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from importlib.metadata import version

READ_VERSION = "2.24.1"


def installed() -> str:
    return version("asyncssh")


def found(name: str) -> str:
    """Return the source of "module.Class.method"."""
    parts = name.split(".")
    for size in range(len(parts) - 1, 0, -1):
        try:
            thing: object = importlib.import_module("asyncssh." + ".".join(parts[:size]))
        except ModuleNotFoundError:
            continue
        for part in parts[size:]:
            thing = getattr(thing, part, None)
        assert callable(thing), f"asyncssh has no {name}"
        return inspect.getsource(thing)
    raise AssertionError(f"asyncssh has no {name}")


def digest(source: str) -> str:
    """Hash source text: the same under every Python, comments and all."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


PINNED: dict[str, str] = {
    "connection.SSHConnection.__init__": "41da2e469f2a3964",
    "connection.SSHConnection._cleanup": "ea4cd2aed57194e5",
    "connection.SSHConnection._force_close": "264b4367525f4f86",
    "connection.SSHConnection.connection_made": "e7b867af0f590a2c",
    "connection.SSHConnection.connection_lost": "ea050d93536d711a",
    "connection.SSHConnection.data_received": "b2d14a83b2604db6",
    "connection.SSHConnection.eof_received": "49d7a5b4cee006fd",
    "connection.SSHConnection.internal_error": "ceabee464f7cf474",
    "connection.SSHConnection._reap_task": "d6d88bdf86f70401",
    "connection.SSHConnection.create_task": "a9bff2bae35cd56f",
    "connection.SSHConnection._recv_data": "fc4e0735191bb0fd",
    "connection.SSHConnection._recv_version": "05573b0ac8886bf3",
    "connection.SSHConnection._recv_pkthdr": "7adc4d88fe20593c",
    "connection.SSHConnection._recv_packet": "b3daa22e9763eee9",
    "connection.SSHConnection._finish_recv_packet": "e12d96db58b3524e",
    "connection.SSHConnection.send_packet": "fb9da7bec6dd395a",
    "connection.SSHConnection._send": "c6698a37eb80f574",
    "connection.SSHConnection._send_deferred_packets": "c5ef8240853eb331",
    "connection.SSHConnection._send_disconnect": "225d909cfce74f89",
    "connection.SSHConnection._send_kexinit": "275ddc818b59f44b",
    "connection.SSHConnection.send_newkeys": "0b41234420373618",
    "connection.SSHConnection._process_kexinit": "439bdf2fc55e6737",
    "connection.SSHConnection._process_newkeys": "a0331fe3cfd09d0b",
    "connection.SSHConnection._process_disconnect": "20a460351751ff81",
    "connection.SSHConnection._process_userauth_request": "9d1a0e42d15a1526",
    "connection.SSHConnection._finish_userauth": "bd2146536318273d",
    "connection.SSHConnection._process_userauth_failure": "1756c18aa424b582",
    "connection.SSHConnection._process_userauth_success": "02fe4fc8335c6d81",
    "connection.SSHConnection.send_userauth_failure": "30f1eb63d0cb74c9",
    "connection.SSHConnection.send_userauth_success": "812e749ee2432e4b",
    "connection.SSHConnection._choose_alg": "539a102decdbce87",
    "connection.SSHConnection._validate_openssh_host_certificate": "2aae841d279e31cf",
    "connection.SSHConnection._validate_host_key": "a5d08d1b167ecda6",
    "connection.SSHConnection._match_known_hosts": "68ed16ab418fd800",
    "connection.SSHServerConnection.__init__": "1609a442fc4f5151",
    "connection.SSHServerConnection._connection_made": "39041a4108e9474f",
    "connection.SSHServerConnection.choose_server_host_key": "bba591c6ea86a53b",
    "connection.SSHServerConnection.get_server_host_key": "90a80e5abb4dfbd7",
    "connection.SSHServerConnection.public_key_auth_supported": "15574dcfbd63ad3c",
    "connection.SSHServerConnection.password_auth_supported": "45da2cc557dbea8d",
    "connection.SSHServerConnection.kbdint_auth_supported": "7e661408a3fb50f2",
    "connection.SSHServerConnection.host_based_auth_supported": "98521e7e6a5b759e",
    "connection.SSHServerConnection.gss_kex_auth_supported": "96e831112166d9af",
    "connection.SSHServerConnection.gss_mic_auth_supported": "c054af48eeed68e6",
    "connection.SSHServerConnection.validate_public_key": "eb5e224339282892",
    "connection.SSHServerConnection.validate_password": "6279b7450d578817",
    "connection.SSHServerConnection.change_password": "257e80eb567c2db6",
    "connection.SSHServerConnection.get_kbdint_challenge": "f794c02fe6f73537",
    "connection.SSHServerConnection.validate_kbdint_response": "3ac5676f7252804a",
    "connection.SSHServerConnection.reload_config": "d78b0be8399d5491",
    "connection.SSHServerConnectionOptions.prepare": "72d1b32ec5b11078",
    "connection.SSHClientConnection.__init__": "80ecd24f9f546533",
    "connection.SSHClientConnection._connection_made": "f777615b02719315",
    "connection.SSHClientConnection.validate_server_host_key": "c8e8cd30a44d09bf",
    "connection.SSHClientConnection.try_next_auth": "f0135956d276242e",
    "connection.SSHClientConnection.public_key_auth_requested": "f31459807c714ca4",
    "connection.SSHClientConnection.password_auth_requested": "ec4e6753271ec2c1",
    "connection.SSHClientConnection.kbdint_auth_requested": "4cba20723cd22a26",
    "connection.SSHClientConnection.kbdint_challenge_received": "7c4b8c93c57eab6c",
    "connection.SSHClientConnectionOptions.prepare": "a69e7165d6321985",
    "connection.SSHConnectionOptions.prepare": "b6fb904a7f961dcc",
    "auth.Auth": "ae87ffa82b4fd662",
    "auth.ServerAuth": "34b21c8e4279419b",
    "auth._ServerNullAuth": "aeb1a8a790f6ef88",
    "auth._ServerPublicKeyAuth": "427e3c2d8598c935",
    "auth._ServerKbdIntAuth": "48de8fd5e08836b7",
    "auth._ServerPasswordAuth": "24227ee74ceefe4f",
    "auth.lookup_server_auth": "50d9f6f25ca1d685",
    "auth.get_supported_server_auth_methods": "8484ed020351243a",
    "encryption.GCMEncryption": "d255f9e6b1fa73ee",
    "encryption.BasicEncryption": "15eeacf63ec90d6f",
    "encryption.ETMEncryption": "ea0121ae1d035bc2",
    "encryption.ChachaEncryption": "5902581e97e59135",
    "crypto.cipher.GCMCipher": "e389d2b5bed8eb41",
    "packet.SSHPacketHandler": "b5212b30795f1485",
    "known_hosts.SSHKnownHosts": "56789025589588b4",
    "public_key.decode_ssh_certificate": "96ffb5c8507159f9",
    "public_key.SSHOpenSSHCertificate.validate": "b6410b28aa75b41a",
    "public_key.SSHKey.verify": "61901477eba40e51",
}


if __name__ == "__main__":
    print(f"# asyncssh {installed()}")
    for each in PINNED:
        print(f'    "{each}": "{digest(found(each))}",')
