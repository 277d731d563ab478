"""What an SSH listener shows to its users, made from the configuration; Gate.settings["ssh"] holds one.

The protocol gets keys and certificates ready to use and signs nothing itself: what an authority's key may sign is
the identity service's business. proxy/ssh_doors.py makes the value, anew at each reload.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from proxy.core.parties import Secret


@dataclass(frozen=True, slots=True)
class SshDoor:
    """One SSH listener's keys and words.

    host_keys: private keys in OpenSSH's or PEM form, without a passphrase, in the order of preference.
    host_certificates: takes the name that a user reaches us by (a target's, for ``ssh -J``; "" for the gateway's
    own) and returns certificate lines ("ssh-ed25519-cert-v01@openssh.com AAAA..."), each for one of the host keys; none
    where there is none to show. It is cached and never blocks; ask for each connection, as they expire.
    methods: ways to log in that are open: "publickey", "password", "keyboard-interactive".
    """

    host_keys: tuple[Secret, ...]
    host_certificates: Callable[[str], tuple[str, ...]]
    banner: str = ""
    methods: tuple[str, ...] = ("publickey", "keyboard-interactive", "password")
