"""Adapters go up to a hub and come back: against a small server that keeps repositories behind the hub's HTTP interface."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlparse

import huggingface_hub.constants
import pytest
import torch

import latentknobs as lk
from latentknobs import testbed
from latentknobs.errors import AdapterError, LatentKnobsError
from latentknobs.models import hub


class Hub(BaseHTTPRequestHandler):
    """Repositories as `{name: {file: bytes}}`: create, preupload, commit, tree, info and resolve."""

    repositories: dict[str, dict[str, bytes]]

    def log_message(self, *args: object) -> None: ...

    def answer(self, body: bytes = b"{}", status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body)), "Content-Type": "application/json"} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def commit(self, name: str) -> str:
        return hashlib.sha1(repr(sorted(self.repositories[name].items())).encode()).hexdigest()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlparse(self.path).path
        if path == "/api/repos/create":
            sent = json.loads(body)
            name = "/".join(filter(None, (sent.get("organization"), sent["name"])))
            if name.startswith("somebody-else/"):
                return self.answer(b'{"error": "You may not create it."}', 403)
            self.repositories.setdefault(name, {})
            return self.answer(json.dumps({"url": f"http://{self.headers['Host']}/{name}", "name": name}).encode())
        if path == "/api/validate-yaml":
            return self.answer(b'{"errors": [], "warnings": []}')
        name, _, verb = path.removeprefix("/api/models/").rpartition("/main")[0].rpartition("/")
        if verb == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in json.loads(body)["files"]]
            return self.answer(json.dumps({"files": files}).encode())
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                self.repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        oid = self.commit(name)
        self.answer(json.dumps({"commitUrl": f"http://{self.headers['Host']}/{name}/commit/{oid}", "commitOid": oid}).encode())

    def do_GET(self) -> None:
        path = urlparse(self.path).path
        if path == "/api/whoami-v2":
            return self.answer(b'{"name": "me", "type": "user"}')
        if path.startswith("/api/models/"):
            user, name, *_ = path.removeprefix("/api/models/").split("/")
            repository = f"{user}/{name}"
            if repository not in self.repositories:
                return self.answer(b'{"error": "Repository not found"}', 404, X_Error_Code="RepoNotFound")
            if "/tree/" in path:
                tree = [{"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                        for file, data in self.repositories[repository].items()]  # fmt: skip
                return self.answer(json.dumps(tree).encode())
            siblings = [{"rfilename": file} for file in self.repositories[repository]]
            info = {"id": repository, "modelId": repository, "sha": self.commit(repository), "siblings": siblings, "tags": []}
            return self.answer(json.dumps(info).encode())
        user, name, _, _, *file = path.strip("/").split("/")
        data = self.repositories[f"{user}/{name}"]["/".join(file)]
        self.answer(data, X_Repo_Commit=self.commit(f"{user}/{name}"), ETag=f'"{hashlib.sha1(data).hexdigest()}"')

    do_HEAD = do_GET


@pytest.fixture
def repositories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, bytes]]]:
    handler = type("OneHub", (Hub,), {"repositories": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    for name, value in {"ENDPOINT": address, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(
        huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(hub, "HfApi", lambda token=None: huggingface_hub.HfApi(endpoint=address, token=token or "a token"))
    monkeypatch.setattr(
        hub, "snapshot_download", lambda *args, **options: huggingface_hub.snapshot_download(*args, endpoint=address, **options)
    )
    yield handler.repositories
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return testbed.load_model()


@pytest.fixture
def adapter(tmp_path: Path, model: torch.nn.Module) -> lk.KnobAdapter:
    from latentknobs.adapter import describe_model
    from latentknobs.heads.option_head import OptionHead
    from latentknobs.heads.segmenters import parse_level

    space, base = lk.KnobSpace.of("temperature:0,1"), describe_model(model)
    head = OptionHead(space, base["hidden_size"], hidden=8)
    return lk.KnobAdapter(space, head, parse_level("token"), ("hidden",), base)


def test_an_adapter_comes_back_from_the_hub_as_it_went_up(repositories, adapter, model) -> None:
    address = adapter.push_to_hub("me/cold-sums")
    assert address.endswith(repositories and Hub.commit(type("One", (), {"repositories": repositories})(), "me/cold-sums"))
    assert set(repositories["me/cold-sums"]) == {"knob_config.json", "knob_head.safetensors", "README.md"}
    back = lk.KnobAdapter.from_pretrained("me/cold-sums", model)
    assert back.space == adapter.space
    for name, value in adapter.head.state_dict().items():
        assert torch.equal(back.head.state_dict()[name], value)
    with lk.attach(model, "me/cold-sums"):
        pass


def test_only_the_files_of_an_adapter_are_fetched(repositories, adapter) -> None:
    adapter.push_to_hub("me/cold-sums")
    repositories["me/cold-sums"]["setup.py"] = b"raise SystemExit"
    assert "setup.py" not in {path.name for path in hub.download("me/cold-sums").rglob("*")}


def test_what_is_not_on_the_hub_and_what_may_not_be_uploaded_is_said(repositories, adapter, model) -> None:
    with pytest.raises(AdapterError, match="no adapter 'me/missing': it is neither a folder here nor"):
        lk.KnobAdapter.from_pretrained("me/missing")
    with pytest.raises(LatentKnobsError, match="'me/missing'"):
        lk.attach(model, "me/missing")
    with pytest.raises(AdapterError, match=r"cannot be uploaded to 'somebody-else/one'.*hf auth login"):
        adapter.push_to_hub("somebody-else/one")


def test_a_hub_that_cannot_be_reached_is_said(repositories, adapter, monkeypatch) -> None:
    monkeypatch.setattr(
        hub, "snapshot_download",
        lambda *args, **options: huggingface_hub.snapshot_download(*args, endpoint="http://127.0.0.1:9", **options),
    )  # fmt: skip
    with pytest.raises(AdapterError, match="'me/cold-sums' cannot be fetched"):
        lk.KnobAdapter.from_pretrained("me/cold-sums")
