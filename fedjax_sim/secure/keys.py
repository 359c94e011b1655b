"""The cryptography of the protocol, all of it from the package `cryptography` (the extra `secure`)."""

import functools
from typing import Any

import numpy as np

from fedjax_sim.core.extras import needed

PUBLIC, SIGNATURE, TAG, SECRET = 32, 64, 16, 32
"""Bytes of a public key, a signature, an authentication tag and a seed."""


@functools.cache
def module(name: str) -> Any:
    """One of `cryptography.hazmat.primitives`."""
    return needed(f"cryptography.hazmat.primitives.{name}", "the secure aggregation protocol", "secure")


def derived(secret: bytes, use: str, *numbers: int, length: int = SECRET) -> bytes:
    """HKDF-SHA256 of a secret, for one use (RFC 5869)."""
    info = b"fedjax_sim secure 1 " + use.encode() + b"".join(int(n).to_bytes(8, "little") for n in numbers)
    hashes, hkdf = module("hashes"), module("kdf.hkdf")
    return hkdf.HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(secret)


def exchange_key(secret: bytes) -> Any:
    """An X25519 private key of 32 bytes (RFC 7748)."""
    return module("asymmetric.x25519").X25519PrivateKey.from_private_bytes(secret)


def public_bytes(key: Any) -> bytes:
    """The public half of an X25519 or Ed25519 key."""
    return key.public_key().public_bytes_raw()


def agreed(key: Any, public: bytes) -> bytes:
    """The X25519 secret of a private key and another's public one.

    Raises:
        ValueError: a public key of small order, whose secret all would know.
    """
    return key.exchange(module("asymmetric.x25519").X25519PublicKey.from_public_bytes(public))


def signing_key(secret: bytes) -> Any:
    """An Ed25519 private key of 32 bytes (RFC 8032)."""
    return module("asymmetric.ed25519").Ed25519PrivateKey.from_private_bytes(secret)


def verifying_key(public: bytes) -> Any:
    """An Ed25519 public key."""
    return module("asymmetric.ed25519").Ed25519PublicKey.from_public_bytes(public)


def signed_by(key: Any, signature: bytes, message: bytes) -> bool:
    """Whether a signature is of that public key and message."""
    try:
        key.verify(signature, message)
    except needed("cryptography.exceptions", "the secure aggregation protocol", "secure").InvalidSignature:
        return False
    return True


def sealed(key: bytes, nonce: bytes, message: bytes, bound_to: bytes) -> bytes:
    """ChaCha20-Poly1305 (RFC 8439): a ciphertext that tells whether it was changed."""
    return module("ciphers.aead").ChaCha20Poly1305(key).encrypt(nonce, message, bound_to)


def opened(key: bytes, nonce: bytes, ciphertext: bytes, bound_to: bytes) -> bytes | None:
    """The message, or None where the ciphertext, or what it is bound to, was changed."""
    try:
        return module("ciphers.aead").ChaCha20Poly1305(key).decrypt(nonce, ciphertext, bound_to)
    except needed("cryptography.exceptions", "the secure aggregation protocol", "secure").InvalidTag:
        return None


def keystream(key: bytes, stream: int, words: int) -> np.ndarray:
    """ChaCha20's key stream from block 0, [words] uint32; streams of a key have nonces of their own."""
    ciphers = module("ciphers")
    start = bytes(12) + int(stream).to_bytes(4, "little")  # the block's counter, then the nonce
    cipher = ciphers.Cipher(ciphers.algorithms.ChaCha20(key, start), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(4 * words)), "<u4").astype(np.uint32, copy=False)
