"""moto's server, with KMS as its API reference has it where moto takes more than KMS does.

moto opens under whatever key a ciphertext names, in whatever state that key is. Here, as in KMS:

    a key that is disabled                DisabledException, which names its ARN
    a key whose deletion is pending       KMSInvalidStateException, which names its ARN
    SourceKeyId, KeyId of another key     IncorrectKeyException
    a ciphertext of more than 6,144 B     ValidationException
"""

from __future__ import annotations

import base64
from typing import Any

from moto.core.exceptions import JsonRESTError
from moto.kms import models
from moto.kms.responses import KmsResponse
from moto.kms.utils import _deserialize_ciphertext_blob
from moto.server import main


def _usable(response: Any, *names: str) -> None:
    for name in names:
        key_id = response.kms_backend.any_id_to_key_id(name)
        key = response.kms_backend.keys.get(key_id)
        if key is None:
            raise JsonRESTError("NotFoundException", f"Key '{name}' does not exist")
        if key.key_state == "PendingDeletion":
            raise JsonRESTError("KMSInvalidStateException", f"{key.arn} is pending deletion.")
        if not key.enabled:
            raise JsonRESTError("DisabledException", f"{key.arn} is disabled.")


def _of_key(response: Any, name: str) -> None:
    """Refuses a ciphertext that is another key's, or none."""
    blob = response._get_param("CiphertextBlob")
    raw = base64.b64decode(blob) if isinstance(blob, str) else blob
    if len(raw) > 6_144:
        raise JsonRESTError("ValidationException", "ciphertextBlob is too long")
    try:
        named = _deserialize_ciphertext_blob(ciphertext_blob=raw).key_id
    except Exception:
        raise JsonRESTError("InvalidCiphertextException", "") from None
    if named != response.kms_backend.any_id_to_key_id(name):
        raise JsonRESTError("IncorrectKeyException", "The key ID in the request does not identify a CMK")


def _corrected(operation: str, *members: str) -> None:
    own = getattr(KmsResponse, operation)

    def answer(self: Any) -> Any:
        names = [name for name in (self._get_param(member) for member in members) if name]
        _usable(self, *names)
        if operation != "encrypt" and self._get_param(members[0]):
            _of_key(self, names[0])
        return own(self)

    setattr(KmsResponse, operation, answer)


def _without_rsa() -> None:
    """moto makes an RSA key for each symmetric one, and never uses it."""
    own = models.generate_private_key

    def generate(key_spec: str) -> Any:
        return None if key_spec == "SYMMETRIC_DEFAULT" else own(key_spec)

    models.generate_private_key = generate


if __name__ == "__main__":
    _without_rsa()
    _corrected("encrypt", "KeyId")
    _corrected("decrypt", "KeyId")
    _corrected("re_encrypt", "SourceKeyId", "DestinationKeyId")
    main()
