"""The cipher of tapes: against RFC 9180's vectors, against a second reading of format.py, and against tampering."""

from __future__ import annotations

import hmac
import stat
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgpack
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from recorder import cipher
from recorder.cipher import RECIPIENTS_LIMIT, AuditorKey, Recipient, SegmentCipher, TapeKey, unlock
from recorder.errors import FormatError, KeyFileError, Unreadable
from recorder.format import Header
from recorder.walformat import KEYS_LIMIT, encode_open

SID = "01K0000000000000000000GCT1"
HEAD = bytes(range(48))


def auditor() -> AuditorKey:
    return AuditorKey(X25519PrivateKey.generate())


def header(enc: Any, sid: str = SID, segment: int = 0, track: str = "main") -> Header:
    return Header(b"", {"sid": sid, "segment": segment, "track": track, "enc": enc})


# -- against the RFC ----------------------------------------------------------------------------------------

# Test vectors of RFC 9180 (the working group's test-vectors.json): mode base, DHKEM(X25519, HKDF-SHA256), HKDF-SHA256,
# AES-256-GCM; the first encryption.
RFC9180 = {
    "info": "4f6465206f6e2061204772656369616e2055726e",
    "skRm": "497b4502664cfea5d5af0b39934dac72242a74f8480451e1aee7d6a53320333d",
    "pkRm": "430f4b9859665145a6b1ba274024487bd66f03a2dd577d7753c68d7d7d00c00c",
    "enc": "6c93e09869df3402d7bf231bf540fadd35cd56be14f97178f0954db94b7fc256",
    "key": "f50b0609186798729ed0564b36ef2ef8044f1f9d05636874d1f46c819c7a669f",
    "base_nonce": "151d9929e2449747889bc923",
    "aad": "436f756e742d30",
    "ct": "e5d84cd531cfb583096e7cfa9641bd3079cf3a91cda813c52deb5f512be9931980a41de125a925cdad859d5b7a",
    "pt": "4265617574792069732074727574682c20747275746820626561757479",
}


def test_a_wrap_opens_as_rfc_9180_has_it() -> None:
    v = {name: bytes.fromhex(value) for name, value in RFC9180.items()}
    aead = AESGCM(v["key"])
    assert aead.decrypt(v["base_nonce"], v["ct"], v["aad"]) == v["pt"]
    # The vectors have associated data and our wraps have none: the same key and nonce, sealed without.
    sealed = aead.encrypt(v["base_nonce"], v["pt"], b"")
    key = AuditorKey(X25519PrivateKey.from_private_bytes(v["skRm"]))
    assert key.recipient.public == v["pkRm"]
    assert key.open_wrap(v["enc"] + sealed, v["info"]) == v["pt"]
    with pytest.raises(FormatError):
        key.open_wrap(v["enc"] + v["ct"], v["info"])
    with pytest.raises(FormatError):
        key.open_wrap(v["enc"] + sealed, v["info"] + b"x")


def hkdf_extract(salt: bytes, secret: bytes) -> bytes:
    return hmac.digest(salt or bytes(32), secret, "sha256")


def hkdf_expand(secret: bytes, info: bytes, length: int) -> bytes:
    out, last, i = b"", b"", 1
    while len(out) < length:
        last = hmac.digest(secret, last + info + bytes([i]), "sha256")
        out += last
        i += 1
    return out[:length]


def hpke_open(private: X25519PrivateKey, enc: bytes, sealed: bytes, info: bytes) -> bytes:
    """RFC 9180 4.1, 5.1 and 6.1, as they are written there: base mode, suite (0x0020, 0x0001, 0x0002), sequence 0."""

    def extract(suite: bytes, salt: bytes, label: bytes, secret: bytes) -> bytes:
        return hkdf_extract(salt, b"HPKE-v1" + suite + label + secret)

    def expand(suite: bytes, secret: bytes, label: bytes, text: bytes, length: int) -> bytes:
        return hkdf_expand(secret, length.to_bytes(2, "big") + b"HPKE-v1" + suite + label + text, length)

    kem, suite = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    agreed = private.exchange(X25519PublicKey.from_public_bytes(enc))
    shared = expand(kem, extract(kem, b"", b"eae_prk", agreed), b"shared_secret", enc + public, 32)
    context = b"\0" + extract(suite, b"", b"psk_id_hash", b"") + extract(suite, b"", b"info_hash", info)
    secret = extract(suite, shared, b"secret", b"")
    key = expand(suite, secret, b"key", context, 32)
    return AESGCM(key).decrypt(expand(suite, secret, b"base_nonce", context, 12), sealed, b"")


def test_the_second_reading_of_rfc_9180_is_right() -> None:
    v = {name: bytes.fromhex(value) for name, value in RFC9180.items()}
    sealed = AESGCM(v["key"]).encrypt(v["base_nonce"], v["pt"], b"")
    assert hpke_open(X25519PrivateKey.from_private_bytes(v["skRm"]), v["enc"], sealed, v["info"]) == v["pt"]


def open_by_the_book(private: X25519PrivateKey, said: Any, keys_file: bytes, block: tuple[bytes, int, bytes]) -> bytes:
    """Decrypt one block by nothing but format.py's docstring; said is the header's map."""
    enc = said["enc"]
    assert enc["suite"] == "AES-256-GCM"
    assert (len(enc["salt"]), len(enc["commit"])) == (24, 32)
    assert enc["wraps"] == sha256(keys_file).digest()
    keys = msgpack.unpackb(keys_file)
    assert (keys["v"], keys["sid"], keys["track"]) == (1, said["sid"], said["track"])
    public = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    mine = [wrap for wrap in keys["wraps"] if wrap[1] == sha256(public).hexdigest()[:16]]
    [[suite, _, hpke_enc, wrapped]] = mine
    assert suite == "hpke-x25519-sha256-aes256gcm"
    sid, track = said["sid"].encode(), said["track"].encode()
    dek = hpke_open(private, hpke_enc, wrapped, b"gatecast tape key v1" + b"\0" + sid + b"\0" + track)
    assert len(dek) == 32
    info = b"gatecast tape v1" + b"\0" + b"AES-256-GCM" + b"\0" + sid + b"\0" + track + b"\0"
    info += said["segment"].to_bytes(4, "little") + enc["salt"]
    okm = hkdf_expand(dek, info, 64)
    assert okm[32:] == enc["commit"]
    head, seq, sealed = block
    return AESGCM(okm[:32]).decrypt(bytes(4) + seq.to_bytes(8, "little"), sealed, head)


def test_a_stranger_decrypts_by_the_specification() -> None:
    private = X25519PrivateKey.generate()
    recipients = [auditor().recipient, AuditorKey(private).recipient]
    key = TapeKey.generate(SID, "original", recipients)
    for segment in (0, 1, 70_000):
        enc, one = key.segment(segment)
        sealed = one.seal(HEAD, 9, b"a block")
        assert len(sealed) == len(b"a block") + 16
        said = header(enc, segment=segment, track="original").map_
        assert open_by_the_book(private, said, key.keys_file, (HEAD, 9, sealed)) == b"a block"


# -- round trip, and what must not open ---------------------------------------------------------------------


def test_each_recipient_opens_and_nobody_else() -> None:
    ana, leo, eve = auditor(), auditor(), auditor()
    key = TapeKey.generate(SID, "main", [ana.recipient, leo.recipient])
    enc, writer = key.segment(3)
    sealed = writer.seal(HEAD, 0, b"secret")
    assert b"secret" not in sealed
    for keys in ([ana], [leo], [eve, leo]):
        assert unlock(header(enc, segment=3), key.keys_file, keys).open(HEAD, 0, sealed) == b"secret"
    for keys in ([], [eve]):
        with pytest.raises(Unreadable) as error:
            unlock(header(enc, segment=3), key.keys_file, keys)
        assert str(error.value) == (
            f"encrypted to one of the keys {ana.id}, {leo.id}; give --identity FILE with one of them"
        )


def test_without_its_keys_file_a_tape_is_unreadable() -> None:
    ana = auditor()
    enc, _ = TapeKey.generate(SID, "main", [ana.recipient]).segment(0)
    with pytest.raises(Unreadable, match="erased"):
        unlock(header(enc), None, [ana])


def test_a_changed_block_does_not_open() -> None:
    one = SegmentCipher(bytes(32))
    sealed = one.seal(HEAD, 5, b"x" * 100)
    again = SegmentCipher(bytes(32))
    assert again.open(HEAD, 5, sealed) == b"x" * 100
    wrong = [
        (HEAD, 4, sealed),
        (HEAD, 6, sealed),
        (HEAD, 5, sealed[:-1]),  # a cut tag
        (HEAD, 5, sealed[:-16]),
        (HEAD, 5, sealed[:15]),
        (HEAD, 5, b""),
        (HEAD, 5, sealed + b"\0"),
        (HEAD[:-1], 5, sealed),
    ]
    for i in range(len(sealed)):
        wrong.append((HEAD, 5, sealed[:i] + bytes([sealed[i] ^ 1]) + sealed[i + 1 :]))
    for i in range(48):
        wrong.append((HEAD[:i] + bytes([HEAD[i] ^ 0x80]) + HEAD[i + 1 :], 5, sealed))
    for head, seq, data in wrong:
        with pytest.raises(FormatError):
            again.open(head, seq, data)


def test_no_number_is_encrypted_twice() -> None:
    one = SegmentCipher(bytes(32))
    one.seal(HEAD, 0, b"a")
    one.seal(HEAD, 2, b"c")
    for seq in (0, 1, 2, -1, cipher.SEQ_LIMIT):
        with pytest.raises(ValueError, match="encrypted twice"):
            one.seal(HEAD, seq, b"again")
    one.seal(HEAD, cipher.SEQ_LIMIT - 1, b"the last one")


def test_segments_and_tapes_share_no_key() -> None:
    """Also not when a segment is begun a second time under its number: the salt is fresh."""
    seen: set[bytes] = set()
    ana = auditor()
    made = 0
    for sid in (SID, SID[:-1] + "2"):
        for track in ("main", "original"):
            key = TapeKey(sid, track, [ana.recipient], bytes(32))  # the same data key, at worst
            for number in (0, 0, 1, 256):
                enc, one = key.segment(number)
                seen.add(one.seal(HEAD, 0, bytes(16)))
                seen.add(enc["commit"])
                made += 2
    assert len(seen) == made


def test_every_changed_byte_of_a_keys_file_is_noticed() -> None:
    ana = auditor()
    key = TapeKey.generate(SID, "main", [ana.recipient, auditor().recipient])
    enc, _ = key.segment(0)
    good = key.keys_file
    unlock(header(enc), good, [ana])
    pinned = 0
    for i in range(len(good)):
        bad = good[:i] + bytes([good[i] ^ 0x01]) + good[i + 1 :]
        with pytest.raises(FormatError, match="not the one that the header names"):
            unlock(header(enc), bad, [ana])
        # Whoever changes the header with it gets no further than to a file that does not open.
        try:
            unlock(header({**enc, "wraps": sha256(bad).digest()}), bad, [ana])
        except FormatError:
            pinned += 1
    # The other recipient's wrap may be changed without this one's noticing: 17 + 34 + 50 bytes and its name.
    assert pinned >= len(good) - (1 + 29 + 17 + 34 + 50)
    for bad in (b"", good[:-1], good + b"\xc0"):
        with pytest.raises(FormatError):
            unlock(header({**enc, "wraps": sha256(bad).digest()}), bad, [ana])


@pytest.mark.parametrize(
    "change",
    [
        {"sid": SID[:-1] + "2"},
        {"track": "original"},
        {"v": 2},
        {"v": True},
        {"wraps": []},
        {"wraps": "no"},
        {"wraps": [[1, 2, 3, 4]]},
        {"wraps": [["hpke-x25519-sha256-aes256gcm", "\x1b]0;title\x07", b"", b""]]},
    ],
    ids=repr,
)
def test_a_keys_file_of_another_form_is_refused(change: dict[str, object]) -> None:
    ana = auditor()
    key = TapeKey.generate(SID, "main", [ana.recipient])
    enc, _ = key.segment(0)
    bad = msgpack.packb({**msgpack.unpackb(key.keys_file), **change})
    with pytest.raises(FormatError) as error:
        unlock(header({**enc, "wraps": sha256(bad).digest()}), bad, [ana])
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize(
    "enc",
    [None, {}, [], {"salt": b""}, {"commit": b"x" * 31}, {"suite": 3}, {"suite": "ROT13"}],
    ids=repr,
)
def test_a_header_of_another_form_is_refused(enc: Any) -> None:
    ana = auditor()
    key = TapeKey.generate(SID, "main", [ana.recipient])
    good, _ = key.segment(0)
    with pytest.raises(FormatError):
        unlock(header({**good, **enc} if isinstance(enc, dict) and len(enc) == 1 else enc), key.keys_file, [ana])


@pytest.mark.parametrize("segment", [-1, 1 << 32, 1 << 63])
def test_a_segment_number_out_of_range_is_refused(segment: int) -> None:
    ana = auditor()
    key = TapeKey.generate(SID, "main", [ana.recipient])
    enc, _ = key.segment(0)
    with pytest.raises(FormatError):
        unlock(header(enc, segment=segment), key.keys_file, [ana])


@pytest.mark.parametrize(
    "wrapped", [b"", bytes(31), bytes(32), bytes(48), bytes(80), b"\xff" * 80, bytes(1000)], ids=len
)
def test_a_wrap_of_rubbish_does_not_open(wrapped: bytes) -> None:
    with pytest.raises(FormatError):
        auditor().open_wrap(wrapped, b"")


def test_a_data_key_that_was_swapped_breaks_the_commitment() -> None:
    """Wraps of another data key, pinned in the header by whoever can write it: the commitment tells, before GCM."""
    ana = auditor()
    enc, _ = TapeKey.generate(SID, "main", [ana.recipient]).segment(0)
    other = TapeKey.generate(SID, "main", [ana.recipient])
    forged = {**enc, "wraps": sha256(other.keys_file).digest()}
    with pytest.raises(FormatError, match="commitment"):
        unlock(header(forged), other.keys_file, [ana])


def test_one_ciphertext_for_two_keys_is_refused() -> None:
    """GCM does not commit to its key: a text that opens under both can be made. The commitment allows one key only."""
    keys = (b"\x01" * 32, b"\x02" * 32)
    sealed = two_key_ciphertext(*keys, HEAD)
    opened = {SegmentCipher(key).open(HEAD, 0, sealed) for key in keys}
    assert len(opened) == 2  # the attack works on bare GCM
    ana = auditor()
    first = TapeKey(SID, "main", [ana.recipient], keys[0])
    enc, _ = first.segment(0)
    unlock(header(enc), first.keys_file, [ana])
    second = TapeKey(SID, "main", [ana.recipient], keys[1])
    with pytest.raises(FormatError, match="commitment"):
        unlock(header({**enc, "wraps": sha256(second.keys_file).digest()}), second.keys_file, [ana])


def two_key_ciphertext(one: bytes, two: bytes, aad: bytes) -> bytes:
    """Two blocks and a tag that AES-GCM accepts under both keys with nonce 0: "invisible salamanders"."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    def block(key: bytes, data: bytes) -> int:
        encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
        return int.from_bytes(encryptor.update(data), "big")

    def times(x: int, y: int) -> int:
        product = 0
        for i in range(127, -1, -1):
            if y >> i & 1:
                product ^= x
            x = x >> 1 ^ (0xE1 << 120 if x & 1 else 0)
        return product

    def inverse(x: int) -> int:
        result, power = 1 << 127, x  # x^(2^128 - 2)
        for _ in range(127):
            power = times(power, power)
            result = times(result, power)
        return result

    # The tag is mask + sum of H^i * block_i (NIST SP 800-38D 6.4); the one free block solves tag1 = tag2.
    lengths = (len(aad) * 8) << 64 | 32 * 8
    fixed = int.from_bytes(b"sixteen bytes...", "big")
    hashes, sums = [], []
    for key in (one, two):
        h = block(key, bytes(16))
        total = 0
        for i in range(0, len(aad), 16):
            total = times(total ^ int.from_bytes(aad[i : i + 16], "big"), h)
        total = times(total ^ fixed, h)
        square = times(h, h)
        hashes.append(square)
        sums.append(times(total, square) ^ times(lengths, h) ^ block(key, bytes(12) + b"\0\0\0\1"))
    free = times(sums[0] ^ sums[1], inverse(hashes[0] ^ hashes[1]))
    tag = times(free, hashes[0]) ^ sums[0]
    return b"".join(part.to_bytes(16, "big") for part in (fixed, free, tag))


# -- recipients and key files -------------------------------------------------------------------------------


def test_as_many_recipients_as_the_log_can_hold() -> None:
    one = auditor().recipient
    with pytest.raises(ValueError, match="at least"):
        TapeKey.generate(SID, "main", [])
    with pytest.raises(ValueError, match="limit"):
        TapeKey.generate(SID, "main", [one] * (RECIPIENTS_LIMIT + 1))
    key = TapeKey.generate(SID, "original", [one] * RECIPIENTS_LIMIT)
    assert len(key.keys_file) <= KEYS_LIMIT == cipher.KEYS_FILE_LIMIT
    assert encode_open(b"", key.keys_file)


def test_a_pair_of_key_files(tmp_path: Path) -> None:
    made = AuditorKey.generate(tmp_path / "keys" / "audit.key")
    private, public = tmp_path / "keys" / "audit.key", tmp_path / "keys" / "audit.key.pub"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert AuditorKey.load(private).id == made.id
    assert Recipient.load(public) == [made.recipient]
    assert b"PRIVATE" not in public.read_bytes()
    assert sorted(path.name for path in private.parent.iterdir()) == ["audit.key", "audit.key.pub"]
    before = private.read_bytes()
    with pytest.raises(KeyFileError, match="already"):
        AuditorKey.generate(private)
    private.unlink()
    with pytest.raises(KeyFileError, match="already"):  # its public half may be in a configuration
        AuditorKey.generate(private)
    assert not private.exists()
    private.write_bytes(before)
    private.chmod(0o640)
    with pytest.raises(KeyFileError, match="0600"):
        AuditorKey.load(private)


def test_a_file_of_several_recipients(tmp_path: Path) -> None:
    keys = [auditor() for _ in range(3)]
    file = tmp_path / "auditors.pub"
    file.write_bytes(b"# rotated 2026\n" + b"".join(key.public_pem() for key in [*keys, keys[0]]))
    assert Recipient.load(file) == [key.recipient for key in keys]


def test_recipients_files_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "k"
    ed25519 = Ed25519PrivateKey.generate().public_key()
    AuditorKey.generate(tmp_path / "private")
    zero = X25519PublicKey.from_public_bytes(bytes(32))  # of small order: every secret with it is zero
    for content, text in (
        (b"", "no public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "cannot be used"),
        (pem(ed25519), "not X25519"),
        (pem(zero), "cannot be used"),
        ((tmp_path / "private").read_bytes(), "private key"),
        (auditor().public_pem() + b"#" * cipher.PEM_FILE_LIMIT, "longer"),
        (b"".join(auditor().public_pem() for _ in range(RECIPIENTS_LIMIT + 1)), "more than"),
    ):
        file.write_bytes(content)
        with pytest.raises(KeyFileError, match=text):
            Recipient.load(file)
    with pytest.raises(KeyFileError, match="No such file"):
        Recipient.load(tmp_path / "nothing")


def test_private_files_that_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "k"
    for content in (b"", b"no PEM", auditor().public_pem(), ed25519_pem()):
        file.write_bytes(content)
        file.chmod(0o600)
        with pytest.raises(KeyFileError):
            AuditorKey.load(file)


def pem(key: Any) -> bytes:
    encoded: bytes = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return encoded


def ed25519_pem() -> bytes:
    from cryptography.hazmat.primitives.serialization import NoEncryption, PrivateFormat

    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
