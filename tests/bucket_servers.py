"""Servers of buckets on this machine, S3 and Google Cloud Storage, behind one face, with the mistakes of their users.

The objects are read and written by the vendors' own clients, not by those that `sail_jax.buckets` uses.
"""

import types

import boto3
import gcp_storage_emulator.server as emulator
import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from moto.server import ThreadedMotoServer

_NOWHERE = "http://127.0.0.1:9"


class S3Server:
    """moto's server."""

    scheme, endpoint, credentials = "s3", "AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID and"

    def __init__(self):
        self._server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
        self._server.start()
        self._url = "http://{}:{}".format(*self._server.get_host_and_port())

    def stop(self):
        self._server.stop()

    def lead_to(self, monkeypatch, tmp_path):
        found = {self.endpoint: self._url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        found |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
        found |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), str(tmp_path / "none"))
        for name, value in found.items():
            monkeypatch.setenv(name, value)

    def make_bucket(self):
        self._bucket = boto3.resource("s3").create_bucket(Bucket="bucket")

    def objects(self):
        return sorted(each.key for each in self._bucket.objects.all())

    def read(self, key):
        return self._bucket.Object(key).get()["Body"].read()

    def write(self, key, data):
        self._bucket.put_object(Key=key, Body=data)

    def delete(self, key):
        self._bucket.Object(key).delete()

    def no_credentials(self, monkeypatch):
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")

    def no_permission(self, monkeypatch):
        monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0)  # it asks for rights, and finds none

    def no_server(self, monkeypatch):
        monkeypatch.setenv(self.endpoint, _NOWHERE)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


class GsServer:
    """gcp-storage-emulator. It asks nobody who they are: what Google answers without rights is put in its place."""

    scheme, endpoint, credentials = "gs", "STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS,"

    def __init__(self):
        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(emulator, "_read_raw_data", _whole(emulator._read_raw_data))
        self._server = emulator.create_server("127.0.0.1", 0, in_memory=True)
        self._server.start()
        self._url = f"http://127.0.0.1:{self._server._api._httpd.server_port}"

    def stop(self):
        self._server.stop()
        self._patch.undo()

    def lead_to(self, monkeypatch, tmp_path):
        monkeypatch.setenv(self.endpoint, self._url)
        monkeypatch.setenv("NO_GCE_CHECK", "true")
        monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "none"))
        monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)

    def make_bucket(self):
        client = storage.Client("project", AnonymousCredentials(), client_options={"api_endpoint": self._url})
        self._bucket = client.bucket("bucket")
        if not self._bucket.exists():
            self._bucket.create()

    def objects(self):
        return sorted(blob.name for blob in self._bucket.list_blobs())

    def read(self, key):
        return self._bucket.blob(key).download_as_bytes()

    def write(self, key, data):
        self._bucket.blob(key).upload_from_string(data)

    def delete(self, key):
        self._bucket.blob(key).delete()

    def no_credentials(self, monkeypatch):
        self.answer(monkeypatch, 401, "Anonymous caller does not have storage.objects.list access to the bucket.")

    def no_permission(self, monkeypatch):
        self.answer(monkeypatch, 403, "somebody@x.org does not have storage.objects.list access to the bucket.")

    def no_server(self, monkeypatch):
        async def sleep(seconds):
            """Passes over the half minute within which gcsfs asks again."""

        monkeypatch.setenv(self.endpoint, _NOWHERE)
        monkeypatch.setattr("gcsfs.retry.asyncio", types.SimpleNamespace(sleep=sleep))

    def answer(self, monkeypatch, status, message):
        def handle(router, method):
            response = emulator.Response(router._request_handler)
            response.status = types.SimpleNamespace(value=status, phrase="")
            response.json({"error": {"code": status, "message": message}})
            response.close()

        monkeypatch.setattr(emulator.Router, "handle", handle)


def _whole(read):
    """The emulator would keep what a killed client had sent of a file, as Google does not."""

    def read_whole(handler):
        data = read(handler)
        if len(data or b"") < int(handler.headers.get("Content-Length", 0)):
            raise ConnectionError("The client is gone.")
        return data

    return read_whole
